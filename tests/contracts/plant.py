"""Plants each known bug in a copy of this checkout, one at a time, and runs the tests that must notice it.

    python tests/contracts/plant.py                                # all of them: an hour or two
    python tests/contracts/plant.py --only kto "mean too early"    # those with one of these texts in file or name
    python tests/contracts/plant.py --list losses_batch --write    # one list; and put the counts into README.md

A bug is caught if a test fails that passes without it. The exit status is 0 if all were caught but those that change
nothing, which are listed with their proof. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import queue
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))  # run as a script, Python looks beside this file only

from tests.contracts.mutants.equivalent import EQUIVALENT
from tests.contracts.mutants.lists import LISTS
from tests.contracts.mutants.mutant import Mutant

ROOT = Path(__file__).parents[2]
README = Path(__file__).with_name("README.md")
LEFT_OUT = shutil.ignore_patterns(".git", ".venv*", "runs", "__pycache__", ".*_cache", "dist")
TIMEOUT_SECONDS = 600.0

CAUGHT, MISSED, EQUAL = "caught", "MISSED", "equivalent"
STALE, BROKEN, LATE, RED = "does not apply", "does not import", "timed out", "tests fail without it"
ACCEPTED = {CAUGHT, EQUAL}


class Verdict(NamedTuple):
    """What became of one bug, and the test that failed first."""

    mutant: Mutant
    outcome: str
    test: str = ""


def run_tests(tree: Path, tests: str, timeout_seconds: float) -> tuple[str, str]:
    """Runs some tests of a tree: MISSED if all pass, else what went wrong, and the first test that failed."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider", *shlex.split(tests)]
    environment = {
        **os.environ,
        "PYTHONPATH": str(tree),
        # A planted line may be as long as the one before, within the same second: no .pyc may stand for it.
        "PYTHONDONTWRITEBYTECODE": "1",
        # All runs share what they compile, as the workers of one test run do (see conftest): three times as fast.
        "PYTEST_XDIST_WORKER": "plant",
        "JAX_COMPILATION_CACHE_DIR": str(tree.parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, text=True, timeout=timeout_seconds
        )
    except subprocess.TimeoutExpired:
        return LATE, ""
    if done.returncode == 0:
        return MISSED, ""
    failed = re.search(r"^(?:FAILED|ERROR) (\S+::.*?)(?: - .*)?$", done.stdout, re.MULTILINE)
    return (CAUGHT, failed[1]) if failed else (BROKEN, done.stdout.strip().rpartition("\n")[2])


def judge(tree: Path, mutant: Mutant, timeout_seconds: float = TIMEOUT_SECONDS) -> Verdict:
    """Plants one bug, runs its tests, and takes it out again."""
    path = tree / "dpo_jax" / mutant.file
    text = path.read_text(encoding="utf8") if path.is_file() else ""
    if text.count(mutant.old) != 1 or mutant.old == mutant.new:
        return Verdict(mutant, STALE)
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf8")
    try:
        for tests in mutant.tests:
            outcome, test = run_tests(tree, tests, timeout_seconds)
            if outcome != MISSED:
                break
    finally:
        path.write_text(text, encoding="utf8")
    return Verdict(mutant, EQUAL if outcome == MISSED and place(mutant) in EQUIVALENT else outcome, test)


def judge_all(
    root: Path, mutants: Sequence[Mutant], *, jobs: int = 1, timeout_seconds: float = TIMEOUT_SECONDS
) -> list[Verdict]:
    """Judges bugs in `jobs` copies of `root`; where their tests fail without them, none is planted."""
    with tempfile.TemporaryDirectory(prefix="dpo-jax-plant-") as folder, ThreadPoolExecutor(jobs) as pool:
        trees: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for number in range(jobs):
            trees.put(Path(shutil.copytree(root, Path(folder, str(number)), ignore=LEFT_OUT)))

        def in_a_tree(work: Mutant | str) -> Verdict | str:
            tree = trees.get()
            try:
                if isinstance(work, str):
                    outcome, test = run_tests(tree, work, timeout_seconds)
                    print(f"{'pass' if outcome == MISSED else 'FAIL':<23}{work}", flush=True)
                    return "" if outcome == MISSED else test or outcome
                verdict = judge(tree, work, timeout_seconds)
            finally:
                trees.put(tree)
            show(verdict)
            return verdict

        selections = list(dict.fromkeys(tests for mutant in mutants for tests in mutant.tests))
        wrong = {tests: said for tests, said in zip(selections, pool.map(in_a_tree, selections), strict=True) if said}
        red = [Verdict(m, RED, str(wrong[tests])) for m in mutants for tests in m.tests if tests in wrong]
        for verdict in red:
            show(verdict)
        sound = [mutant for mutant in mutants if not wrong.keys() & set(mutant.tests)]
        return red + [verdict for verdict in pool.map(in_a_tree, sound) if isinstance(verdict, Verdict)]


def place(mutant: Mutant) -> str:
    """How a bug is called among all."""
    return f"{mutant.file}: {mutant.name}"


def show(verdict: Verdict) -> None:
    """One line for each bug, as soon as it is known."""
    test = f"  [{verdict.test}]" if verdict.test else ""
    print(f"{verdict.outcome:<23}{place(verdict.mutant)}{test}", flush=True)


def table(verdicts: Iterable[Verdict]) -> list[str]:
    """Markdown: planted, caught and equivalent by file."""
    counts: dict[str, Counter[str]] = {}
    for verdict in verdicts:
        counts.setdefault(verdict.mutant.file, Counter()).update([verdict.outcome])
    lines = ["| file | planted | caught | equivalent | missed |", "| --- | ---: | ---: | ---: | ---: |"]
    for file, found in [*sorted(counts.items()), ("all", sum(counts.values(), Counter()))]:
        planted = found.total()
        lines.append(
            f"| {file} | {planted} | {found[CAUGHT]} | {found[EQUAL]} | {planted - found[CAUGHT] - found[EQUAL]} |"
        )
    return lines


def write(name: str, lines: Sequence[str], readme: Path = README) -> None:
    """Puts lines between the two markers of a name."""
    text = readme.read_text(encoding="utf8")
    pattern = rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)"
    if not re.search(pattern, text, re.DOTALL):
        raise SystemExit(f"{readme}: there are no markers of {name}.")
    body = "\n".join(lines) + "\n"
    readme.write_text(re.sub(pattern, lambda found: found[1] + body + found[2], text, flags=re.DOTALL), encoding="utf8")


