"""The needs of an experiment on a machine that is not here.

It reads the configuration, and the data if that is here; it writes nothing but the file of `--json`.
"""

from __future__ import annotations

from dpo_jax.errors import UserError
from dpo_jax.experiments.plan import Asked, make_plan, refuse_too_large
from dpo_jax.experiments.texts import TextExperiment
from dpo_jax.files import named_output, write_json
from dpo_jax.planning.tables import show

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
    output = json and named_output("--json", json)
    asked = Asked(share=share, seconds=limit, search=search, full=full)
    plan = make_plan(experiment.config, experiment.origins, topology, asked, command=experiment.command)
    show(plan)
    if output:
        write_json(output, plan)
    refuse_too_large(plan)


def _number(flag: str, text: str | None, default: float, most: float) -> float:
    try:
        value = default if text is None else float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= most or (flag == "mfu" and value == 0):
        wanted = "a share of the peak, such as 0.4" if flag == "mfu" else "a number of seconds, such as 180"
        raise UserError(f"command line: --{flag} {text!r}: {wanted}, is wanted.")
    return value
