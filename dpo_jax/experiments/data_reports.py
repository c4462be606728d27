"""The data looked at before anything is trained: what was read, cut and left out, and what is odd about the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from dpo_jax.data.check import PERCENTILES, Findings, Overlap, Split, check_rows, overlap
from dpo_jax.data.rows import DataRows
from dpo_jax.files import write_json
from dpo_jax.reporting.data import Example, Piece, SplitReport
from dpo_jax.runs.run import Run
from dpo_jax.runtime.progress import say
from dpo_jax.types import TokenRow

_EXAMPLES = 3
_BIASED = 0.1
"""How far from even the share of pairs with the longer one chosen may be before it is called odd."""


def reports_of(tokenizer: Any, train: DataRows, held_out: DataRows | None) -> list[SplitReport]:
    """One report for each split."""
    own = _split(tokenizer, train)
    reports = [_report(tokenizer, "data.train", train, own.findings, None)]
    if held_out is not None:
        other = _split(tokenizer, held_out)
        reports.append(_report(tokenizer, "data.eval", held_out, other.findings, overlap(own, other)))
    return reports


def keep(workdir: Path, reports: Sequence[SplitReport]) -> None:
    """Writes WORKDIR/data.json, without the examples: those are the data themselves."""
    write_json(Run(workdir).data, [{**report._asdict(), "examples": [], "pictures": []} for report in reports])


def warn(reports: Sequence[SplitReport]) -> None:
    """Says the odd facts alone."""
    odd = [(report.name, what, count) for report in reports for what, count, is_odd in report.facts if is_odd]
    for name, what, count in odd:
        say("data", f"{name}: {count} {what}")
    if odd:
        say("data", "`dpo-jax check-data` shows these and the rest, with examples")


def _split(tokenizer: Any, data: DataRows) -> Split:
    return check_rows(data.rows, eos=tokenizer.eos_token_id, bos=tokenizer.bos_token_id, desirable=data.desirable)


def _report(tokenizer: Any, name: str, data: DataRows, findings: Findings, shared: Overlap | None) -> SplitReport:
    facts = [("rows kept", f"{findings.rows:,}", False)]
    facts += [(f"rows left out: {reason}", f"{count:,}", True) for reason, count in data.skipped.items()]
    counted = {
        "prompts truncated, their end kept": data.counts.prompts_truncated,
        "responses truncated, their start kept": data.counts.responses_truncated,
        "rows with special tokens, read as text": data.counts.special_tokens_as_text,
        "over-long rows dropped": data.counts.long_rows_dropped,
        "pairs identical in what truncation left": data.counts.identical_responses,
        "pairs nearly identical": findings.nearly_identical,
        "responses that do not end with EOS": findings.responses_without_eos,
        "prompts that begin with BOS twice": findings.prompts_with_two_bos,
        "rows that stand there twice": findings.repeated,
        "pairs labelled both ways": findings.both_orders,
    }
    if shared is not None:
        counted |= {"rows that are also in data.train": shared.rows, "prompts also in data.train": shared.prompts}
    facts += [(what, f"{count:,}", bool(count > 0)) for what, count in counted.items()]
    if findings.longer_chosen is not None:
        odd = abs(findings.longer_chosen - 0.5) > _BIASED
        facts.append(("of the pairs have the longer response chosen", f"{findings.longer_chosen:.0%}", odd))
    picks = np.linspace(0, len(data.rows) - 1, min(_EXAMPLES, len(data.rows))).astype(int)
    names = tuple(findings.lengths)[1:]
    examples = [_example(tokenizer.decode, data.rows[pick], names) for pick in picks]
    return SplitReport(name, facts, PERCENTILES, findings.lengths, examples)


def _example(decode: Callable[[Any], str], row: TokenRow, names: tuple[str, ...]) -> Example:
    responses = []
    for slot, name in enumerate(names):
        response = row.responses[slot]
        scored = np.ones(len(response), bool) if row.masks is None else row.masks[slot]
        cuts = [0, *(np.flatnonzero(np.diff(scored)) + 1).tolist(), len(response)]
        pieces = [Piece(decode(row.prompt), "prompt")]
        for start, end in pairwise(cuts):
            pieces.append(Piece(decode(response[start:end]), "scored" if scored[start] else "unscored"))
        responses.append((name, pieces))
    return Example(row.row_id, responses)