def main(arguments: Sequence[str] | None = None, lists: Mapping[str, Sequence[Mutant]] = LISTS) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", default=[""], metavar="TEXT", help="bugs with such a text in name or file")
    parser.add_argument("--list", nargs="+", choices=lists, default=list(lists), help="bugs of these lists")
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time")
    parser.add_argument("--write", action="store_true", help="put the counts into README.md")
    options = parser.parse_args(arguments)
    if options.write and options.only != [""]:
        parser.error("--write counts whole lists: leave out --only")
    every: list[Verdict] = []
    for name in options.list:
        mutants = [m for m in lists[name] if any(text in place(m) for text in options.only)]
        start = time.monotonic()
        verdicts = judge_all(ROOT, mutants, jobs=options.jobs)
        minutes = (time.monotonic() - start) / 60
        every += verdicts
        if options.write:
            write(name, [_stamp(name, minutes, options.jobs), "", *table(verdicts)])
    if options.write:
        write("equivalent", [f"- `{name}`: {proof}" for name, proof in EQUIVALENT.items()])
    print("\n".join(table(every)))
    return int(any(verdict.outcome not in ACCEPTED for verdict in every))


def _stamp(name: str, minutes: float, jobs: int) -> str:
    import jax

    command = f"python tests/contracts/plant.py --list {name} --jobs {jobs} --write"
    versions = f"Python {platform.python_version()}, jax {jax.__version__}"
    return f"`{command}`, {datetime.date.today()}, {versions}, {minutes:.0f} minutes on {os.cpu_count()} CPU cores."


if __name__ == "__main__":
    sys.exit(main())
