"""What losses are made of: log-ratios, averages, sums over the batch, knobs."""

from __future__ import annotations

from tests.contracts.mutants.mutant import Mutant, planted

CALLS = "tests/contracts/test_losses_calls.py"
BATTERY = "tests/contracts/test_losses.py"
SHARDED = "tests/contracts/test_losses_sharded.py"

MUTANTS: list[Mutant] = [
    *planted(
        "losses/pairs.py",
        (
            "tests/losses/test_pairwise.py",
            "tests/losses/test_pairs.py",
            "tests/losses/test_lengths.py",
            "tests/losses/test_laws.py",
            CALLS,
            BATTERY,
        ),
        ("margin: swapped sign", "    return a_B - b_B\n", "    return b_B - a_B\n"),
        ("margin: mean too early", "    return a_B - b_B\n", "    return jnp.full_like(a_B, (a_B - b_B).mean())\n"),
        ("log_ratios: forgotten reference", "return C_B - c_B, R_B - r_B", "return C_B, R_B"),
        (
            "log_ratios: forgotten reference of the rejected response",
            "return C_B - c_B, R_B - r_B",
            "return C_B - c_B, R_B",
        ),
        (
            "log_ratios: the reference's chosen and rejected exchanged",
            "return C_B - c_B, R_B - r_B",
            "return C_B - r_B, R_B - c_B",
        ),
        ("log_ratios: swapped sign", "return C_B - c_B, R_B - r_B", "return c_B - C_B, r_B - R_B"),
        (
            "widened: bfloat16 stays bfloat16",
            "jnp.promote_types(jnp.result_type(*arrays), jnp.float32)",
            "jnp.result_type(*arrays)",
        ),
        (
            "widened: float64 becomes float32",
            "jnp.promote_types(jnp.result_type(*arrays), jnp.float32)",
            "jnp.dtype(jnp.float32)",
        ),
        ("widened: one log-prob is broadcast over the batch", "    chex.assert_equal_shape(arrays)\n", ""),
        ("widened: log-probs may have two axes", "    chex.assert_rank(arrays, 1)\n", ""),
        (
            "token_counts: an empty response divides by 0",
            "jnp.maximum(jnp.asarray(count, dtype), 1)",
            "jnp.asarray(count, dtype)",
        ),
        ("token_counts: chosen and rejected exchanged", "    n_w_B, n_l_B = (jnp", "    n_l_B, n_w_B = (jnp"),
        (
            "token_counts: one missing count is not noticed",
            "pairs.chosen_tokens is None or pairs",
            "pairs.chosen_tokens is None and pairs",
        ),
        (
            "token_counts: one count is broadcast over the batch",
            "    chex.assert_equal_shape([pairs.chosen, pairs.chosen_tokens, pairs.rejected_tokens])\n",
            "",
        ),
        (
            "averages: by the length of the other response",
            "return C_B / n_w_B, R_B / n_l_B",
            "return C_B / n_l_B, R_B / n_w_B",
        ),
        ("averages: sums", "return C_B / n_w_B, R_B / n_l_B", "return C_B, R_B"),
        (
            "smoothed: naive log-sigmoid",
            "from jax.nn import log_sigmoid\n",
            "log_sigmoid = lambda x: jnp.log(jax.nn.sigmoid(x))\n",
        ),
        (
            "smoothed: label smoothing ignored",
            "return -(1.0 - label_smoothing) * log_sigmoid(x_B) - label_smoothing * log_sigmoid(-x_B)",
            "return -log_sigmoid(x_B)",
        ),
        (
            "smoothed: the two labels exchanged",
            "return -(1.0 - label_smoothing) * log_sigmoid(x_B) - label_smoothing * log_sigmoid(-x_B)",
            "return -(1.0 - label_smoothing) * log_sigmoid(-x_B) - label_smoothing * log_sigmoid(x_B)",
        ),
        (
            "smoothed: the right label keeps its whole weight",
            "-(1.0 - label_smoothing) * log_sigmoid(x_B)",
            "-log_sigmoid(x_B)",
        ),
        (
            "smoothed: the sign of robust DPO",
            "- label_smoothing * log_sigmoid(-x_B)",
            "+ label_smoothing * log_sigmoid(-x_B)",
        ),
    ),
    *planted(
        "losses/statistics.py",
        ("tests/losses/test_statistics.py", "tests/losses/test_transport.py", SHARDED),
        (
            "replicated: the sort sees shards of an Explicit mesh",
            "return jax.sharding.reshard(array, PartitionSpec())",
            "return array",
        ),
        (
            "replicated: without a constraint on an Auto mesh",
            "return jax.lax.with_sharding_constraint(array, PartitionSpec())",
            "return array",
        ),
        ("replicated: constrains inside shard_map", "mesh.empty or AxisType.Manual in mesh.axis_types", "mesh.empty"),
        ("gathered: this shard only", "return jax.lax.all_gather(array_B, axis_name, tiled=True)", "return array_B"),
        ("gathered: one row for each shard", "axis_name, tiled=True)", "axis_name)"),
        ("own: shards overlap", "jax.lax.axis_index(axis_name) * like_B.shape[0]", "jax.lax.axis_index(axis_name)"),
        ("own: the first shard's pairs for all", "jax.lax.axis_index(axis_name) * like_B.shape[0]", "0"),
        ("present: pairs that are not real count", "bool) if where is None else jnp.asarray(where, bool)", "bool)"),
        ("present: a mask of numbers stays numbers", "jnp.asarray(where, bool)", "jnp.asarray(where)"),
        (
            "total: of one shard only",
            "return summed if axis_name is None else jax.lax.psum(summed, axis_name)",
            "return summed",
        ),
        ("total: the mean over the shards", "jax.lax.psum(summed, axis_name)", "jax.lax.pmean(summed, axis_name)"),
        (
            "total: NaN in a pair that is not real leaks",
            "jnp.where(present(values_B, where), values_B, 0).sum()",
            "(values_B * jnp.asarray(present(values_B, where), values_B.dtype)).sum()",
        ),
        (
            "mean: of no pairs is NaN",
            "jnp.maximum(count(values_B, where, axis_name), 1)",
            "count(values_B, where, axis_name)",
        ),
        (
            "mean: over all pairs, real or not",
            "jnp.maximum(count(values_B, where, axis_name), 1)",
            "jnp.maximum(count(values_B, None, axis_name), 1)",
        ),
        ("mean_and_std: over n", "count(values_B, where, axis_name) - 1, 1)", "count(values_B, where, axis_name), 1)"),
        (
            "mean_and_std: one pair divides by 0",
            "jnp.maximum(count(values_B, where, axis_name) - 1, 1)",
            "(count(values_B, where, axis_name) - 1)",
        ),
        ("mean_and_std: the variance", "return centre, jnp.sqrt(squares", "return centre, (squares"),
        (
            "mean_and_std: around the mean of this shard",
            "centre = mean(values_B, where=where, axis_name=axis_name)",
            "centre = mean(values_B, where=where)",
        ),
        ("mean_and_std: around 0", "total((values_B - centre) ** 2, where", "total(values_B**2, where"),
    ),
    *planted(
        "losses/knobs.py",
        ("tests/losses/test_knobs.py", CALLS, BATTERY),
        ("holds: one number inside is enough", "bool(np.all(above & below))", "bool(np.any(above & below))"),
        ("holds: an open lower end is closed", "numbers > self.low if", "numbers >= self.low if"),
        ("holds: an open upper end is closed", "numbers < self.high if", "numbers <= self.high if"),
        ("holds: a closed lower end is open", "else numbers >= self.low", "else numbers > self.low"),
        ("holds: a closed upper end is open", "else numbers <= self.high", "else numbers < self.high"),
        ("holds: no upper end", "bool(np.all(above & below))", "bool(np.all(above))"),
        ("check_knobs: a traced knob is looked at", "if isinstance(value, Tracer) or (", "if ("),
        (
            "check_knobs: arrays are let through",
            "if isinstance(value, Tracer) or (isinstance(value, jax.Array) and not value.is_fully_addressable)",
            "if isinstance(value, jax.Array)",
        ),
        ("check_knobs: any word is a choice", "and value in choices:", "and choices:"),
        (
            "check_knobs: None is always allowed",
            "        if choices and (isinstance(value, str | bool) or value is None) and value in choices:",
            "        if value is None or choices and isinstance(value, str | bool) and value in choices:",
        ),
        (
            "knobs: a soft label may be above a half",
            "Smoothing = Annotated[Knob, Interval(0.0, 0.5)]",
            "Smoothing = Annotated[Knob, Interval(0.0, 1.0)]",
        ),
        (
            "knobs: beta may be 0",
            "Positive = Annotated[Knob, Interval(low=0.0, without_low=True, without_high=True)]",
            "Positive = Annotated[Knob, Interval(low=0.0, without_high=True)]",
        ),
        (
            "knobs: a weight may be below 0",
            "NotNegative = Annotated[Knob, Interval(low=0.0, without_high=True)]",
            "NotNegative = Annotated[Knob, Interval(without_high=True)]",
        ),
        (
            "knobs: a share may be above 1",
            "Share = Annotated[Knob, Interval(0.0, 1.0)]",
            "Share = Annotated[Knob, Interval(0.0, 2.0)]",
        ),
        (
            "knobs: any number may be infinite",
            "Real = Annotated[Knob, Interval(without_low=True, without_high=True)]",
            "Real = Annotated[Knob, Interval()]",
        ),
        (
            "knobs: the interval beside None is forgotten",
            "return (intervals[0], (None,)) if intervals",
            "return (None, (None,)) if intervals",
        ),
    ),
]
