"""Bugs in the report: verdict, worries, tables, samples, comparison, pages; where metrics go; what `run` runs."""

from __future__ import annotations

from tests.contracts.mutants.mutant import Mutant, planted

WORRIES = ("tests/reporting/test_concerns.py tests/reporting/test_verdict.py",)
TABLES = ("tests/reporting/test_tables.py",)
COMPARISON = ("tests/reporting/test_comparison.py",)
BROWSER = ("tests/reporting/test_browser.py",)
COMMAND = ("tests/stages/test_report.py",)
RUN = ("tests/stages/test_run.py",)
SINKS = ("tests/stages/test_sinks.py",)

MUTANTS: list[Mutant] = [
    *planted(
        "reporting/concerns.py",
        WORRIES,
        ("shorter responses are no worry", "words[1] / LONGER <= words[0]", "words[0] / LONGER <= words[0]"),
        ("answers nobody understood, looked for elsewhere", '"judged", "usage", "not_un', '"judged", "not_un'),
        ("worries where chosen rose", "if ratio < -FALLEN_LOGPS_NATS", "if ratio > FALLEN_LOGPS_NATS"),
        ("NaN is near the win rate", "not abs(raw - equal) <= BY_LENGTH", "abs(raw - equal) > BY_LENGTH"),
        ("an interval that ends below is unclear", "bounds[0] > value or bounds[1] < value", "bounds[0] > value"),
        ("no fine-tuning is none that failed", '.get("fitted") is False', '.get("fitted") is not True'),
        (
            "every fact is odd",
            'for what, count, odd in split["facts"] if odd]',
            'for what, count, _ in split["facts"]]',
        ),
    ),
    *planted(
        "reporting/results.py",
        WORRIES,
        (
            "the KL by log-ratios first",
            '(("exact", "exact_interval"), ("sequence_kl", "interval"))',
            '(("sequence_kl", "interval"), ("exact", "exact_interval"))',
        ),
    ),
    *planted(
        "reporting/tables.py",
        TABLES,
        ("what is nowhere in one split is nowhere", 'if set(found.values()) == {"0"}', 'if "0" in found.values()'),
        ("both orders have the first one's rate", '{}, "policy_second")', '{}, "policy_first")'),
        (
            "the policy's numbers for both",
            "policy.get(name), None, reference.get(name))",
            "policy.get(name), None, policy.get(name))",
        ),
    ),
    *planted(
        "reporting/samples.py",
        TABLES,
        ("a tie is a win", '"better" if verdict > 0.5', '"better" if verdict >= 0.5'),
        ("answers to one prompt are one", "seen[prompt] = seen.get(prompt, 0) + 1", "seen[prompt] = 1"),
        ("one run's reference for all", "if same else policies", "if first else policies"),
    ),
    *planted("reporting/page.py", TABLES, ("text is HTML", "autoescape=True", "autoescape=False")),
    *planted(
        "reporting/alike.py",
        COMPARISON,
        (
            "another start spoils nothing",
            "bool(of_samples or both), bool(of_rows or both)",
            "bool(of_samples), bool(of_rows)",
        ),
        ("all rows are the same", 'part(run.evaluation, "rows") or', 'part(run.evaluation, "no rows") or'),
        ("prompts are not looked at", "_differing(judged) + _differing(prompts)", "_differing(judged)"),
        ("a retry is another judge", '"evaluation.judge.retries"', '"evaluation.judge.retry"'),
    ),
    *planted(
        "reporting/comparison.py",
        COMPARISON,
        ("draws what cannot be compared", "None if unlike and unlike.samples else draw", "draw"),
    ),
    *planted(
        "reporting/plots.py",
        COMPARISON,
        ("the seventh line is the first", "DASHES[(number + number // len(LINES)) % 2]", "DASHES[number % 2]"),
        (
            "a run without the metric gives its colour away",
            "for run, steps, values in lines]",
            "for run, steps, values in lines if len(steps)]",
        ),
    ),
    *planted(
        "reporting/plots.py",
        BROWSER,
        (
            "a plot without its line",
            "axes.plot(steps, values, color=colour, linestyle=dash, linewidth=1.4",
            "axes.plot([], [], linewidth=1.4",
        ),
    ),
    *planted(
        "reporting/style.css",
        BROWSER,
        ("pale by day", "--soft: #626870", "--soft: #a2a8b0"),
        ("dark by night", "--ink: #e4e3df", "--ink: #34332f"),
        ("tables push the page", ".wide { overflow-x: auto;", ".wide {"),
        ("long words push the page", "overflow-wrap: anywhere; }\nmain", "}\nmain"),
        ("asks for a picture", "pre { margin: 0;", 'pre { background: url("//a.b/c"); margin: 0;'),
    ),
    *planted(
        "reporting/report.html.jinja",
        BROWSER,
        ("asks for a style sheet", '<link rel="icon" href="data:,">', '<link rel="stylesheet" href="other.css">'),
    ),
    *planted(
        "stages/history.py",
        COMMAND,
        ("a resume forgets who began", "if from_step is not None else []", "if from_step is None else []"),
    ),
    *planted(
        "stages/report.py",
        COMMAND,
        ("the environment of nobody", 'environment=sessions[-1]["environment"]', "environment={}"),
        ("today's command", "command=_commands(sessions)", 'command=unknown["command"]'),
    ),
    *planted(
        "stages/comparison.py",
        COMMAND,
        ("a run beside itself", "folder.resolve() == before.resolve()", "folder is before"),
        ("a run without an evaluation", 'if not (folder / "evaluation.json").exists()', "if not folder.exists()"),
    ),
    *planted(
        "stages/evaluate.py",
        COMMAND,
        ("rows are not told apart", "digest(as_ids(row_ids_of(setup.eval_data.rows)).tobytes())", 'digest(b"rows")'),
    ),
    *planted(
        "stages/run.py",
        RUN,
        (
            "analyses whatever is asked",
            "    if setup.config.analysis:\n        analyse.run(setup)",
            "    analyse.run(setup)",
        ),
        ("refuses after the training", "    if setup.config.analysis:\n        analyse.check(setup)\n", ""),
    ),
    *planted(
        "training/metrics.py",
        SINKS,
        (
            "begins anew in the old W&B run",
            "if resume_step is not None and path.exists() else None",
            "if path.exists() else None",
        ),
        ("forgets the W&B run", "files.write_atomic(path, self._run.id)", "pass"),
        ("a crash is called finished", "exit_code=0 if done else 1", "exit_code=0"),
    ),
    *planted(
        "stages/sinks.py",
        SINKS,
        ("every process tells", "    if jax.process_index():\n        return []\n", ""),
        (
            "nobody looks for the package",
            "import wandb  # noqa: F401  # pyright: ignore[reportMissingImports]",
            "pass",
        ),
    ),
    *planted("stages/train.py", SINKS, ("misses the package too late", "    check_sinks(setup)\n", "")),
]
