"""Other settings: what fits where the asked ones do not, and what else would fit where they do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dpo_jax.data.rows import DataRows
from dpo_jax.errors import UserError
from dpo_jax.experiments.planned import Planned
from dpo_jax.planning.outcomes import Alternative, Outcome
from dpo_jax.runtime.progress import say

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
