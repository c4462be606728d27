"""What a machine that is not here would need for an experiment: the real programs, compiled ahead of time.

It reads the configuration, and the data if that is here; it writes nothing but the file of `--json`.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import jax
import numpy as np

from dpo_jax.data.tokens import sizes_of
from dpo_jax.errors import UserError
from dpo_jax.experiments.losses import is_unpaired
from dpo_jax.experiments.plan_alternatives import try_alternatives, try_micro_batches
from dpo_jax.experiments.planned import Lengths, Planned, analyse_train, find_lengths, reference_call, train_call
from dpo_jax.experiments.texts import TextExperiment
from dpo_jax.files import write_json
from dpo_jax.models.costs import forward_flops, matmul_parameters, pair_flops
from dpo_jax.planning.outcomes import Outcome, Plan
from dpo_jax.planning.tables import gib, show
from dpo_jax.planning.topologies import open_machine
from dpo_jax.runtime.progress import say

_MFU, _SECONDS = 0.4, 180.0


def run(
    experiment: TextExperiment,
    *,
    topology: str | None,
    json: str | None,
    mfu: str | None,
    seconds: str | None,
    search: bool,
    full: bool,
) -> None:
    """Print the plan, and write it to `json`.

    Raises:
        UserError: the experiment does not fit; what would is said. The plan is printed before.
    """
    if topology is None:
        raise UserError("command line: plan: name the machine, such as --topology v5e:16x16.")
    share, limit = _number("mfu", mfu, _MFU, 1.0), _number("seconds", seconds, _SECONDS, float("inf"))
    jax.config.update("jax_platforms", "cpu")  # the devices of this machine are left alone
    try:
        machine = open_machine(topology)
    except ValueError as error:
        raise UserError(f"command line: --topology {error}") from None
    with tempfile.TemporaryDirectory() as scratch:
        config = dataclasses.replace(experiment.config, workdir=scratch)
        planned = Planned(config, experiment.origins, command=experiment.command, machine=machine)
        lengths = find_lengths(planned)
        plan = _analysed(planned, lengths, share)
        compiles = machine.devices is not None
        if compiles:
            plan["programs"] = _programs(planned, lengths, full=full)
            train = plan["programs"]["train"]
            compiled = lambda other: other.measure(train_call(other, lengths.data), full=full)  # noqa: E731
            plan["alternatives"] = try_alternatives(planned, compiled, train, seconds=limit)
            if search:
                plan["search"] = try_micro_batches(planned, lengths.data, full=full)
        else:
            analysed = lambda other: analyse_train(other, lengths.data)  # noqa: E731
            plan["alternatives"] = try_alternatives(planned, analysed, plan["analysis"], seconds=limit)
        if search and not compiles:
            say("plan", f"--search compiles, and here that cannot be done: {machine.why_not}")
    show(plan)
    if json:
        write_json(Path(json), plan)
    _refuse_too_large(plan)


def _number(flag: str, text: str | None, default: float, most: float) -> float:
    try:
        value = default if text is None else float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= most or (flag == "mfu" and value == 0):
        wanted = "a share of the peak, such as 0.4" if flag == "mfu" else "a number of seconds, such as 180"
        raise UserError(f"command line: --{flag} {text!r}: {wanted}, is wanted.")
    return value


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
        "analysis": analyse_train(planned, lengths.data),
        "alternatives": [],
    }


def _programs(planned: Planned, lengths: Lengths, *, full: bool) -> dict[str, Outcome]:
    """The two programs, compiled: those that `reference` and `train` call."""
    programs = {}
    if planned.reads_store:
        say("plan", "compiles the reference pass")
        programs["reference"] = planned.measure(reference_call(planned, lengths.data), full=full)
    say("plan", "compiles the training step")
    programs["train"] = planned.measure(train_call(planned, lengths.data), full=full)
    return programs


def _refuse_too_large(plan: Plan) -> None:
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
