"""The plan of an experiment for a machine that is not here: the real programs, compiled ahead of time.

Beside it other settings: what fits where the asked ones do not, and what else would fit where they do.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from dpo_jax.config import Config
from dpo_jax.data.rows import DataRows
from dpo_jax.data.tokens import sizes_of
from dpo_jax.errors import UserError
from dpo_jax.experiments.planned import Lengths, Planned
from dpo_jax.models.costs import forward_flops, matmul_parameters, pair_flops
from dpo_jax.planning.outcomes import Alternative, Outcome, Plan
from dpo_jax.planning.tables import gib
from dpo_jax.planning.topologies import open_machine
from dpo_jax.reading import Origins
from dpo_jax.runtime.progress import say


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """The questions to a plan: share of the peak, seconds for alternatives, a search, full effort."""

    share: float
    seconds: float
    search: bool
    full: bool


def make_plan(config: Config, origins: Origins, topology: str, asked: Asked, *, command: str) -> Plan:
    """The plan of an experiment for a machine.

    Raises:
        UserError: there is no such machine.
    """
    jax.config.update("jax_platforms", "cpu")  # the devices of this machine are left alone
    try:
        machine = open_machine(topology)
    except ValueError as error:
        raise UserError(f"command line: --topology {error}") from None
    with tempfile.TemporaryDirectory() as scratch:
        config = dataclasses.replace(config, workdir=scratch)
        planned = Planned(config, origins, command=command, machine=machine)
        planned.fix_date()
        lengths = planned.find_lengths()
        plan = _analysed(planned, lengths, asked.share)
        if machine.devices is not None:
            plan["programs"] = _programs(planned, lengths, full=asked.full)
            train = plan["programs"]["train"]
            compiled = lambda other: other.measure(other.train_call(lengths.data), full=asked.full)  # noqa: E731
            plan["alternatives"] = try_alternatives(planned, compiled, train, seconds=asked.seconds)
            if asked.search:
                plan["search"] = try_micro_batches(planned, lengths.data, full=asked.full)
        else:
            analysed = lambda other: other.analyse_train(lengths.data)  # noqa: E731
            plan["alternatives"] = try_alternatives(planned, analysed, plan["analysis"], seconds=asked.seconds)
            if asked.search:
                say("plan", f"--search compiles, and here that cannot be done: {machine.why_not}")
    return plan


def _analysed(planned: Planned, lengths: Lengths, share: float) -> Plan:
    """The model, the machine, the rows, and by arithmetic the work of a pair and the memory of a step."""
    machine, config = planned.machine, planned.config
    sizes, model = sizes_of(lengths.data.rows), planned.model
    trunk = matmul_parameters(model.tree)
    adapter = sum(x.size for x in jax.tree.leaves(model.trained.shapes)) if model.lora else None
    shared, slots = config.data.layout == "shared", slice(1) if planned.is_labelled else slice(None)
    pairs = [(int(prompt), tuple(map(int, responses[slots]))) for prompt, responses in zip(*sizes[:2], strict=True)]
    trained = float(np.mean([pair_flops(model.spec, trunk, *pair, shared=shared, adapter=adapter) for pair in pairs]))
    forward = float(np.mean([forward_flops(model.spec, trunk, *pair, shared=shared) for pair in pairs]))
    step_seconds = config.train.batch_pairs * trained / (share * machine.chip.peak_flops * machine.count)
    return {
        "model": {
            "weights": config.model.weights,
            "architecture": planned.outline.origin,
            "parameters": sum(x.size for x in jax.tree.leaves(model.shapes)),
            "vocabulary": model.spec.vocabulary,
            "trained": sum(x.size for x in jax.tree.leaves(model.trained.shapes)),
        },
        "machine": {
            "name": machine.name,
            "chip": machine.chip.name,
            "chips": machine.count,
            "capacity": machine.chip.memory_bytes,
            "peak_flops": machine.chip.peak_flops,
            "why_not_compiled": machine.why_not,
        },
        "mesh": {axis: int(size) for axis, size in planned.mesh.shape.items()},
        "settings": {
            "batch_pairs": config.train.batch_pairs,
            "micro_batch_pairs": config.train.micro_batch_pairs or config.train.batch_pairs,
            "remat": config.model.remat,
            "dtype": config.model.dtype,
            "layout": config.data.layout,
            "tiles": dataclasses.asdict(config.tiles),
        },
        "lengths": {
            "origin": lengths.origin,
            "trunk_tokens": float(np.mean([(1 if shared else len(r)) * p + sum(r) for p, r in pairs])),
            "response_tokens": float(np.mean([sum(r) for _, r in pairs])),
        },
        "work": {
            "train_flops_per_pair": trained,
            "reference_flops_per_pair": forward,
            "mfu": share,
            "seconds_per_step": step_seconds,
            "pairs_per_second": config.train.batch_pairs / step_seconds,
        },
        "fits": True,
        "analysis": planned.analyse_train(lengths.data),
        "alternatives": [],
    }


def _programs(planned: Planned, lengths: Lengths, *, full: bool) -> dict[str, Outcome]:
    """The two programs, compiled: those that `reference` and `train` call."""
    programs = {}
    if planned.reads_store:
        say("plan", "compiles the reference pass")
        programs["reference"] = planned.measure(planned.reference_call(lengths.data), full=full)
    say("plan", "compiles the training step")
    programs["train"] = planned.measure(planned.train_call(lengths.data), full=full)
    return programs


def refuse_too_large(plan: Plan) -> None:
    """Exit code 2, as for every setting that cannot work: a script must not start what would fail on the machine."""
    machine, programs = plan["machine"], plan.get("programs") or {"train": plan["analysis"]}
    for name, program in programs.items():
        if program["fits"]:
            continue
        needs, has = program["needs"], program["has"]
        by_how_much = (
            f"needs {gib(needs)} of each chip, which has {gib(has)}: {gib(needs - has)} too much"
            if needs
            else f"does not fit ({program.get('says')})"
        )
        helps = [each["change"] for each in plan["alternatives"] if each["fits"]]
        change = (
            f"What fits, {'as it was compiled' if plan.get('programs') else 'by analysis'}: {' or '.join(helps[:3])}."
            if name == "train" and helps
            else "Try a smaller reference.batch_pairs."
            if name == "reference"
            else "Nothing that was tried fits. Take more chips, lora, or a smaller data.max_tokens."
        )
        analysed = "" if plan.get("programs") else " by analysis"
        raise UserError(f"plan: {name}{analysed} {by_how_much} ({machine['name']}). {change}")


Changes = Mapping[str, object]
Weigh = Callable[[Planned], Outcome]
"""The training step, compiled or by analysis."""


def try_alternatives(planned: Planned, weigh: Weigh, train: Outcome, *, seconds: float) -> list[Alternative]:
    """Weigh alternatives to the step `train`, as long as the next one is likely to end within `seconds`."""
    start, longest = time.perf_counter(), train.get("compile_seconds", 0.0)
    weighed: list[Alternative] = []
    for changes in _saving(planned) if not train["fits"] else _spending(planned):
        if time.perf_counter() - start + longest > seconds:
            say("plan", f"no time left for alternatives (--seconds {seconds:g})")
            break
        if each := _try(planned, weigh, changes):
            weighed.append(each)
            longest = max(longest, each.get("compile_seconds", 0.0))
            if each["fits"] and not train["fits"] and len([one for one in weighed if one["fits"]]) == 2:
                break
    return weighed


def _try(planned: Planned, weigh: Weigh, changes: Changes) -> Alternative | None:
    """One alternative; None where it cannot be, such as a mesh that does not go with the machine."""
    change = " ".join(f"--{key} {value}" for key, value in changes.items())
    try:
        say("plan", f"tries the training step with {change}")
        outcome = weigh(planned.but(changes))
    except UserError:
        return None
    tried: Alternative = {"change": change, "fits": outcome["fits"], "needs": outcome["needs"], "has": outcome["has"]}
    return tried if "compile_seconds" not in outcome else {**tried, "compile_seconds": outcome["compile_seconds"]}


def _micro(planned: Planned) -> int:
    return planned.config.train.micro_batch_pairs or planned.config.train.batch_pairs


def _spending(planned: Planned) -> Iterator[Changes]:
    """Settings that may be faster, and take more memory."""
    config, micro = planned.config, _micro(planned)
    for remat in {"full": ("dots", "none"), "dots": ("none",), "none": ()}[config.model.remat]:
        yield {"model.remat": remat}
    if config.train.batch_pairs % (2 * micro) == 0:
        yield {"train.micro_batch_pairs": 2 * micro}
    for factor in (2, 0.5):
        yield {"tiles.tokens": max(1, int(config.tiles.tokens * factor))}


def _saving(planned: Planned) -> Iterator[Changes]:
    """Settings that take less memory, the cheapest first."""
    config, micro = planned.config, _micro(planned)
    smaller = [
        micro // 2**n for n in range(1, 8) if micro % 2**n == 0 and micro // 2**n * 2 > planned.row_multiple // 2
    ]
    saving = {"none": ("dots", "full"), "dots": ("full",), "full": ()}[config.model.remat]
    for remat in saving:
        yield {"model.remat": remat}
    for pairs in smaller[:1]:
        yield {"train.micro_batch_pairs": pairs}
    yield {"tiles.tokens": max(1, config.tiles.tokens // 2), "tiles.vocabulary": max(1, config.tiles.vocabulary // 2)}
    for pairs in smaller if saving else smaller[1:]:
        yield {"model.remat": "full", "train.micro_batch_pairs": pairs}
    for axis in ("tensor", "sequence"):
        for size in (2, 4):
            yield {"model.remat": "full", f"mesh.{axis}": getattr(config.mesh, axis) * size, "mesh.fsdp": -1}


def try_micro_batches(planned: Planned, data: DataRows, *, full: bool) -> dict[str, Any]:
    """The largest micro-batch that fits, by bisection over those that divide the batch, and multiples of the batch."""
    whole = planned.config.train.batch_pairs
    sizes = [pairs for pairs in range(1, whole + 1) if whole % pairs == 0] + [whole * 2**n for n in range(1, 5)]
    tried: dict[int, Alternative | None] = {}

    def fits(pairs: int) -> bool:
        changes = {"train.micro_batch_pairs": pairs} | ({"train.batch_pairs": pairs} if pairs > whole else {})
        rows = data if len(data.rows) >= pairs else data._replace(rows=[data.rows[0]] * pairs)
        weigh = lambda other: other.measure(other.train_call(rows), full=full)  # noqa: E731
        tried[pairs] = step = _try(planned, weigh, changes)
        return step is not None and step["fits"]

    low, high = -1, len(sizes)  # the largest known to fit, the smallest known not to
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(sizes[middle]) else (low, middle)
    return {
        "largest": sizes[low] if low >= 0 else None,
        "tried": [
            {"micro_batch_pairs": pairs, **(tried[pairs] or {"fits": False, "needs": None})} for pairs in sorted(tried)
        ],
    }
