"""Bugs in the forms of attention, and in what they are told of the rows."""

from __future__ import annotations

from tests.contracts.mutants.mutant import Mutant, planted

BLOCKS = "tests/models/attention/test_blocks.py"
APART = "tests/models/attention/test_apart.py"
SPLASH = "tests/models/attention/test_splash.py"
SEQUENCES = "tests/data/test_sequences.py"

MUTANTS: list[Mutant] = [
    *planted(
        "models/attention/blocks.py",
        (f"{BLOCKS} -k 'like_dense or scale or windows or bfloat16'",),
        ("the largest score is not taken off", "jnp.exp(scores_ST - most_T[None])", "jnp.exp(scores_ST)"),
        ("the log-sum-exp without the largest score", "most_T + jnp.log(sum_T)", "jnp.log(sum_T)"),
        (
            "backward: keys that are not seen take part",
            "jnp.where(_mask(row, here, end), jnp.exp(scores_ST - total_T[None, here]), 0.0)",
            "jnp.exp(scores_ST - total_T[None, here])",
        ),
        ("backward: the softmax's sum does not move", " - drift_T[None, here])", ")"),
        ("backward: the cap has slope one", "bend.scale * (1.0 - bent_ST * bent_ST)", "bend.scale"),
        ("backward: the scale is forgotten", "return scores_ST, bend.scale", "return scores_ST, 1.0"),
        ("backward: keys learn from the last block", "to_key.at[:end].add(", "to_key.at[:end].set("),
        ("backward: keys learn from one head of the group", "x.sum(axis=2)", "x[:, :, 0]"),
        ("a block does not see itself", "yield slice(start, end), end", "yield slice(start, end), max(start, 1)"),
        ("windows are not told", "None if window is None else jnp.broadcast_to", "None if True else jnp.broadcast_to"),
    ),
    *planted(
        "models/stack.py",
        (f"{BLOCKS} -k no_policy",),
        ("remat dots: scores are kept", "save_only_these_names(SAVED)", "save_only_these_names('nothing')"),
    ),
    *planted(
        "models/attention/seen.py",
        (f"{BLOCKS} -k windows", f"{APART} -k windows"),
        (
            "every layer has the window of the first kind",
            "for window in self.windows])[self.kind]",
            "for window in self.windows])[0]",
        ),
        ("static windows: the first kind's for all", "lax.switch(self.kind, [", "lax.switch(0, ["),
    ),
    *planted(
        "models/attention/__init__.py",
        (f"{BLOCKS} -k mesh", f"{APART} -k mesh"),
        (
            "on a mesh: queries meet keys of other heads",
            "jnp.repeat(x, heads // x.shape[2], axis=2)",
            "jnp.tile(x, (1, 1, heads // x.shape[2], 1))",
        ),
        (
            "on a mesh: parts of sequences beside parts of rows",
            "if rows % splits or len(each) % splits:",
            "if rows % splits:",
        ),
    ),
    *planted(
        "models/attention/apart.py",
        (APART,),
        (
            "the prompt learns from one of its copies",
            "jnp.where(last_N == first_N, -1, last_N)",
            "jnp.full_like(last_N, -1)",
        ),
        ("a token that stands once learns twice", "jnp.where(last_N == first_N, -1, last_N)", "last_N"),
        ("tokens are put back from their second place", "apart.homes_UN2[..., :1]", "apart.homes_UN2[..., 1:]"),
        ("both copies of the prompt learn", "apart.owned_US[..., None]).reshape", "places_US[..., None]).reshape"),
        (
            "padding keeps what the kernel left",
            "jnp.where((segments_RT > 0)[:, :, None, None], mixed_RTHK, 0)",
            "mixed_RTHK",
        ),
    ),
    *planted(
        "models/attention/cudnn.py",
        (f"{APART} -k 'windows or like_dense'",),
        ("cudnn: a window of one more", "(window - 1, 0)", "(window, 0)"),
        ("cudnn: sees what comes after", "is_causal=True", "is_causal=False"),
        ("cudnn: the scale is forgotten", "scale=scale,\n        is_causal", "is_causal"),
    ),
    *planted(
        "models/attention/splash.py",
        (f"{SPLASH} -k like_dense",),
        ("splash: a window of one more", "(window - 1, 0)", "(window, 0)"),
        ("splash: the scale is forgotten", "(query_RTHK * scale)", "(query_RTHK * 1.0)"),
        (
            "splash: segments see each other",
            "kernels.SegmentIds(segments_BL, segments_BL)",
            "kernels.SegmentIds(*[jnp.ones_like(segments_BL)] * 2)",
        ),
        ("splash: the cap is forgotten", "attn_logits_soft_cap=soft_cap", "attn_logits_soft_cap=None"),
    ),
    *planted(
        "models/attention/choice.py",
        ("tests/models/attention/test_choice.py",),
        ("a Hopper counts as older", "generation >= _HOPPER", "generation > _HOPPER"),
        ("what cannot be is taken all the same", 'return Choice("blocks", why)', "return Choice(name, why)"),
    ),
    *planted(
        "data/sequences.py",
        (SEQUENCES,),
        ("places count from the first row of all", "row % rows_in_part * row_tokens", "row * row_tokens"),
        ("a sequence holds both responses", "(part == response)]", "(part > 0)]"),
        ("no room for a batch that needs more", "np.maximum(counts, 1) * most", "most"),
        ("rows of a part stand apart", "row % parts * (rows // parts) + row // parts", "row"),
    ),
    *planted(
        "data/shapes.py",
        (SEQUENCES,),
        (
            "sequences are counted in the wrong part",
            "place.row // (shape.rows // self._row_multiple)",
            "place.row % self._row_multiple",
        ),
    ),
    *planted(
        "models/heads.py",
        ("tests/models/test_heads.py -k sequences",),
        ("rewards: the sequences are not told", "*lots, sequences=batch.sequences)", "*lots)"),
    ),
    *planted(
        "reference/score.py",
        ("tests/stages/test_attention.py -k same",),
        ("reference: the sequences are not told", "*rows, sequences=batch.sequences)", "*rows)"),
    ),
]
