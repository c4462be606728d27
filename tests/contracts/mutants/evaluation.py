"""Bugs in what is measured: verdicts, win rates, calibration, divergence, the best of n, and what several seeds say."""

from __future__ import annotations

from tests.contracts.mutants.mutant import Mutant, planted

WINS = ("tests/evaluation/test_winrate.py",)
BEST = ("tests/evaluation/test_best_of.py",)
SEEDS = ("tests/evaluation/test_seeds.py",)
CALIBRATION = ("tests/evaluation/test_calibration.py",)
DIVERGENCE = ("tests/evaluation/test_divergence.py",)

MUTANTS: list[Mutant] = [
    *planted(
        "evaluation/winrate.py",
        WINS,
        ("a tie is a win", "np.sum(verdicts_n > 0.5)", "np.sum(verdicts_n >= 0.5)"),
        (
            "answers to one prompt are independent",
            "_interval(verdicts_n, groups_of(prompts))",
            "_interval(verdicts_n, np.arange(len(prompts)))",
        ),
        (
            "the first is preferred by the wrong sign",
            "orders.a_first + 1 - orders.b_first",
            "orders.a_first + orders.b_first",
        ),
        ("a winner that stays is flipped", "np.mean(sides < 0)", "np.mean(sides > 0)"),
        ("all won has no width", "verdicts_n[0] in (0.0, 1.0)", "verdicts_n[0] in ()"),
    ),
    *planted(
        "evaluation/length_controlled.py",
        WINS,
        ("lengths stay in", "equal_nF[:, 1] = 0.0", "equal_nF[:, 1] = equal_nF[:, 1]"),
        ("lengths are not squashed", "np.tanh(longer_n / spread)", "longer_n / spread"),
        ("the longer is the shorter", "np.array([len(a) - len(b) for", "np.array([len(b) - len(a) for"),
        ("the penalty outweighs the verdicts", "_PENALTY = 0.1", "_PENALTY = 50.0"),
        (
            "resamples count every comparison once",
            'np.einsum("sn,nf,ng->sfg", bend_Sn',
            'np.einsum("sn,nf,ng->sfg", 0 * bend_Sn + 1',
        ),
    ),
    *planted(
        "evaluation/calibration.py",
        CALIBRATION,
        ("the margin is the logit", "logits_B = beta * ", "logits_B = 1.0 * "),
        ("soft labels are hard", "np.ones_like(logits_B) if soft_label_B is None", "np.ones_like(logits_B) if True"),
        ("a tie is right", "np.where(logits_B < 0, 1 - label_B, 0.5)", "1 - label_B"),
        ("bins count alike", 'each["pairs"] * abs(', "len(logits_B) / len(bins) * abs("),
        ("chosen and rejected lengths change places", "longer_B < -ABOUT_EQUAL", "longer_B > ABOUT_EQUAL"),
    ),
    *planted(
        "evaluation/divergence.py",
        DIVERGENCE,
        (
            "the divergence of the reference from the policy",
            "token_kl(reference_RND, reference[1], policy_RND, policy[1],",
            "token_kl(policy_RND, policy[1], reference_RND, reference[1],",
        ),
        ("k3 of the other sign", "jnp.expm1(-ratios_RN) + ratios_RN", "jnp.expm1(ratios_RN) - ratios_RN"),
        ("k2 is not halved", "ratios_RN**2 / 2", "ratios_RN**2"),
        (
            "entropy a response for entropy a token",
            'values["policy_logps"].sum() / tokens_n.sum()',
            'values["policy_logps"].mean()',
        ),
    ),
    *planted(
        "evaluation/best_of.py",
        BEST,
        (
            "the best of n draws with replacement",
            "math.comb(i, n - 1) / math.comb(size, n)",
            "((i + 1) ** n - i**n) / size**n",
        ),
        (
            "the worst of n",
            "scores_NS = np.sort(np.asarray(scores_NS, np.float64), axis=1)\n    size",
            "scores_NS = -np.sort(-np.asarray(scores_NS, np.float64), axis=1)\n    size",
        ),
        ("the bound is log n", "return math.log(n) - (n - 1) / n", "return math.log(n)"),
        ("beta sharpens where it should soften", "keepdims=True)) / beta", "keepdims=True)) * beta"),
        ("the KL of the choice is its entropy", "(log_w_NS + math.log(scores_NS.shape[1]))", "-log_w_NS"),
        ("betas in the unit of nothing", "spread * 2.0**power", "2.0**power"),
    ),
    *planted(
        "evaluation/seeds.py",
        SEEDS,
        ("an interval of the normal distribution", "t.ppf(0.975, len(values) - 1)", "1.959964"),
        ("the spread of all, not of a sample", "np.std(values, ddof=1)", "np.std(values)"),
        ("seeds are lines", 'if key != "seed"}', 'if key != "sead"}'),
        (
            "a measure that some lack is that of the others",
            "        if None in values:\n",
            "        values = [value for value in values if value is not None]\n        if not values:\n",
        ),
        ("all losses are one curve", 'words = [" + ".join(losses)]', 'words = ["loss"]'),
        (
            "the soft best is the best",
            'kind = "soft best of" if "beta" in row else',
            'kind = "best of" if "beta" in row else',
        ),
    ),
    *planted(
        "evaluation/preference.py",
        ("tests/evaluation/test_preference.py",),
        (
            "a tie is right",
            "pairs, right = len(margins_B), int(np.sum(margins_B > 0))",
            "pairs, right = len(margins_B), int(np.sum(margins_B >= 0))",
        ),
        ("rejected moved as chosen did", '("rejected", log_ratios_BP[:, 1])', '("rejected", log_ratios_BP[:, 0])'),
        ("what rose fell", "np.mean(x_B < 0)", "np.mean(x_B > 0)"),
    ),
    *planted(
        "evaluation/rewardbench.py",
        ("tests/evaluation/test_rewardbench.py",),
        ("subsets count alike", "weights=[weights[name] for name in present]", "weights=None"),
        ("a score without all sections", "whole = len(sections) == len(SECTIONS) and not any", "whole = not any"),
    ),
    *planted(
        "evaluation/texts.py",
        ("tests/evaluation/test_texts.py",),
        ("repetition is of words", "_REPEATED_WORDS = 4", "_REPEATED_WORDS = 1"),
        (
            "what is distinct is counted by text",
            "for words in texts for group in _groups(words, size)",
            "for words in texts for group in set(_groups(words, size))",
        ),
    ),
]
