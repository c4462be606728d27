"""Pairs a second, CPU-seconds and memory of training against TRL, on this machine, the arms taking turns.

    python tests/benchmarks/against_trl.py [--cases fixed,hh,vocabulary,length] [--rounds 5] [--steps 4]
        [--lengths FILE] [--python PYTHON] [--json FILE]

Both train the same random Llama (4 layers, width 256, float32) on the same rows with AdamW, the reference cached where
TRL can: `dpo-jax train` as a user runs it, and `trl.DPOTrainer` without gradient checkpointing. A round is `--steps`
steps of each arm in turn; rounds in which something was compiled are run again and counted. FILE holds the lengths of
rows, `prompt chosen rejected` a line; without it those of `hh` are drawn so that their means are the real ones.

PYTHON has both (`bash launch/parity.sh --collect-only` makes .venv-parity, which is the default).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from work import SHAPES, drawn_lengths, keep, make_model, make_rows, parse

HERE = Path(__file__).parent
TRIES = 20


class Case(NamedTuple):
    """Rows of these lengths, so many pairs a step, a vocabulary, and which arms train on them."""

    lengths: list[tuple[int, int, int]]
    pairs: int
    vocabulary: int
    arms: tuple[str, ...]
    shape: str = "small"
    dtype: str = "float32"


ARMS: dict[str, dict[str, Any]] = {
    "ours": {"arm": "ours"},
    "TRL": {"arm": "trl", "cached": False},
    "TRL, cached": {"arm": "trl", "cached": True},
    "TRL, cached, sorted": {"arm": "trl", "cached": True, "sorted": True},
}


def cases(lengths: Path | None) -> dict[str, list[tuple[str, Case]]]:
    """Name on the command line -> the cases of that name."""

    def fixed(size: int, pairs: int = 2, vocabulary: int = 32_000) -> Case:
        return Case([(size, size, size)] * 16, pairs, vocabulary, ("ours", "TRL", "TRL, cached"))

    read = [tuple(map(int, line.split())) for line in lengths.read_text().splitlines()] if lengths else None
    hh: Any = read or drawn_lengths(512)
    return {
        "fixed": [("P = C = R = 256, 2 pairs", fixed(256))],
        "hh": [(f"HH lengths{'' if lengths else ', drawn'}, 8 pairs", Case(hh, 8, 32_000, ("ours", *list(ARMS)[2:])))],
        "vocabulary": [("P = C = R = 128, 2 pairs, V = 128,000", fixed(128, vocabulary=128_000))],
        "length": [(f"T = {size}, 2 pairs", fixed(size // 2)) for size in (1024, 2048)],
    }


class Arm:
    """A worker process."""

    def __init__(self, python: str, work: dict[str, Any], log: Path):
        command = [python, str(HERE / "arms.py"), json.dumps(work)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen(command, stderr=log.open("w"), cwd=HERE.parents[1], **pipes)
        self._log, self.compiled = log, 0
        self.rounds: list[dict[str, float]] = []

    def answer(self) -> dict[str, Any]:
        """Wait for the next answer of the worker."""
        line = self._process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise SystemExit(f"{self._process.args}\n{self._log.read_text()[-3000:]}")
        return json.loads(line)

    def tell(self, what: str) -> dict[str, Any]:
        """Sends one line and waits for the answer."""
        self._process.stdin.write(f"{what}\n")  # type: ignore[union-attr]
        self._process.stdin.flush()  # type: ignore[union-attr]
        return self.answer()

    def turn(self, steps: int) -> None:
        """One round, again and again until nothing was compiled in it."""
        for _ in range(TRIES):
            took = self.tell(str(steps))
            self.compiled += took["compiled"]
            if not took["compiled"]:
                self.rounds.append(took)
                return
        raise SystemExit(f"after {TRIES} rounds something is still compiled in each")


def measure(case: Case, folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All arms of a case, in turns."""
    folder.mkdir()
    model = make_model(folder / "model", SHAPES[case.shape], vocabulary=case.vocabulary)
    rows = make_rows(folder / "rows.jsonl", case.lengths, vocabulary=case.vocabulary)
    tokens = max(prompt + max(responses) for prompt, *responses in case.lengths)
    work = {"model": str(model), "rows": str(rows), "tokens": tokens, "pairs": case.pairs, "dtype": case.dtype}
    arms = {}
    for number, name in enumerate(case.arms):
        one = {**work, **ARMS[name], "workdir": str(folder / f"arm{number}")}
        arms[name] = Arm(options.python, one, folder / f"arm{number}.log")
        about = arms[name].answer()  # one after the other, so that they do not slow each other's start
        print(f"  {name}: {about['version']}", flush=True)
    for arm in arms.values():
        arm.tell(str(options.steps))  # warm
    for _ in range(options.rounds):
        for arm in arms.values():
            arm.turn(options.steps)
    found = []
    for name, arm in arms.items():
        pairs = case.pairs * options.steps
        found.append(
            {
                "arm": name,
                "pairs_per_second": statistics.median(pairs / each["wall"] for each in arm.rounds),
                "cpu_seconds_per_pair": statistics.median(each["cpu"] / pairs for each in arm.rounds),
                "peak_bytes": arm.tell("end")["peak_bytes"],
                "compilations_in_rounds": arm.compiled,
            }
        )
    return found


def show(title: str, found: list[dict[str, Any]]) -> None:
    """One table of Markdown; the ratios are ours to the arm."""
    heads = ("arm", "pairs/s", "ours is faster by", "CPU-seconds/pair", "ours needs less by", "peak GiB", "ours of it")
    print(f"\n{title}\n\n| {' | '.join(heads)} |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    ours = found[0]
    for each in found:
        print(
            f"| {each['arm']} | {each['pairs_per_second']:.2f} "
            f"| {ours['pairs_per_second'] / each['pairs_per_second']:.2f} | {each['cpu_seconds_per_pair']:.3f} "
            f"| {each['cpu_seconds_per_pair'] / ours['cpu_seconds_per_pair']:.2f} "
            f"| {each['peak_bytes'] / 2**30:.2f} | {ours['peak_bytes'] / each['peak_bytes']:.2f} |",
            flush=True,
        )


def main() -> None:
    """Runs the cases that are asked for."""
    python = str(HERE.parents[1] / ".venv-parity" / "bin" / "python")
    options = parse(__doc__, cases="fixed,hh,vocabulary,length", rounds=5, steps=4, lengths=None, python=python)
    if not Path(options.python).exists():
        raise SystemExit(f"no {options.python}; `bash launch/parity.sh --collect-only` makes .venv-parity")
    known, results = cases(options.lengths), {}
    for name in options.cases.split(","):
        for title, case in known[name]:
            with tempfile.TemporaryDirectory() as folder:
                results[title] = measure(case, Path(folder) / "work", options)
            show(title, results[title])
    keep(options, results)


if __name__ == "__main__":
    main()
