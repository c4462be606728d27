"""The step, the state, checkpoints and the loop, as far as losses lean on them."""

from __future__ import annotations

from tests.contracts.mutants.mutant import Mutant, planted

IN_PARTS = "tests/stages/test_objectives.py -k 'one_batch_on_one and (two or unpaired or wpo or bco or tdpo1 or aot)'"
RUNS = "tests/stages/test_losses.py -k 'mixture or ld_and_wpo or kto_scores or moves_to or steered'"

MUTANTS: list[Mutant] = [
    *planted(
        "training/step.py",
        ("tests/training/test_step.py", IN_PARTS),
        (
            "the losses of the whole batch are computed by micro-batch",
            "    if not objective.whole_batch:",
            "    if True:",
        ),
        ("every loss sees the whole batch, in two passes", "    if not objective.whole_batch:", "    if False:"),
        (
            "cotangents of the first micro-batch for all",
            "pull(jax.tree.map(lambda x: x[index], cotangents))",
            "pull(jax.tree.map(lambda x: x[0], cotangents))",
        ),
        (
            "cotangents of another micro-batch",
            "pull(jax.tree.map(lambda x: x[index], cotangents))",
            "pull(jax.tree.map(lambda x: x[index - 1], cotangents))",
        ),
        (
            "what is remembered is not updated over micro-batches",
            "return found, _summed(backward, micro_batches)",
            "return (*found[:2], state.memory), _summed(backward, micro_batches)",
        ),
        (
            "what is remembered is updated twice",
            "knobs, counts, state.memory, jax.random.fold_in(key, 0))",
            (
                "knobs, counts, objective.loss(flat, joined, knobs, counts, state.memory, key)[2], "
                "jax.random.fold_in(key, 0))"
            ),
        ),
        (
            "what is remembered is updated by a first micro-batch where none may",
            "return (loss, metrics, state.memory), gradient",
            "return (loss, metrics, micro(jnp.zeros((), jnp.int32))[0][2]), gradient",
        ),
        (
            "lots fall otherwise when the batch comes in parts",
            "counts, state.memory, jax.random.fold_in(key, 0))",
            "counts, state.memory, key)",
        ),
        (
            "the two passes have different keys",
            "_, pull = jax.vjp(lambda params: forward(params, index), state.params)",
            (
                "_, pull = jax.vjp(lambda params: objective.forward(params, state.frozen, part(index)[0], key), "
                "state.params)"
            ),
        ),
        (
            "all micro-batches have the same key",
            "lambda x: x[index], batch), jax.random.fold_in(key, index)",
            "lambda x: x[index], batch), key",
        ),
        (
            "all steps have the same key",
            "jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)",
            "jax.random.wrap_key_data(state.key)",
        ),
        (
            "mean too early: each micro-batch is divided by its own counts",
            "counts = jax.tree.map(lambda x: x.sum(0), jax.vmap(objective.weigh)(batch))",
            "counts = jax.tree.map(lambda x: x[0] * x.shape[0], jax.vmap(objective.weigh)(batch))",
        ),
        ("only the last micro-batch counts", "jax.tree.map(jnp.add, total, part(index))", "part(index)"),
        ("the last micro-batch is left out", "zeros, jnp.arange(count))[0]", "zeros, jnp.arange(count - 1))[0]"),
        (
            "grad_norm after clipping",
            '"grad_norm": norm,',
            '"grad_norm": optax.tree.norm(direction),',
        ),
        (
            "the learning rate of the next step",
            'learning_rate = knobs["learning_rate"] * schedule(state.step)',
            'learning_rate = knobs["learning_rate"] * schedule(state.step + 1)',
        ),
        (
            "the reference moves a step late",
            "objective.refresh(params, frozen, state.step + 1)",
            "objective.refresh(params, frozen, state.step)",
        ),
        (
            "the reference moves to the policy before the step",
            "objective.refresh(params, frozen, state.step + 1)",
            "objective.refresh(state.params, frozen, state.step + 1)",
        ),
        (
            "the reference's move is forgotten",
            "state.key, memory, frozen, skipped)",
            "state.key, memory, state.frozen, skipped)",
        ),
        (
            "what is remembered is forgotten",
            "state.key, memory, frozen, skipped)",
            "state.key, state.memory, frozen, skipped)",
        ),
        ("a loss that is not finite is learned from", "jnp.isfinite(loss) & jnp.isfinite(norm)", "jnp.isfinite(norm)"),
        (
            "a gradient that is not finite is learned from",
            "jnp.isfinite(loss) & jnp.isfinite(norm)",
            "jnp.isfinite(loss)",
        ),
        (
            "parameters move in a step that is skipped",
            "params = unless_skipped(moved, state.params)",
            "params = jax.tree.map(lambda n, o: jnp.where(jnp.isfinite(n), n, o * 1.001), moved, state.params)",
        ),
        (
            "the optimizer learns from a step that is skipped",
            "unless_skipped((moments, memory), (state.optimizer, state.memory))",
            "(moments, unless_skipped(memory, state.memory))",
        ),
        (
            "what a skipped step found is remembered",
            "unless_skipped((moments, memory), (state.optimizer, state.memory))",
            "(unless_skipped(moments, state.optimizer), memory)",
        ),
        ("skipped steps are not counted", "state.skipped + jnp.where(finite, 0, 1)", "state.skipped"),
        ("the old state is not donated", "donate_argnums=0\n    )", "donate_argnums=()\n    )"),
    ),
    *planted(
        "training/state.py",
        ("tests/training/test_step.py", RUNS),
        ("replicated moments", "lambda _, sharding: sharding,", "lambda _, sharding: whole,"),
        (
            "frozen parameters are the trained ones",
            "optimizer.init(params), key, memory, frozen, skipped)",
            "optimizer.init(params), key, memory, frozen and params, skipped)",
        ),
        (
            "every state has the same key",
            "jax.random.key_data(jax.random.key(seed))",
            "jax.random.key_data(jax.random.key(0))",
        ),
        (
            "a state remembers nothing at first",
            "optimizer.init(params), key, memory, frozen, skipped)",
            "optimizer.init(params), key, jax.tree.map(jnp.zeros_like, memory), frozen, skipped)",
        ),
    ),
    *planted(
        "training/checkpoint.py",
        ("tests/training/test_checkpoint.py", RUNS),
        ("what was remembered is not saved", '"memory": _numbered(state.memory)', '"memory": {}'),
        (
            "what was remembered begins anew",
            'memory = _with_leaves(like.memory, found.get("memory", {}))',
            'memory = _with_leaves(like.memory, jax.tree.map(jax.numpy.zeros_like, found.get("memory", {})))',
        ),
        (
            "the leaves of what was remembered come back in another order",
            "[numbered[str(index)] for index in range(len(numbered))]",
            "[numbered[str(index)] for index in reversed(range(len(numbered)))]",
        ),
        (
            "restore_memory gives what is there already",
            'return _with_leaves(like, self._read(step, "memory", leaves) if leaves else {})',
            "return like",
        ),
        ("frozen parameters are not saved", '"frozen": state.frozen}', '"frozen": None}'),
        ("frozen parameters are the policy's", '"frozen": state.frozen}', '"frozen": state.frozen and state.params}'),
        (
            "digests are not compared",
            'if damaged := changed(target, self._sealed(step)["digests"]):',
            "if damaged := []:",
        ),
        ("another dtype is cast without a word", "or other.dtype != leaf.dtype", ""),
    ),
    *planted(
        "training/loop.py",
        ("tests/training/test_loop.py", RUNS),
        ("the loss of another step is logged", "late = _Late(done, numbers", "late = _Late(done + 1, numbers"),
        ("any number of steps in a row is skipped", "if len(skips) > skips_allowed:", "if False:"),
        (
            "skipped steps count that do not follow each other",
            "skips[:] = [*skips, step.done] if skipped else []",
            "skips[:] = [*skips, *[step.done] * skipped]",
        ),
        ("a skipped step is not logged", "elif skipped or step.more:", "elif step.more:"),
        ("what is measured off the log's steps is lost", "elif skipped or step.more:", "elif skipped:"),
        ("an infinite gradient norm is none of a skip", 'values["loss"] + values["grad_norm"]', 'values["loss"]'),
        ("parameters that are not finite are saved", "if skips and not _finite(state.params):", "if False:"),
        (
            "the rows of another step are named",
            "_Late(done, numbers, more, batch.row_ids)",
            "_Late(done, numbers, more, [])",
        ),
        ("told to stop, it leaves without saving", "if leaves or done == steps or", "if done == steps or"),
        (
            "told to stop, it goes on",
            "            if leaves:\n                break",
            "            if False:\n                break",
        ),
        (
            "what is done after a step does not reach the next",
            "state, more = after(done, state) if after else (state, {})",
            "_, more = after(done, state) if after else (state, {})",
        ),
        ("knobs of the next step", "knobs(done - 1)", "knobs(done)"),
        (
            "a resumed run begins its data anew",
            "closing(prefetch(read, start, steps))",
            "closing(prefetch(read, 0, steps - start))",
        ),
    ),
]
