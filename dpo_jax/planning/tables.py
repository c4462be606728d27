"""A plan as tables on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from dpo_jax.planning.outcomes import Alternative, Outcome, Plan

_LABELS = {
    "parameters": "parameters",
    "optimizer": "optimizer",
    "frozen": "frozen reference or base",
    "batch": "batch",
    "gradients": "gradients",
    "gathered": "gathered parameters",
    "activations": "activations and workspace",
    "outputs": "results",
    "code": "program",
}


def gib(size: float | None) -> str:
    """A number of bytes in GiB, or in MiB where that says more."""
    if size is None:
        return "?"
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:,.2f} MiB"


def show(plan: Plan) -> None:
    """Print the plan to standard output."""
    console = Console(highlight=False, soft_wrap=True)
    model, machine, lengths = plan["model"], plan["machine"], plan["lengths"]
    settings, mesh = plan["settings"], " x ".join(f"{name} {size}" for name, size in plan["mesh"].items())
    trained = "" if model["trained"] == model["parameters"] else f", {model['trained']:,} of them trained"
    console.print(
        f"{model['weights']}: {model['parameters']:,} parameters{trained}; architecture: {model['architecture']}\n"
        f"{machine['name']}: {machine['chips']} x {machine['chip']}, {gib(machine['capacity'])} and "
        f"{machine['peak_flops'] / 1e12:.0f} TFLOP/s each; mesh {mesh}\n"
        f"step: {settings['batch_pairs']} pairs, {settings['micro_batch_pairs']} at once, layout {settings['layout']}, "
        f"remat {settings['remat']}, {settings['dtype']}\n"
        f"rows: {lengths['origin']}",
        markup=False,
    )
    programs = plan.get("programs", {})
    for name, program in programs.items():
        shape = " x ".join(map(str, program["rows"]["shape"]))
        console.print(f"{name}: rows {shape}, {program['rows']['scored']} scored places a row", markup=False)
    if machine["why_not_compiled"]:
        console.print(f"Not compiled: {machine['why_not_compiled']}. All figures are by analysis.", markup=False)
    columns = {f"{name}, compiled": program for name, program in programs.items()}
    console.print(_bytes_table({**columns, "train, by analysis": plan["analysis"]}))
    for name, program in programs.items():
        if program.get("collectives"):
            console.print(_collectives_table(name, program))
        if program.get("buffers"):
            console.print(_buffers_table(name, program))
    console.print(_work_table(plan))
    if plan["alternatives"]:
        console.print(_alternatives_table(plan["alternatives"], "compiled" if programs else "by analysis"))
    _say_what_fits(console, plan)


def _bytes_table(columns: dict[str, Outcome]) -> Table:
    table = Table("of each chip", title="Memory", title_justify="left")
    for name in columns:
        table.add_column(name, justify="right")
    for key, label in _LABELS.items():
        sizes = [column["bytes"].get(key) for column in columns.values()]
        if any(sizes):
            table.add_row(label, *("" if size is None else gib(size) for size in sizes))
    table.add_section()
    table.add_row("peak", *(gib(column["needs"]) for column in columns.values()))
    table.add_row("capacity", *(gib(column["has"]) for column in columns.values()))
    words = [
        "yes" if column["fits"] else f"no, {gib(column['needs'] - column['has'])} too much" if column["needs"] else "no"
        for column in columns.values()
    ]
    table.add_row("fits", *words)
    return table


def _collectives_table(name: str, program: Outcome) -> Table:
    unknown = program.get("collectives_in_unknown_loops")
    note = f"; {unknown} stand in loops of unknown turns and count once" if unknown else ""
    title = f"Collectives of one run of {name} (loops counted by their turns{note})"
    table = Table("kind", "chips in a group", "times", "each chip sends", title=title, title_justify="left")
    for each in program.get("collectives", ()):
        table.add_row(each["kind"], str(each["chips"]), f"{each['times']:,}", gib(each["bytes"]))
    return table


def _buffers_table(name: str, program: Outcome) -> Table:
    table = Table("array", "bytes", "where", title=f"Largest arrays of {name} on a chip", title_justify="left")
    for each in program.get("buffers", ()):
        table.add_row(each["shape"], gib(each["bytes"]), each["label"].replace("\\'", "'")[-90:])
    return table


def _work_table(plan: Plan) -> Table:
    lengths, work, settings, machine = plan["lengths"], plan["work"], plan["settings"], plan["machine"]
    table = Table("work", "", title="By arithmetic", title_justify="left")
    table.add_row("tokens of a pair through the layers", f"{lengths['trunk_tokens']:,.0f}")
    table.add_row("tokens of its responses", f"{lengths['response_tokens']:,.0f}")
    table.add_row("FLOPs of a pair, training", f"{work['train_flops_per_pair']:.3e}")
    table.add_row("FLOPs of a pair, reference pass", f"{work['reference_flops_per_pair']:.3e}")
    table.add_row("pairs in a step", f"{settings['batch_pairs']:,}")
    table.add_row(f"seconds of a step at MFU {work['mfu']:.0%}", f"{work['seconds_per_step']:.3g}")
    table.add_row("pairs per second then", f"{work['pairs_per_second']:,.4g}")
    table.add_row("and per chip", f"{work['pairs_per_second'] / machine['chips']:.3g}")
    return table


def _alternatives_table(alternatives: list[Alternative], how: str) -> Table:
    table = Table("training step with", "peak", "fits", title=f"Alternatives, {how}", title_justify="left")
    for each in alternatives:
        table.add_row(each["change"], gib(each["needs"]), "yes" if each["fits"] else "no")
    return table


def _say_what_fits(console: Console, plan: Plan) -> None:
    programs = plan.get("programs")
    if programs and programs["train"]["fits"]:
        better = [each for each in plan["alternatives"] if each["fits"] and "tiles" not in each["change"]]
        tiles = [each for each in plan["alternatives"] if "tiles" in each["change"]]
        if better:
            listed = " or ".join(f"{each['change']} ({gib(each['needs'])})" for each in better)
            console.print(f"Also fits, with less to compute or to gather again: {listed}.", markup=False)
        if tiles:
            listed = ", ".join(f"{each['change']} {gib(each['needs'])}" for each in tiles)
            console.print(f"Tiles of logits: {listed}; {gib(programs['train']['needs'])} as they are.", markup=False)
    if search := plan.get("search"):
        largest = search["largest"]
        says = f"The largest micro-batch that fits: {largest} pairs" if largest else "No micro-batch fits"
        console.print(f"{says} ({len(search['tried'])} compiled).", markup=False)
