"""Coverage-guided fuzzing of every parser of foreign bytes, by atheris (`pip install atheris`; Python 3.11).

    python -m tests.fuzz.run --inputs 100000 [PARSER ...]

Each parser runs in a process of its own. A value or one of the parser's own errors is right; another exception, more
than 5 seconds or 2 GiB is a finding, whose input is kept in .fuzz/NAME. The corpus grows in .fuzz/NAME.corpus, and the
same command goes on from there.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

LIMITS = ("-timeout=5", "-rss_limit_mb=2048", "-max_len=4096", "-print_final_stats=1", "-seed=1")
ROOT = Path(".fuzz")


def fuzz(name: str, arguments: list[str]) -> None:
    """Feed one parser in this process, which ends with it."""
    atheris: Any = importlib.import_module("atheris")  # which only this command needs

    with atheris.instrument_imports(include=["dpo_jax"]):
        from tests.fuzz.parsers import PARSERS

        parser = PARSERS[name]
        corpus = ROOT / f"{name}.corpus"
        corpus.mkdir(parents=True, exist_ok=True)

        def one(data: bytes) -> None:
            with contextlib.suppress(*parser.refuses):
                parser.parse(data)

        for number, seed in enumerate(parser.seeds()):
            (corpus / f"seed-{number}").write_bytes(seed)
            one(seed)  # what is imported when it is called is instrumented too

    atheris.Setup([sys.argv[0], *arguments, f"-artifact_prefix={ROOT / name}-", str(corpus)], one)
    atheris.Fuzz()


def main() -> None:
    """Run all parsers, or those that are named, one after another, and print what came of each."""
    reader = argparse.ArgumentParser(prog="python -m tests.fuzz.run")
    reader.add_argument("parsers", nargs="*")
    reader.add_argument("--inputs", type=int, default=10_000, help="for each parser")
    reader.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    asked = reader.parse_args()
    if asked.alone:
        fuzz(asked.parsers[0], [*LIMITS, f"-runs={asked.inputs}"])
        return
    from tests.fuzz.parsers import PARSERS

    ROOT.mkdir(exist_ok=True)
    print("| parser | inputs | a second | edges | findings |\n| --- | ---: | ---: | ---: | --- |")
    findings = 0
    for name in asked.parsers or PARSERS:
        command = [sys.executable, "-m", "tests.fuzz.run", "--alone", "--inputs", str(asked.inputs), name]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        (ROOT / f"{name}.log").write_text(done.stdout + done.stderr)
        inputs, rate, edges = (
            (re.findall(rf"{figure}:\s+(\d+)", done.stderr) or ["?"])[-1]
            for figure in ("number_of_executed_units", "average_exec_per_sec", "cov")
        )
        findings += bool(done.returncode)
        told = f"see {ROOT / name}.log" if done.returncode else "none"
        print(f"| {name} | {inputs} | {rate} | {edges} | {told} |", flush=True)
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main()
