"""Losses that look at the whole batch, and those that remember earlier ones."""

from __future__ import annotations

from tests.contracts.mutants.mutant import Mutant, planted

CALLS = "tests/contracts/test_losses_calls.py"
BATTERY = "tests/contracts/test_losses.py"
SHARDED = "tests/contracts/test_losses_sharded.py"

MUTANTS: list[Mutant] = [
    *planted(
        "losses/transport.py",
        ("tests/losses/test_transport.py", CALLS, BATTERY, SHARDED),
        ("aot: pair by pair, not sorted", "jnp.where(real_G, values_G, 0)[order_G]", "jnp.where(real_G, values_G, 0)"),
        (
            "aot: sorted from the largest",
            "jnp.lexsort((jax.lax.stop_gradient(values_G), ~real_G))",
            "jnp.lexsort((-jax.lax.stop_gradient(values_G), ~real_G))",
        ),
        (
            "aot: pairs that are not real take ranks",
            "jnp.lexsort((jax.lax.stop_gradient(values_G), ~real_G))",
            "jnp.argsort(jax.lax.stop_gradient(values_G))",
        ),
        ("aot: the policy's order for both", "        order_G = jnp", "        order_G = order_G if sorted_G else jnp"),
        ("aot: gradient asked of the order", "jax.lax.stop_gradient(values_G), ~real_G", "values_G, ~real_G"),
        ("aot: junk in pairs that are not real", "jnp.where(real_G, values_G, 0)[order_G]", "values_G[order_G]"),
        (
            "aot: each shard sorts its own",
            "values_G = gathered(values_B, axis_name)",
            "values_G = gathered(values_B, None)",
        ),
        ("aot: swapped sign", "(sorted_G[0] - sorted_G[1])[rank_G]", "(sorted_G[1] - sorted_G[0])[rank_G]"),
        (
            "aot: ranks stand at the first places, real or not",
            "jnp.where(real_G, jnp.cumsum(real_G) - 1, real_G.size - 1)",
            "jnp.arange(real_G.size)",
        ),
        ("aot: ranks counted from 1", "jnp.cumsum(real_G) - 1, real_G", "jnp.cumsum(real_G), real_G"),
        (
            "aot: losses of pairs that are not real",
            "return losses_B if where is None else jnp.where(where, losses_B, 0)",
            "return losses_B",
        ),
        ("aot: label smoothing ignored", "smoothed(beta * u_B, label_smoothing)", "smoothed(beta * u_B, 0.0)"),
        ("aot: beta twice", "smoothed(beta * u_B,", "smoothed(beta * beta * u_B,"),
        (
            "aot: log-ratios set against each other, as unpaired",
            "_by_rank(C_B - R_B, c_B - r_B, beta",
            "_by_rank(C_B - c_B, R_B - r_B, beta",
        ),
        ("aot: forgotten reference", "_by_rank(C_B - R_B, c_B - r_B, beta", "_by_rank(C_B - R_B, 0.0 * c_B, beta"),
        ("aot_unpaired: chosen and rejected exchanged", "_by_rank(a_B, b_B, beta", "_by_rank(b_B, a_B, beta"),
        ("aot_unpaired: the margin against 0", "_by_rank(a_B, b_B, beta", "_by_rank(a_B - b_B, 0.0 * b_B, beta"),
    ),
    *planted(
        "losses/transport.py",
        ("tests/contracts/test_losses_calls.py -k refused",),
        ("aot: knobs are not checked", "    check_knobs(aot, beta=beta, label_smoothing=label_smoothing)\n", ""),
        (
            "aot_unpaired: knobs are not checked",
            "    check_knobs(aot_unpaired, beta=beta, label_smoothing=label_smoothing)\n",
            "",
        ),
    ),
    *planted(
        "losses/stateful.py",
        ("tests/losses/test_stateful.py", CALLS, BATTERY, SHARDED),
        (
            "averages: old and new exchanged",
            "mean=decay * state.mean + (1.0 - decay) * centre",
            "mean=(1.0 - decay) * state.mean + decay * centre",
        ),
        (
            "averages: nothing is remembered of the mean",
            "mean=decay * state.mean + (1.0 - decay) * centre",
            "mean=centre",
        ),
        (
            "averages: of this shard, and of pairs that are not real",
            "mean_and_std(values_B, where=where, axis_name=axis_name)",
            "mean_and_std(values_B)",
        ),
        (
            "averages: the variance is averaged",
            "std=decay * state.std + (1.0 - decay) * deviation",
            "std=jnp.sqrt(decay * state.std**2 + (1.0 - decay) * deviation**2)",
        ),
        (
            "averages: updates are not counted",
            "count=jnp.asarray(state.count, centre.dtype) + 1",
            "count=jnp.asarray(state.count, centre.dtype)",
        ),
        (
            "averages: updates are counted twice",
            "count=jnp.asarray(state.count, centre.dtype) + 1",
            "count=jnp.asarray(state.count, centre.dtype) + 2",
        ),
        ("states: a Python float compiles the step twice", "_ZERO = np.zeros((), np.float32)", "_ZERO = 0.0"),
        (
            "alpha_dpo: neither reads nor gives back the new averages",
            "    state = _averaged(state, g_B, decay, where, axis_name)\n    whole",
            (
                "    old, state = state, _averaged(state, g_B, decay, where, axis_name)\n"
                "    state, new = old, state\n    whole"
            ),
        ),
        (
            "alpha_dpo: the state is lost",
            "jnp.where(where, losses_B, 0.0)), state",
            "jnp.where(where, losses_B, 0.0)), AlphaDPOState()",
        ),
        (
            "alpha_dpo: losses of pairs that are not real",
            "(losses_B if where is None else jnp.where(where, losses_B, 0.0)), state",
            "losses_B, state",
        ),
        ("alpha_dpo: bias correction always", "if bias_correction else 1.0", "if True else 1.0"),
        (
            "alpha_dpo: bias correction never",
            "whole = 1.0 - decay**state.count if bias_correction else 1.0",
            "whole = 1.0",
        ),
        (
            "alpha_dpo: bias correction of the mean alone",
            "state.mean / whole, state.std / whole",
            "state.mean / whole, state.std",
        ),
        (
            "alpha_dpo: corrected by the count before the update",
            "decay**state.count if",
            "decay ** (state.count - 1) if",
        ),
        ("alpha_dpo: alpha with a swapped sign", "alpha * z_B + gamma / beta", "-alpha * z_B + gamma / beta"),
        ("alpha_dpo: gamma not divided by beta", "alpha * z_B + gamma / beta", "alpha * z_B + gamma"),
        (
            "alpha_dpo: gradient flows through the margin's target",
            "k_B = jax.lax.stop_gradient(alpha * z_B + gamma / beta)",
            "k_B = alpha * (p_B - jax.lax.stop_gradient(p_B) + z_B) + gamma / beta",
        ),
        (
            "alpha_dpo: gradient flows into the state",
            "g_B = jax.lax.stop_gradient(p_B - (frozen_B - frozen_rejected_B))",
            "g_B = p_B - (frozen_B - frozen_rejected_B)",
        ),
        (
            "alpha_dpo: forgotten reference",
            "g_B = jax.lax.stop_gradient(p_B - (frozen_B - frozen_rejected_B))",
            "g_B = jax.lax.stop_gradient(p_B)",
        ),
        (
            "alpha_dpo: sums under the reference",
            (
                "    frozen_B, frozen_rejected_B = averages(\n"
                "        reference._replace(chosen_tokens=policy.chosen_tokens, "
                "rejected_tokens=policy.rejected_tokens)\n    )\n"
            ),
            "    frozen_B, frozen_rejected_B = reference.chosen, reference.rejected\n",
        ),
        (
            "alpha_dpo: 0 / 0 where nothing deviates",
            "(g_B - centre) / jnp.where(steady, deviation, 1.0), 0.0)\n    k_B",
            "(g_B - centre) / deviation, 0.0)\n    k_B",
        ),
        ("alpha_dpo: std_floor ignored", "steady = deviation > std_floor", "steady = deviation > 0.0"),
        ("alpha_dpo: not centred", "jnp.where(steady, (g_B - centre) / jnp", "jnp.where(steady, g_B / jnp"),
        ("alpha_dpo: beta twice", "-log_sigmoid(beta * (p_B - k_B))", "-log_sigmoid(beta * beta * (p_B - k_B))"),
        (
            "alpha_dpo: the margin against the reference",
            "-log_sigmoid(beta * (p_B - k_B))",
            "-log_sigmoid(beta * (p_B - (frozen_B - frozen_rejected_B) - k_B))",
        ),
        ("beta_dpo: beta falls where the margin is large", "beta * (1.0 + a * (total", "beta * (1.0 - a * (total"),
        (
            "beta_dpo: beta has no floor",
            "jnp.maximum(1e-3, beta * (1.0 + a * (total(moved_B, drawn_B, axis_name) / kept - state.mean)))",
            "beta * (1.0 + a * (total(moved_B, drawn_B, axis_name) / kept - state.mean))",
        ),
        (
            "beta_dpo: beta follows the whole batch",
            "total(moved_B, drawn_B, axis_name) / kept",
            "total(moved_B, where, axis_name) / pairs",
        ),
        ("beta_dpo: beta follows this shard", "total(moved_B, drawn_B, axis_name)", "total(moved_B, drawn_B, None)"),
        ("beta_dpo: gradient flows through beta", "    moved_B = jax.lax.stop_gradient(h_B)\n", "    moved_B = h_B\n"),
        ("beta_dpo: the drawn are not made up for the others", "* pairs / kept, 0.0)", ", 0.0)"),
        ("beta_dpo: all are kept", "place_G < kept) & real_G", "place_G < real_G.size) & real_G"),
        ("beta_dpo: one too many is kept", "place_G < kept) & real_G", "place_G <= kept) & real_G"),
        (
            "beta_dpo: 10 * 0.7 falls below 7",
            "pairs * (1.0 - filter_fraction) + 1e-3",
            "pairs * (1.0 - filter_fraction)",
        ),
        (
            "beta_dpo: none may be kept",
            "jnp.maximum(jnp.floor(pairs * (1.0 - filter_fraction) + 1e-3), 1)",
            "jnp.floor(pairs * (1.0 - filter_fraction) + 1e-3)",
        ),
        ("beta_dpo: the largest weights, without lots", " + jax.random.gumbel(key, real_G.shape, h_B.dtype)", ""),
        (
            "beta_dpo: lots without weights",
            "lot_G = -0.5 * gathered(z_B, axis_name) ** 2 + jax",
            "lot_G = 0.0 * gathered(z_B, axis_name) ** 2 + jax",
        ),
        ("beta_dpo: margins far from the usual one are favoured", "lot_G = -0.5 * gathered", "lot_G = 0.5 * gathered"),
        (
            "beta_dpo: order instead of rank",
            "jnp.argsort(jnp.argsort(-jnp.where(real_G, lot_G, -jnp.inf)))",
            "jnp.argsort(-jnp.where(real_G, lot_G, -jnp.inf))",
        ),
        (
            "beta_dpo: the smallest lots are drawn",
            "jnp.argsort(jnp.argsort(-jnp.where(real_G, lot_G, -jnp.inf)))",
            "jnp.argsort(jnp.argsort(jnp.where(real_G, lot_G, jnp.inf)))",
        ),
        ("beta_dpo: pairs that are not real take part", "jnp.where(real_G, lot_G, -jnp.inf)", "lot_G"),
        (
            "beta_dpo: the same beta for every batch",
            "beta_used = jnp.maximum(1e-3, beta *",
            "beta_used = beta + 0.0 * jnp.maximum(1e-3, beta *",
        ),
        ("beta_dpo: beta twice", "-log_sigmoid(beta_used * h_B)", "-log_sigmoid(beta_used * beta * h_B)"),
        ("running_mean: the first batch is averaged with 0", "(new / jnp.maximum(seen, 1))", "(new / (seen + 1))"),
        (
            "running_mean: the mean of this batch",
            "    return moved, RunningMean(moved, seen)",
            "    return now, RunningMean(moved, seen)",
        ),
        (
            "running_mean: a batch counts as one value",
            "seen = jnp.asarray(state.count, new.dtype) + new",
            "seen = jnp.asarray(state.count, new.dtype) + 1",
        ),
        (
            "running_mean: a sum that loses new values to rounding",
            "moved = jnp.asarray(state.mean) + (now - state.mean) * (new / jnp.maximum(seen, 1))",
            "moved = (jnp.asarray(state.mean) * state.count + now * new) / jnp.maximum(seen, 1)",
        ),
        (
            "running_mean: gradient flows",
            "values = jax.lax.stop_gradient(values.astype(jnp.promote_types(values.dtype, jnp.float32)))",
            "values = values.astype(jnp.promote_types(values.dtype, jnp.float32))",
        ),
        (
            "running_mean: values that are not real count",
            "mean(values, where=where, axis_name=axis_name), count(values, where, axis_name)",
            "mean(values, axis_name=axis_name), count(values, None, axis_name)",
        ),
        (
            "running_mean: of one shard only",
            "mean(values, where=where, axis_name=axis_name), count(values, where, axis_name)",
            "mean(values, where=where), count(values, where, None)",
        ),
        (
            "running_mean: bfloat16 stays bfloat16",
            "values.astype(jnp.promote_types(values.dtype, jnp.float32))",
            "values",
        ),
    ),
    *planted(
        "losses/stateful.py",
        ("tests/contracts/test_losses_calls.py -k refused",),
        (
            "alpha_dpo: knobs are not checked",
            "    check_knobs(alpha_dpo, beta=beta, gamma=gamma, alpha=alpha, decay=decay, std_floor=std_floor)\n",
            "",
        ),
        (
            "alpha_dpo: bias_correction is not checked",
            "    check_knobs(alpha_dpo, bias_correction=bias_correction)\n",
            "",
        ),
        (
            "beta_dpo: knobs are not checked",
            "    check_knobs(beta_dpo, beta=beta, a=a, filter_fraction=filter_fraction, decay=decay)\n",
            "",
        ),
    ),
]
