"""Training on one GPU: pairs a second, MFU and memory, against TRL where it is installed; and is the device right?

    python tests/benchmarks/gpu.py [--shapes 1b,3b] [--lengths ultra,hh] [--pairs 8] [--rounds 5] [--steps 4]
        [--python PYTHON] [--json FILE]

Random Llamas of the shapes of Llama 3.2 with V = 128,256, float32 parameters, bfloat16 compute, AdamW, no recomputing;
the arms take turns as in `against_trl.py`. PYTHON (default: this one) needs JAX for the GPU; where it has no TRL, the
tables hold our arm alone. MFU is of real tokens, without the reference, by `models/costs.pair_flops`.

First, on the device: the loss of the first step is log 2, and a changed response changes no other pair's log-probs.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from against_trl import Case, drawn_lengths, measure
from work import SHAPES, keep, make_model, make_rows, parse, write_config

ROOT = Path(__file__).parents[2]
VOCABULARY = 128_256
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bfloat16 operations a second."""
LENGTHS: dict[str, dict[str, Any]] = {
    "ultra": {"means": (160, 300, 270), "longest": 512},  # made up, as UltraFeedback's are
    "hh": {},
}


def check_device(python: str, shape: str, folder: Path) -> None:
    """Raises where the device's first loss is not log 2, or where a pair feels its neighbours."""
    rows = make_rows(folder / "rows.jsonl", drawn_lengths(64), vocabulary=VOCABULARY)
    lines = rows.read_text().splitlines()
    changed = json.loads(lines[20])
    words = changed["chosen"].split()
    changed["chosen"] = " ".join(["w7" if word != "w7" else "w8" for word in words]) + " "
    other = folder / "other.jsonl"
    other.write_text("\n".join([*lines[:20], json.dumps(changed), *lines[21:]]) + "\n")
    settings = {"model": {"dtype": "bfloat16"}, "data": {"order": "sequential"}}
    path = write_config(folder / "run.yaml", folder / "model", rows, **settings)
    found = []
    for source, name in ((rows, "before"), (other, "after")):
        scores = folder / f"{name}.jsonl"
        tell = [f"--workdir={folder / name}", f"--data.train.0.path={source}", "--jsonl", str(scores)]
        run_command(python, "reference", str(path), *tell)
        found.append([json.loads(line) for line in scores.read_text().splitlines()])
    names = ("chosen_logps", "rejected_logps")
    moved = [n for n, (a, b) in enumerate(zip(*found, strict=True)) if any(a[name] != b[name] for name in names)]
    if moved != [20]:
        raise SystemExit(f"{shape}: row 20 was changed, and the log-probs of rows {moved} moved")
    run_command(python, "train", str(path))
    first = json.loads((folder / "run" / "metrics.jsonl").read_text().splitlines()[0])["loss"]
    if abs(first - math.log(2)) > 2e-3:  # the store and the step are two programs that round to bfloat16 on their own
        raise SystemExit(f"{shape}: the loss of the first step is {first}, not log 2")
    print(f"{shape}: first loss {first:.6f} (log 2 = {math.log(2):.6f}); a changed response moved its own pair alone")


def run_command(python: str, *arguments: str) -> None:
    """`dpo-jax ARGUMENTS`."""
    done = subprocess.run([python, "-m", "dpo_jax.cli", *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"dpo-jax {' '.join(arguments)}\n{done.stderr[-3000:]}")


def flops_of(folder: Path, lengths: list[tuple[int, int, int]], *, shared: bool) -> float:
    """Operations of a step for a pair of these lengths, on average."""
    from dpo_jax.models.costs import matmul_parameters, pair_flops
    from dpo_jax.models.model import make_model as describe
    from dpo_jax.weights.opening import open_weights
    from dpo_jax.weights.resolve import resolve_spec

    spec = resolve_spec(open_weights(str(folder))).spec
    trunk = matmul_parameters(describe(spec))
    each = [pair_flops(spec, trunk, prompt, responses, shared=shared) for prompt, *responses in lengths]
    return sum(each) / len(each)


def show(title: str, found: list[dict[str, Any]], peak: float | None) -> None:
    """One table of Markdown; the ratio is ours to the arm."""
    print(f"\n{title}\n\n| arm | pairs/s | ours is faster by | MFU | peak GiB |\n| --- | --- | --- | --- | --- |")
    for each in found:
        faster = found[0]["pairs_per_second"] / each["pairs_per_second"]
        mfu = f"{each['pairs_per_second'] * each['flops_per_pair'] / peak:.1%}" if peak else "-"
        print(f"| {each['arm']} | {each['pairs_per_second']:.2f} | {faster:.2f} | {mfu} | ", end="")
        print(f"{each['peak_bytes'] / 2**30:.1f} |", flush=True)


def device_of(python: str) -> str:
    """The name of the first device."""
    code = "import jax; print(jax.devices()[0].device_kind)"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    """Checks the device and measures all shapes and lengths that are asked for."""
    options = parse(__doc__, shapes="1b,3b", lengths="ultra,hh", pairs=8, rounds=5, steps=4, python=sys.executable)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # both arms live on one device
    device = device_of(options.python)
    peak = next((value for name, value in PEAKS.items() if name in device), None)
    print(f"{device}{'' if peak else ': its peak is not known here, no MFU'}")
    has_trl = importlib.util.find_spec("trl") if options.python == sys.executable else True
    arms = ("ours", "TRL, cached", "TRL, cached, sorted") if has_trl else ("ours",)
    results = {}
    for shape in options.shapes.split(","):
        with tempfile.TemporaryDirectory() as folder:
            make_model(Path(folder) / "model", SHAPES[shape], vocabulary=VOCABULARY)
            check_device(options.python, shape, Path(folder))
            for name in options.lengths.split(","):
                lengths = drawn_lengths(512, **LENGTHS[name])
                case = Case(lengths, options.pairs, VOCABULARY, arms, shape, "bfloat16")
                found = measure(case, Path(folder) / name, options)
                for each in found:
                    each["flops_per_pair"] = flops_of(Path(folder) / "model", lengths, shared=each["arm"] == "ours")
                title = f"{shape}, lengths of {name}, {options.pairs} pairs a step, {device}"
                results[title] = found
                show(title, found, peak)
    keep(options, results)


if __name__ == "__main__":
    main()
