"""Bugs in the analysis: field and flow, the table of logits, pulls, displacement, the step, and its telling."""

from __future__ import annotations

from tests.contracts.mutants.mutant import Mutant, planted

FIELD = ("tests/analysis/test_field.py -k 'published or conserve or flow_lines or long or ends or quotient'",)
EVERY = ("tests/analysis/test_field.py -k 'slope_in or refused or weights or level or options'",)
TABLE = ("tests/analysis/test_tabular.py",)
STEP = ("tests/analysis/test_displacement.py",)
BY_VALUE = ("tests/stages/test_analyse.py -k 'pull'",)
COURSE = ("tests/stages/test_analyse.py -k 'trajectory or runs_own or says_why or predicts or covers'",)
COMMAND = ("tests/stages/test_analyse.py -k 'run_of_dpo or must_be'",)
SHOWN = ("tests/reporting/test_analysis.py",)

MUTANTS: list[Mutant] = [
    *planted(
        "analysis/field.py",
        FIELD,
        ("ratios without the reference", '(_numbers(reference) if coordinates == "ratio" else 0.0)', "0.0"),
        ("ascent for descent", "return -gradient(", "return gradient("),
        ("one over z instead of its square", "- 2 * log_z_N2", "- log_z_N2"),
        ("the measure of ratios is that of probabilities", "logps_N2 - _numbers(reference),", "logps_N2,"),
        ("directions lose their sign", "-jnp.sign(slope_N2) * jnp.exp", "-jnp.exp"),
        ("lines are as long as their slope", "seen_N2 / jnp.linalg.norm(seen_N2, axis=1, keepdims=True)", "seen_N2"),
        ("goes on behind a minimum", "jnp.where(lower_N[:, None], moved_N2, point_N2)", "moved_N2"),
        ("a step of Euler", "one + 2 * two + 2 * three + four", "6 * one"),
        ("steps of twice the size", "size=duration / steps", "size=2 * duration / steps"),
    ),
    *planted(
        "analysis/field.py",
        EVERY,
        ("a batch-global loss is let in", "if known[name].batch_global:", "if known[name].key:"),
        ("losses of tokens are let in", "if name in TOKEN_LEVEL:", "if name in STATEFUL:"),
        ("weights are forgotten", "weight * loss(policy, reference)", "loss(policy, reference)"),
        ("options are forgotten", ".function(policy, **options)", ".function(policy)"),
        ("chosen for rejected", "rejected=logps_N2[:, 1])", "rejected=logps_N2[:, 0])"),
    ),
    *planted(
        "analysis/tabular.py",
        TABLE,
        ("climbs the loss", "-learning_rate * jax.grad", "learning_rate * jax.grad"),
        ("logits taken for log-probs", "return jax.nn.log_softmax(logits_A)", "return logits_A"),
        (
            "the diagonal is read",
            "jnp.nonzero(~jnp.eye(actions, dtype=bool))",
            "jnp.nonzero(jnp.ones((actions, actions)))",
        ),
        ("wins of the wrong side", "float)[chosen, rejected]", "float)[rejected, chosen]"),
        ("pairs count alike", "(wins * loss(", "(loss("),
        ("first order instead of what happened", "_logps(logits_A + move_A) - before_A", "first_order_A"),
    ),
    *planted(
        "analysis/displacement.py",
        STEP,
        ("pulls with the wrong sign", "(-along(own) for own in through)", "(along(own) for own in through)"),
        ("others hold the own pull", "-along(gradient) - chosen_P - rejected_P", "-along(gradient)"),
        ("the first order is of the gradient", "Pulls(along(change),", "Pulls(along(gradient),"),
        ("both slots pull as one", "x * s[None]", "x"),
        ("at the reference counts as below", "(log_ratios_nP[picks, 0] < 0)", "(log_ratios_nP[picks, 0] <= 0)"),
        ("bins that are not sorted", 'np.argsort(similarity_n, kind="stable")', "np.arange(len(similarity_n))"),
        ("by the shorter length", "max(len(one), len(other), 1)", "max(min(len(one), len(other)), 1)"),
        ("nothing is put in", "np.minimum.accumulate(kept_or_replaced - places) + places", "kept_or_replaced"),
        ("sums instead of means", "/ jnp.maximum(batch.response_tokens_BP, 1)[..., None]", "/ 1.0"),
        ("CHES without its centre", "(rejected_BD - chosen_BD)", "rejected_BD"),
        ("ties at their last rank", "- (counts - 1) / 2)", "- 0 * counts)"),
    ),
    *planted(
        "stages/one_step.py",
        BY_VALUE,
        ("slopes of the first pair for all", "lambda x: x[index], slopes)", "lambda x: x[0], slopes)"),
        ("after is before", "lambda index: forward(after, index)", "lambda index: forward(before.params, index)"),
        ("change backwards", "jnp.subtract, after, before.params", "jnp.subtract, before.params, after"),
        ("the log-probs of the heads", "return read.policy_BP[0], read", "return read.policy_heads_BP[0], read"),
    ),
    *planted(
        "stages/one_step.py",
        COMMAND,
        ("a step of an earlier batch", "host = batches.batch(step)", "host = batches.batch(0)"),
        (
            "no step is taken",
            "found = jax.device_get(apart(before, after.params,",
            "found = jax.device_get(apart(before, before.params,",
        ),
    ),
    *planted(
        "stages/trajectory.py",
        COURSE,
        ("log-probs before log-ratios", '("log_ratios", "logps")', '("logps",)'),
        ("log-probs without their start", "places_S2 - [ends(chosen)[0], ends(rejected)[0]]", "places_S2"),
        ("the last step for the last tenth", "ends(self.places_S2[:, half])[1]", "self.places_S2[-1, half]"),
        ("the level of bco_pair is 0", 'float(remembered["state"].mean)', "0.0"),
        ("ramps at their start", "**term.knobs(step), **level", "**term.knobs(0), **level"),
        ("weights of terms are forgotten", "(term.weight, pair_loss(", "(1.0, pair_loss("),
        ("heads are not noticed", "if term.ld_alpha is not None:", "if False:"),
        ("WPO is not noticed", "if term.wpo:", "if False:"),
        ("a margin that fell is predicted", "if not margin > 0:", "if margin == 0:"),
        ("a field of log-probs at log-ratios", "gradient(loss, grid_N2 + frozen_2,", "gradient(loss, grid_N2,"),
        ("lines from the log-ratio", "starts_N2 + frozen_2, length", "starts_N2, length"),
        (
            "a window that is no square",
            "max(_LEAST_WIDTH, *(high_2 - low_2))",
            "np.maximum(_LEAST_WIDTH, high_2 - low_2)",
        ),
    ),
    *planted(
        "stages/analyse.py",
        COMMAND,
        ("the reference against itself", "now = scores(setup.trained_params(base))", "now = scores(base)"),
        (
            "training rows for held-out ones",
            "setup.eval_data if setup.config.data.eval else",
            "setup.eval_data if False else",
        ),
        ("no run is no matter", "if step is None or not log.exists():", "if False:"),
        ("labelled completions are let in", "if is_unpaired(setup.config.loss):", "if False:"),
        (
            "fallen by likeness of other rows",
            "by_similarity(values_n, log_ratios_nP)",
            "by_similarity(values_n, now.logps_nP)",
        ),
    ),
    *planted(
        "reporting/analysis.py",
        SHOWN,
        ("the strongest pull upwards is blamed", "Counter(min(", "Counter(max("),
        ("those that rose are counted", '["happened"] < 0]', '["happened"] > 0]'),
    ),
    *planted(
        "reporting/field.py",
        SHOWN,
        ("the axes are swapped", "axes.plot(*places[-1],", "axes.plot(*places[-1][::-1],"),
    ),
]
