"""Rows and their labels: ids, which depend on them too, labelled completions, pairs taken apart, labels flipped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dpo_jax import files
from dpo_jax.types import PreferencePair, Text, UnpairedCompletion

TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")


def row_id_of(content: Mapping[str, Any], brings: Mapping[str, Any]) -> str:
    """A digest of all that decides log-probs; margin, weight and soft label do not."""
    formats = {name: brings[name] for name in TEMPLATE_COLUMNS if brings.get(name) is not None}
    return files.digest(json.dumps({**content, **formats}, sort_keys=True, separators=(",", ":")).encode())


def labelled(
    prompt: Text, completion: Text, *, desirable: bool, where: str, mismatched: Text | None = None, **brings: Any
) -> UnpairedCompletion:
    """A labelled completion and its id."""
    row = UnpairedCompletion("", prompt, completion, desirable, None, where, **brings)
    return with_partner(row, mismatched)


def with_partner(row: UnpairedCompletion, mismatched: Text | None) -> UnpairedCompletion:
    """The row with this mismatched completion and the id of all: its log-probs in a store are of both completions."""
    content = {"prompt": row.prompt, "completion": row.completion, "label": row.desirable}
    if mismatched is not None:
        content["mismatched"] = mismatched
    return row._replace(row_id=row_id_of(content, row._asdict()), mismatched=mismatched)


def halves(pair: PreferencePair) -> tuple[UnpairedCompletion, UnpairedCompletion]:
    """A pair as two completions: chosen desirable, rejected undesirable. Margin and soft label are left behind."""
    brings = {name: pair._asdict()[name] for name in (*TEMPLATE_COLUMNS, "weight", "source")}
    return (
        labelled(pair.prompt, pair.chosen, desirable=True, where=pair.where, **brings),
        labelled(pair.prompt, pair.rejected, desirable=False, where=pair.where, **brings),
    )


def flipped_pair(pair: PreferencePair) -> PreferencePair:
    """The same with the wrong label: chosen and rejected have changed places, and what is said of them has not."""
    row_id = row_id_of({"prompt": pair.prompt, "chosen": pair.rejected, "rejected": pair.chosen}, pair._asdict())
    return pair._replace(row_id=row_id, chosen=pair.rejected, rejected=pair.chosen)


def flipped_label(row: UnpairedCompletion) -> UnpairedCompletion:
    """The same with the wrong label."""
    return with_partner(row._replace(desirable=not row.desirable), row.mismatched)
