"""The store of reference log-probs: Orbax arrays in shards of rows, a manifest, digests of every file.

A shard is there when the manifest names it, and the manifest is replaced in one move: a killed pass loses the shard in
flight and nothing else.

Dimension key: n rows, P slot in the pair.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dpo_jax.errors import UserError
from dpo_jax.files import digest_folder, read_json, write_json
from dpo_jax.reference.fingerprint import Fingerprint, differences

_FORMAT = 2


class Scores(NamedTuple):
    """What the reference says of rows, [n, P] each."""

    logps_nP: np.ndarray  # float32, summed log-probs, nats
    tokens_nP: np.ndarray  # int32, token counts
    heads_nP: np.ndarray  # float32, sums over as many tokens as the shortest response of the row has (LD-DPO), nats


class Store:
    """One store: one frozen model, one set of rows."""

    def __init__(self, folder: Path, fingerprint: Fingerprint):
        """Opens the store or begins it.

        Raises:
            UserError: the folder holds a store of something else (the fields that differ are named) or a damaged one.
        """
        self.folder = folder
        self._manifest: dict[str, Any] = {"format": _FORMAT, "fingerprint": fingerprint, "shards": []}
        self._rows: dict[str, tuple[int, int]] = {}  # row id -> (shard, row in the shard)
        self._shards: list[Scores] = []
        if (folder / "manifest.json").exists():
            self._open(fingerprint)

    def __len__(self) -> int:
        """How many different rows are stored."""
        return len(self._rows)

    def _open(self, fingerprint: Fingerprint) -> None:
        manifest = read_json(self.folder / "manifest.json")
        if manifest.get("format") != _FORMAT:
            raise UserError(f"{self.folder}: store format {manifest.get('format')!r}; this version reads {_FORMAT}.")
        different = differences(manifest["fingerprint"], fingerprint)
        if different:
            raise UserError(
                f"{self.folder}: this reference store was made from something else:\n  "
                + "\n  ".join(different)
                + "\nUndo the change, or delete the folder, or name another with `--reference.store FOLDER`."
            )
        self._manifest = manifest
        for shard in manifest["shards"]:
            self._add(*self._read(shard))

    def _read(self, shard: dict[str, Any]) -> tuple[list[str], Scores]:
        import orbax.checkpoint as ocp

        target = self.folder / shard["name"]
        found = digest_folder(target)
        damaged = sorted(
            name for name in found.keys() | shard["digests"].keys() if found.get(name) != shard["digests"].get(name)
        )
        if damaged:
            raise UserError(
                f"{target}: the reference store is damaged: {damaged[0]} is not as it was written. "
                f"Delete {self.folder} and run `dpo-jax reference` again."
            )
        n, slots = shard["rows"], shard["slots"]
        like = {
            "row_id": np.zeros((n, 16), np.uint8),
            "logps": np.zeros((n, slots), np.float32),
            "tokens": np.zeros((n, slots), np.int32),
            "heads": np.zeros((n, slots), np.float32),
        }
        with ocp.StandardCheckpointer() as reader:
            arrays = reader.restore(target.absolute(), like)
        row_ids = [bytes(row).hex() for row in arrays["row_id"]]
        return row_ids, Scores(*(np.asarray(arrays[name]) for name in ("logps", "tokens", "heads")))

    def _add(self, row_ids: Sequence[str], scores: Scores) -> None:
        shard = len(self._shards)
        self._shards.append(scores)
        self._rows.update({row_id: (shard, row) for row, row_id in enumerate(row_ids)})

    def missing(self, row_ids: Sequence[str]) -> list[int]:
        """Which of these rows are not stored: their indices, a repeated row only once."""
        first = {row_id: index for index, row_id in reversed(list(enumerate(row_ids)))}
        return sorted(index for row_id, index in first.items() if row_id not in self._rows)

    def append(self, row_ids: Sequence[str], scores: Scores) -> None:
        """Writes one shard: the arrays first, then the manifest that names it."""
        import orbax.checkpoint as ocp

        if not np.isfinite(scores.logps_nP).all():
            bad = row_ids[int(np.flatnonzero(~np.isfinite(scores.logps_nP).all(axis=1))[0])]
            raise FloatingPointError(f"the reference's log-prob of row {bad} is not finite; check the weights")
        name = f"shard_{len(self._shards):05d}"
        target = self.folder / name
        if target.exists():  # the manifest does not name it: left by a killed pass
            shutil.rmtree(target)
        arrays = {
            "row_id": np.frombuffer(bytes.fromhex("".join(row_ids)), np.uint8).reshape(len(row_ids), 16),
            "logps": scores.logps_nP.astype(np.float32),
            "tokens": scores.tokens_nP.astype(np.int32),
            "heads": scores.heads_nP.astype(np.float32),
        }
        with ocp.StandardCheckpointer() as writer:
            writer.save(target.absolute(), arrays)
        entry = {
            "name": name,
            "rows": len(row_ids),
            "slots": scores.logps_nP.shape[1],
            "digests": digest_folder(target),
        }
        self._manifest = {**self._manifest, "shards": [*self._manifest["shards"], entry]}
        write_json(self.folder / "manifest.json", self._manifest)
        self._add(row_ids, scores)

    def lookup(self, row_ids: Sequence[str]) -> Scores:
        """The scores of these rows, in their order.

        Raises:
            UserError: some are not stored; says how many.
        """
        missing = sum(row_id not in self._rows for row_id in row_ids)
        if missing:
            raise UserError(
                f"{self.folder}: {missing} of {len(row_ids)} rows are missing; "
                "`dpo-jax reference` goes on where it stopped."
            )
        found = [self._rows[row_id] for row_id in row_ids]
        return Scores(*(np.stack([self._shards[shard][field][row] for shard, row in found]) for field in range(3)))
