"""The plan of an experiment for a machine that is not here: the real programs, compiled ahead of time."""

from __future__ import annotations

import dataclasses
import tempfile

import jax
import numpy as np

from dpo_jax.config import Config
from dpo_jax.data.tokens import sizes_of
from dpo_jax.errors import UserError
from dpo_jax.experiments.losses import is_unpaired
from dpo_jax.experiments.plan_alternatives import try_alternatives, try_micro_batches
from dpo_jax.experiments.planned import Lengths, Planned
from dpo_jax.models.costs import forward_flops, matmul_parameters, pair_flops
from dpo_jax.planning.outcomes import Outcome, Plan
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
    shared, slots = config.data.layout == "shared", slice(1) if is_unpaired(config.loss) else slice(None)
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
