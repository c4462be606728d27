"""Wrong implementations of what stands around the losses, each with the test that has to reject it.

A mistake replaces one name where it is looked up: in the module that calls it, or in the tests that call it first.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax.logprobs import responses
from dpo_jax.reference import fingerprint, store
from dpo_jax.training import checkpoint, step
from tests.data import test_layouts
from tests.logprobs import test_distribution, test_responses, test_tokens
from tests.reference import test_score, test_store
from tests.training import test_checkpoint, test_step


class Mistake(NamedTuple):
    name: str
    place: Any  # module or class
    attribute: str
    wrong: Callable[[Any], Any]  # gets what stands there
    check: Callable[..., None]


class Instead:
    """A module with some names replaced."""

    def __init__(self, module: Any, **names: Any):
        self.module, self.names = module, names

    def __getattr__(self, name: str) -> Any:
        return self.names[name] if name in self.names else getattr(self.module, name)


def result(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same function, and its result changed."""
    return lambda right: lambda *args, **keywords: change(right(*args, **keywords))


def first(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same function of another first argument."""
    return lambda right: lambda argument, *args, **keywords: right(change(argument), *args, **keywords)


def batches(**changes: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same function of a batch with other fields; the batch is the last positional argument."""

    def wrong(right: Any) -> Any:
        def inner(*args: Any, **keywords: Any) -> Any:
            *before, batch = args
            changed = {field: change(getattr(batch, field)) for field, change in changes.items()}
            return right(*before, batch._replace(**changed), **keywords)

        return inner

    return wrong


# Log-probs: where the scored tokens are, and what is summed.


def unembedding(**fields: Any) -> Callable[[Any], Any]:
    return lambda right: lambda h, t, unembedding, **tiles: right(h, t, unembedding._replace(**fields), **tiles)


def response_ids(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda right: lambda logps, ids, **sizes: right(logps, change(ids), **sizes)


def means(right: Any) -> Any:
    def inner(logps: Any, ids: Any, **sizes: Any) -> Any:
        return right(logps, ids, **sizes) / jnp.maximum(right(jnp.ones_like(logps), ids, **sizes), 1)

    return inner


def without_last(ids: Any) -> Any:
    """The last token of each response counts as padding."""
    return jnp.where(jnp.roll(ids, -1, axis=1) == ids, ids, -1)


def not_normalised(right: Any) -> Any:
    def inner(hidden: Any, target: Any, unembedding: Any, **tiles: Any) -> Any:
        return (hidden * unembedding.weight_VD[target]).sum(-1)

    return inner


def heads_from(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda right: lambda ids, tokens_BP: right(ids, change(tokens_BP))


def plain() -> None:
    with jax.enable_x64(True):
        test_tokens.test_value_and_gradient_equal_the_plain_form(None, 6, 7, test_tokens.CAPPED)


LOGPROBS = [
    Mistake("shifts the source", test_responses, "scored_hidden", batches(source_RN=lambda x: x + 1),
            test_responses.test_the_source_position_is_the_one_before_the_target),
    Mistake("shifts the source where scores are made", responses, "scored_hidden", batches(source_RN=lambda x: x + 1),
            test_responses.test_scores_of_a_packed_batch_and_their_gradient),
    Mistake("shifts the target", test_responses, "batch_logps", batches(target_RN=lambda x: x + 1),
            test_responses.test_the_source_position_is_the_one_before_the_target),
    Mistake("drops the last token", test_responses, "response_logps", response_ids(without_last),
            test_responses.test_response_sums_by_hand),
    Mistake("takes padding and prompt for the first response", test_responses, "response_logps",
            response_ids(lambda ids: jnp.maximum(ids, 0)), test_responses.test_response_sums_by_hand),
    Mistake("sums into the other slot", test_responses, "response_logps", result(lambda x: x[:, ::-1]),
            test_responses.test_response_sums_by_hand),
    Mistake("sums into another pair", test_responses, "response_logps", result(lambda x: x[::-1]),
            test_responses.test_response_sums_by_hand),
    Mistake("means, not sums", test_responses, "response_logps", means, test_responses.test_response_sums_by_hand),
    Mistake("heads of the longest response", test_responses, "head_mask",
            heads_from(lambda x: jnp.broadcast_to(x.max(1, keepdims=True), x.shape)),
            test_responses.test_heads_by_hand_where_pairs_share_rows),
    Mistake("heads one token short", test_responses, "head_mask", heads_from(lambda x: x - 1),
            test_responses.test_heads_by_hand_where_pairs_share_rows),
    Mistake("heads of another pair", test_responses, "head_mask", heads_from(lambda x: x[::-1]),
            test_responses.test_heads_by_hand_where_pairs_share_rows),
    Mistake("heads are whole responses", responses, "head_mask", lambda right: lambda ids, tokens: ids >= 0,
            test_responses.test_scores_of_a_packed_batch_and_their_gradient),
    Mistake("forgets the soft cap", test_tokens, "token_logps", unembedding(soft_cap=None), plain),
    Mistake("forgets the scale", test_tokens, "token_logps", unembedding(scale=1.0), plain),
    Mistake("gives padding of the vocabulary a probability", test_tokens, "token_logps", unembedding(vocabulary=40),
            test_tokens.test_padding_of_the_vocabulary_gets_no_probability),
    Mistake("does not normalise", test_tokens, "token_logps", not_normalised, plain),
    Mistake("detaches the gradient", test_tokens, "token_logps", result(jax.lax.stop_gradient), plain),
    Mistake("sums in bfloat16", test_tokens, "token_logps", result(lambda x: x.astype(jnp.bfloat16)),
            test_tokens.test_bfloat16_is_summed_in_float32),
    Mistake("KL the other way round", test_distribution, "token_kl",
            lambda right: lambda h, u, rh, ru, **tiles: right(rh, ru, h, u, **tiles),
            test_distribution.test_kl_by_hand),
    Mistake("squares summed once", test_distribution, "token_log_sum_sq", result(lambda x: x / 2),
            test_distribution.test_log_sum_sq_by_hand),
]  # fmt: skip

# The step.


def jaxes(name: str, **names: Any) -> Callable[[Any], Any]:
    """jax, with names of one of its modules replaced."""
    return lambda jax: Instead(jax, **{name: Instead(getattr(jax, name), **names)})


def states(**changes: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The state after a step with other fields."""

    def wrong(right: Any) -> Any:
        def inner(*fields: Any) -> Any:
            state = right(*fields)
            return state._replace(**{name: change(getattr(state, name)) for name, change in changes.items()})

        return inner

    return wrong


def objectives(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda right: lambda objective, *args, **keywords: right(change(objective), *args, **keywords)


def each_by_its_own_counts(right: Any) -> Any:
    """The mean of the micro-batches' means."""

    def inner(objective: Any, state: Any, batch: Any, knobs: Any, key: Any) -> Any:
        parts = jax.tree.leaves(batch)[0].shape[0]
        micro = [jax.tree.map(operator.itemgetter(slice(i, i + 1)), batch) for i in range(parts)]
        each = [right(objective, state, part, knobs, key) for part in micro]
        return jax.tree.map(lambda *values: sum(values) / parts, *each)

    return inner


def finite(always: int) -> Callable[[Any], Any]:
    """`isfinite` that does not look: at the loss (0), at the norm (1)."""
    calls: list[Any] = []

    def isfinite(value: Any) -> Any:
        calls.append(value)
        return jnp.asarray(True) if (len(calls) - 1) % 2 == always else jnp.isfinite(value)

    return lambda jnp: Instead(jnp, isfinite=isfinite)


def stale(right: Any) -> Any:
    """The parameters that the step began with."""

    def make(*args: Any, **keywords: Any) -> Any:
        update = right(*args, **keywords)

        def inner(state: Any, *rest: Any) -> Any:
            params = jax.tree.map(jnp.copy, state.params)
            new, metrics = update(state, *rest)
            return new._replace(params=params), metrics

        return inner

    return make


def later(right: Any) -> Any:
    return lambda objective, optimizer, schedule, **rest: right(objective, optimizer, lambda i: schedule(i + 1), **rest)


def skips(where: str, whole: bool) -> Callable[..., None]:
    return functools.partial(
        test_step.test_a_step_that_is_not_finite_changes_nothing_but_its_number, where, 4 if whole else 1, whole
    )


def moved(objective: Any) -> Any:
    refresh = objective.refresh
    return objective._replace(refresh=refresh and (lambda params, frozen, done: refresh(params, frozen, done - 1)))


STEP = [
    Mistake("each micro-batch by its own counts", step, "gradients", each_by_its_own_counts,
            test_step.test_micro_batches_of_unequal_tokens_add_up_exactly),
    Mistake("only the last micro-batch counts", step, "_summed", lambda right: lambda part, count: part(count - 1),
            test_step.test_micro_batches_of_unequal_tokens_add_up_exactly),
    Mistake("leaves the last micro-batch out", step, "_summed",
            lambda right: lambda part, count: right(part, count - 1),
            test_step.test_micro_batches_of_unequal_tokens_add_up_exactly),
    Mistake("the loss of the whole batch in parts", test_step, "make_step",
            objectives(lambda o: o._replace(whole_batch=False)),
            test_step.test_a_loss_on_the_whole_batch_is_the_same_in_micro_batches),
    Mistake("memory moves in every micro-batch or none", test_step, "make_step",
            objectives(lambda o: o._replace(whole_batch=not o.whole_batch)),
            test_step.test_what_is_remembered_is_updated_once_a_step),
    Mistake("loses the memory", step, "TrainState", states(loss_state=lambda x: jax.tree.map(jnp.zeros_like, x)),
            test_step.test_what_is_remembered_is_updated_once_a_step),
    Mistake("all micro-batches draw alike", step, "jax", jaxes("random", fold_in=lambda key, _: key),
            test_step.test_chance_is_another_in_each_step_and_micro_batch),
    Mistake("all steps draw alike", step, "TrainState", states(step=jnp.zeros_like),
            test_step.test_chance_is_another_in_each_step_and_micro_batch),
    Mistake("clips before it measures the norm", step, "optax",
            lambda optax: Instead(optax, tree=Instead(optax.tree, norm=lambda g: jnp.minimum(optax.tree.norm(g), 0.5))),
            functools.partial(test_step.test_eight_devices_equal_plain_optax_on_one, {"fsdp": 8})),
    Mistake("the learning rate of the next step", test_step, "make_step", later,
            test_step.test_the_schedule_starts_at_the_first_step),
    Mistake("keeps stale parameters", test_step, "make_step", stale,
            functools.partial(test_step.test_eight_devices_equal_plain_optax_on_one, {"fsdp": 8})),
    Mistake("forgets moments", step, "TrainState", states(optimizer=lambda x: jax.tree.map(jnp.zeros_like, x)),
            functools.partial(test_step.test_eight_devices_equal_plain_optax_on_one, {"fsdp": 8})),
    Mistake("the reference moves a step late", test_step, "make_step", objectives(moved),
            test_step.test_frozen_parameters_stay_and_move_when_they_are_told),
    Mistake("the reference never moves", test_step, "make_step", objectives(lambda o: o._replace(refresh=None)),
            test_step.test_frozen_parameters_stay_and_move_when_they_are_told),
    Mistake("learns from a loss that is not finite", step, "jnp", finite(0), skips("loss", True)),
    Mistake("learns from a gradient that is not finite", step, "jnp", finite(1), skips("gradient", False)),
    Mistake("does not count skipped steps", step, "TrainState", states(skipped=jnp.zeros_like), skips("loss", False)),
    Mistake("keeps the old state beside the new one", step, "jax",
            lambda jax: Instead(jax, jit=lambda f, donate_argnums=(), **rest: jax.jit(f, **rest)),
            test_step.test_the_old_state_is_donated),
]  # fmt: skip

# What is kept on disk.


def digest_without_order(right: Any) -> Any:
    """Plain sums of the bits: two elements that change places are not noticed."""
    return lambda leaf: jnp.stack([leaf.astype(jnp.float32).sum()] * 2).astype(jnp.uint32)


def blind_to(name: str) -> Callable[[Any], Any]:
    return result(lambda lines: [line for line in lines if not line.startswith(name)])


def rolled(scores: Any) -> Any:
    return type(scores)(*(np.roll(array, 1, axis=0) for array in scores))


def by_place(right: Any) -> Any:
    return lambda self, ids: type(self._scores)(*(array[: len(ids)] for array in self._scores))


def short_ids(right: Any) -> Any:
    """Ids cut to their first half."""
    return result(lambda ids: np.concatenate([ids[:, :8], np.zeros_like(ids[:, 8:])], axis=1))(right)


def stale_shard(right: Any) -> Any:
    shards: list[Any] = []

    def read(self: Any, shard: Any) -> Any:
        shards.append(right(self, shard))
        ids, scores = shards[-1]
        return ids, type(scores)(
            *(array[: len(ids)] for array in map(np.concatenate, zip(shards[0][1], scores, strict=True)))
        )

    return read


def heads_are_whole(right: Any) -> Any:
    return lambda self, ids, scores: right(self, ids, scores._replace(heads_nP=scores.logps_nP))


def named(check: Callable[..., None], **keywords: Any) -> Callable[..., None]:
    """A test that takes a folder."""
    return lambda tmp_path: check(tmp_path, **keywords)


reads_back, weights = (
    test_store.test_reads_back_by_row_id_in_any_order,
    (test_store.test_the_digest_of_weights_sees_one_bit_one_swap_one_name_and_no_mesh),
)
fields = test_store.test_the_fingerprint_has_all_fields_and_sees_the_order_of_rows
whole, elsewhere = (
    test_checkpoint.test_restores_bit_for_bit_where_it_lay,
    test_checkpoint.test_restores_onto_another_mesh_and_the_parameters_alone,
)

KEPT = [
    Mistake("gives scores of other rows", store.Store, "lookup", result(rolled), reads_back),
    Mistake("gives scores by place", store.Store, "lookup", by_place, reads_back),
    Mistake("reads a stale shard", store.Store, "_read", stale_shard, reads_back),
    Mistake("swaps the responses", store.Store, "lookup", result(lambda s: type(s)(*(x[:, ::-1] for x in s))),
            reads_back),
    Mistake("stores whole log-probs as heads", store.Store, "append", heads_are_whole, reads_back),
    Mistake("scores a repeated row twice", store.Store, "missing",
            lambda right: lambda self, ids: np.flatnonzero(self._index.find(fingerprint.as_ids(ids)) < 0),
            test_store.test_says_which_rows_are_missing_each_once),
    Mistake("knows ids by their first half", test_store, "as_ids", short_ids,
            test_store.test_ids_are_found_by_all_of_their_bytes),
    Mistake("does not compare digests", store, "changed", lambda right: lambda *_: [],
            test_store.test_a_flipped_byte_is_found),
    Mistake("stores what is not finite", store, "np",
            lambda np: Instead(np, isfinite=lambda x: np.ones(x.shape, bool)),
            test_store.test_a_score_that_is_not_finite_is_never_stored),
    Mistake("fingerprints weights without their order", fingerprint, "_mixed", digest_without_order, weights),
    Mistake("fingerprints weights without their names", jax.tree_util, "keystr", lambda right: lambda path: "",
            weights),
    Mistake("fingerprints rows without their order", test_store, "rows_digest",
            lambda right: lambda ids: right(sorted(ids)), fields),
    Mistake("forgets the dtype", test_store, "make_fingerprint",
            result(lambda made: {k: v for k, v in made.items() if k != "dtype"}), fields),
    *(Mistake(f"is blind to {field}", store, "differences", blind_to(field),
              named(test_store.test_refuses_another_fingerprint_naming_what_differs, field=field))
      for field in test_store.FINGERPRINT),
    Mistake("stores the rows that fill the last batch", test_score, "score_rows",
            result(lambda found: (found[0], type(found[1])(*(np.concatenate([x, x[-1:]]) for x in found[1])))),
            test_score.test_every_row_gets_its_own_scores_over_several_batches),
    Mistake("gives the scores of the batch before", test_score, "score_rows",
            result(lambda found: (found[0], rolled(found[1]))),
            test_score.test_every_row_gets_its_own_scores_over_several_batches),
    Mistake("restores an empty memory", checkpoint, "_with_leaves",
            lambda right: lambda like, found: right(like, jax.tree.map(jnp.zeros_like, found)), whole),
    Mistake("restores the leaves of the memory in another order", checkpoint, "_with_leaves",
            lambda right: lambda like, leaves: right(like, dict(zip(leaves, [*leaves.values()][::-1], strict=True))),
            whole),
    Mistake("restores the policy as the reference", checkpoint.Checkpoints, "restore",
            result(lambda state: state._replace(frozen=state.params)), whole),
    Mistake("restores the key of the start", checkpoint.Checkpoints, "restore",
            result(lambda state: state._replace(key=jnp.zeros_like(state.key))), whole),
    Mistake("restores moments as zeros", checkpoint.Checkpoints, "restore",
            result(lambda state: state._replace(optimizer=jax.tree.map(jnp.zeros_like, state.optimizer))), elsewhere),
    Mistake("does not compare a checkpoint's digests", checkpoint, "changed", lambda right: lambda *_: [],
            test_checkpoint.test_a_flipped_byte_in_any_file_is_found_and_the_older_step_offered),
]  # fmt: skip

# Batches: what stands where.


def filled(**changes: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return result(
        lambda batch: batch._replace(**{name: change(getattr(batch, name)) for name, change in changes.items()})
    )


shared, packed = test_layouts.test_shared_by_hand, test_layouts.test_packed_by_hand
LAYOUTS = [
    Mistake("predicts from the token itself", test_layouts, "fill", filled(source_RN=lambda x: x + 1), shared),
    Mistake("lets responses see each other", test_layouts, "fill", filled(segments_RT=lambda x: (x + 2) // 3), shared),
    Mistake("counts positions through the row", test_layouts, "fill",
            filled(positions_RT=lambda x: np.broadcast_to(np.arange(x.shape[1]), x.shape)), packed),
    Mistake("swaps chosen and rejected", test_layouts, "fill",
            filled(response_RN=lambda x: np.where(x >= 0, x ^ 1, x)), shared),
    Mistake("scores padding", test_layouts, "fill", filled(response_RN=lambda x: np.maximum(x, 0)), packed),
    Mistake("counts tokens of the other response", test_layouts, "fill",
            filled(response_tokens_BP=lambda x: x[:, ::-1]), packed),
    Mistake("scores the prompt", test_layouts, "fill", filled(target_RN=lambda x: x * 0 + 5), shared),
    Mistake("counts a pair twice", test_layouts, "fill", filled(weight_B=lambda x: 2 * x), shared),
]  # fmt: skip

COMPILED = [*LOGPROBS, *STEP]
MISTAKES = [*COMPILED, *KEPT, *LAYOUTS]
