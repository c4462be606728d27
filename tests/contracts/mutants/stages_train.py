"""From the configuration to the losses: their options, steering, a moving reference, what is checked."""

from __future__ import annotations

from tests.contracts.mutants.mutant import Mutant, planted

REFUSED = "tests/stages/test_losses.py -k refused"

MUTANTS: list[Mutant] = [
    *planted(
        "stages/terms.py",
        ("tests/stages/test_terms.py", REFUSED),
        ("a ramp is a step ahead", "step / self.steps)", "(step + 1) / self.steps)"),
        ("a ramp goes on beyond its end", "min(1.0, step / self.steps)", "step / self.steps"),
        ("a ramp runs backwards", "self.start + (self.end - self.start) *", "self.end + (self.start - self.end) *"),
        ("alpha-DPO starts cold", '{"alpha_dpo": {"bias_correction": True}}', "{}"),
        (
            "the defaults of the loss win over the options",
            "| dict(options)).items()",
            ").items()",
        ),
        ("an option out of its range is taken", "number is None or not spec.interval.holds(number)", "number is None"),
        (
            "a ramp may leave the range",
            "if spec.interval is None or not spec.interval.holds(number):",
            "if spec.interval is None:",
        ),
        (
            "an unknown option is ignored",
            "        if name not in specs:\n",
            "        if name not in specs:\n            continue\n        if name not in specs:\n",
        ),
        ("BCO's level is an option", 'specs.pop("delta", None)', 'specs.get("delta", None)'),
        ("pairs and labelled completions in one objective", "    if apart:", "    if False:"),
        ("no loss needs a reference", "any(term.name not in REFERENCE_FREE for term in terms)", "False"),
        ("steering begins at 0", "np.float32(self.budget.alpha_start)", "np.float32(0.0)"),
        ("steering options without `alpha: auto` are ignored", "        if asked:", "        if False:"),
        ("steering without a budget", '    if "kl_budget" not in asked:', "    if False:"),
        (
            "a start outside of the bounds",
            "    if not found.alpha_low <= found.alpha_start <= found.alpha_high:",
            "    if False:",
        ),
        ("wpo on single completions is taken", "if asked and (config.name in UNPAIRED or", "if asked and (False or"),
        ("ld_alpha is lost", "budget, config.ld_alpha, config.wpo)", "budget, None, config.wpo)"),
    ),
    *planted(
        "stages/budget.py",
        ("tests/stages/test_losses.py -k 'its_bounds or steered or alpha'",),
        (
            "alpha rises where the KL is above its line",
            "short = (line - (kl + (kl - previous_kl)))",
            "short = ((kl + (kl - previous_kl)) - line)",
        ),
        (
            "alpha leaves its bounds",
            "float(np.clip(budget.kl_gain * short, budget.alpha_low, budget.alpha_high))",
            "float(budget.kl_gain * short)",
        ),
        ("the distance is in nats, not in budgets", "(kl - previous_kl))) / budget.kl_budget", "(kl - previous_kl)))"),
        ("the gain is ignored", "np.clip(budget.kl_gain * short,", "np.clip(short,"),
        (
            "the whole budget from the first step on",
            "budget.kl_budget * min(1.0, (done + budget.kl_every) / steps)",
            "budget.kl_budget",
        ),
        (
            "the line goes on beyond the budget",
            "min(1.0, (done + budget.kl_every) / steps)",
            "(done + budget.kl_every) / steps",
        ),
        ("the line as it is now, not at the next measurement", "(done + budget.kl_every) / steps", "done / steps"),
        ("the KL's own pace is ignored", "(line - (kl + (kl - previous_kl)))", "(line - kl)"),
        ("the last KL is not remembered", ', "kl": kl}\n', "}\n"),
        ("measured every step", "        if done % budget.kl_every:", "        if False:"),
        (
            "measured between the intervals",
            "        if done % budget.kl_every:",
            "        if (done + 1) % budget.kl_every:",
        ),
        (
            "the KL of the policy to itself",
            "sampled_logps(setup, rows, frozen(state))",
            "sampled_logps(setup, rows, policy(state))",
        ),
        (
            "the KL with a swapped sign",
            "sampled_logps(setup, rows, policy(state)) - sampled_logps(setup, rows, frozen(state))",
            "sampled_logps(setup, rows, frozen(state)) - sampled_logps(setup, rows, policy(state))",
        ),
        (
            "samples of the reference",
            "rows = sample(policy(state), key).rows",
            "rows = sample(frozen(state), key).rows",
        ),
        (
            "the same lots at every measurement",
            "jax.random.fold_in(jax.random.key(setup.config.seed), done)",
            "jax.random.key(setup.config.seed)",
        ),
        ("alpha stays", "{**own, **moved}", "{**own}"),
    ),
    *planted(
        "stages/resume.py",
        ("tests/stages/test_losses.py -k 'steered or reached or refused'",),
        ("a steered run may change its last step", 'if stage == "train" and any(', "if False and any("),
    ),
    *planted(
        "stages/train.py",
        ("tests/stages/test_train.py",),
        ("TR-DPO: off by one", "jax.lax.cond(done % every == 0", "jax.lax.cond((done + 1) % every == 0"),
        ("TR-DPO: the share is ignored", "(share * p + (1.0 - share) * f)", "p"),
        ("TR-DPO: the share the other way round", "(share * p + (1.0 - share) * f)", "((1.0 - share) * p + share * f)"),
        ("TR-DPO: the reference never moves", "    if not every:\n        return None\n", "    return None\n"),
    ),
    *planted(
        "stages/train.py",
        ("tests/stages/test_train.py", "tests/stages/test_pipeline.py -k step_zero"),
        (
            "the check of step 0 is off",
            "        if store:\n            check_start",
            "        if False:\n            check_start",
        ),
        (
            "the check of step 0 looks at no log-probs",
            "    if not same.all():",
            "    if False:",
        ),
        (
            "the check of step 0 looks at no loss",
            "        if not abs(value - known) <= absolute + relative * abs(known):",
            "        if False:",
        ),
    ),
    *planted(
        "stages/reference.py",
        ("tests/stages/test_train.py",),
        (
            "stored heads are never compared",
            "off_nP = np.maximum(np.abs(now.logps_nP - stored.logps_nP), np.abs(now.heads_nP - stored.heads_nP))",
            "off_nP = np.abs(now.logps_nP - stored.logps_nP)",
        ),
        ("stored token counts are never compared", "(near_nP & (now.tokens_nP == stored.tokens_nP))", "near_nP"),
    ),
    *planted(
        "stages/train.py",
        ("tests/stages/test_losses.py -k 'ld_and_wpo or kto_scores or steered or straight_line'",),
        (
            "the heads attached are whole log-probs",
            '"reference_heads_BP": scores.heads_nP',
            '"reference_heads_BP": scores.logps_nP',
        ),
        (
            "knobs stay those of the first step",
            '{"losses": [term.knobs(step) for term in setup.terms]}',
            '{"losses": [term.knobs(0) for term in setup.terms]}',
        ),
        (
            "what was steered is lost",
            "state, numbers = steer(done, state) if steer else (state, {})",
            "numbers = steer(done, state)[1] if steer else {}",
        ),
        ("labels are not given to the batches", "desirable=data.desirable,", "desirable=None,"),
    ),
    *planted(
        "stages/train.py",
        ("tests/stages/test_losses.py -k 'where_no_store_will_do'",),
        (
            "a live reference where a store would do",
            "return needs_reference(setup.terms) and not reference.reads_store(setup)",
            "return needs_reference(setup.terms)",
        ),
    ),
]
