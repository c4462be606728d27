"""The store of what the reference says of rows, log-probs or denoising errors.

Orbax arrays in shards of rows, a manifest, digests of every file.

A shard is there when the manifest names it, and the manifest is replaced in one move: a killed pass loses the shard in
flight and nothing else.

Dimension key: n rows, P slot in the pair, K draws.
"""

from __future__ import annotations

import shutil
from functools import cached_property
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import jax
import numpy as np

from dpo_jax import locks
from dpo_jax.errors import UserError
from dpo_jax.files import Json, changed, digest_folder, read_json, read_sealed, write_json, write_sealed
from dpo_jax.meeting import meet
from dpo_jax.reference.fingerprint import Fingerprint, RowIds, RowIndex, as_ids, differences

_FORMAT = 2
_USERS = "used_by.json"


class Scores(NamedTuple):
    """Response log-probs of rows under the reference, [n, P] each."""

    logps_nP: np.ndarray  # float32, summed log-probs, nats
    tokens_nP: np.ndarray  # int32, token counts
    heads_nP: np.ndarray  # float32, sums over as many tokens as the shortest response of the row has (LD-DPO), nats


class Errors(NamedTuple):
    """Denoising errors of rows under the reference of a diffusion model, float32 [n, K P], draw after draw."""

    errors_nP: np.ndarray


Kind = TypeVar("Kind", Scores, Errors)
_WHOLE_NUMBERS = ("tokens",)


class OtherStore(ValueError):
    """A store of another model, or of other rows."""


class Store(Generic[Kind]):
    """One store: one frozen model, one set of rows."""

    def __init__(self, folder: Path, fingerprint: Fingerprint, kind: type[Kind] = Scores):
        """Open the store or begin it; `kind` is what it holds.

        Raises:
            OtherStore: the folder holds a store of something else; the fields that differ are named.
            UserError: it is damaged, or of another version.
        """
        self.folder = folder
        self._again = f"Delete {folder} and score its rows again."
        self._kind = kind
        self._names = [field.partition("_")[0] for field in kind._fields]
        self._manifest: Json = {"format": _FORMAT, "fingerprint": fingerprint, "shards": []}
        self._shards: list[tuple[np.ndarray, Kind]] = []
        if (folder / "manifest.json").exists():
            self._open(fingerprint)

    def __len__(self) -> int:
        """The number of different rows that are stored."""
        return len(self._index)

    @cached_property
    def _index(self) -> RowIndex:
        return RowIndex(np.concatenate([ids for ids, _ in self._shards] or [as_ids([])]))

    @cached_property
    def _scores(self) -> Kind:
        return self._kind(
            *(np.concatenate(arrays) for arrays in zip(*(scores for _, scores in self._shards), strict=True))
        )

    def _open(self, fingerprint: Fingerprint) -> None:
        try:
            manifest = read_sealed(self.folder / "manifest.json", *self._manifest)
        except UserError as error:
            raise UserError(f"{error} {self._again}") from None
        if manifest["format"] != _FORMAT:
            raise UserError(f"{self.folder}: store format {manifest.get('format')!r}; this version reads {_FORMAT}.")
        if different := differences(manifest["fingerprint"], fingerprint):
            listed = "\n  ".join(different)
            raise OtherStore(f"{self.folder}: this reference store was made from something else:\n  {listed}")
        self._manifest = manifest
        self._shards += [self._read(shard) for shard in manifest["shards"][len(self._shards) :]]
        self._forget_derived()

    def _read(self, shard: Json) -> tuple[np.ndarray, Kind]:
        import orbax.checkpoint as ocp

        target = self.folder / shard["name"]
        if damaged := changed(target, shard["digests"]):
            raise UserError(
                f"{target}: the reference store is damaged: {damaged[0]} is not as it was written. {self._again}"
            )
        n, slots = shard["rows"], shard["slots"]
        like = {"row_id": np.zeros((n, 16), np.uint8)}
        like |= {name: np.zeros((n, slots), _dtype(name)) for name in self._names}
        with ocp.StandardCheckpointer() as reader:
            arrays = reader.restore(target.absolute(), like)
        return np.asarray(arrays["row_id"]), self._kind(*(np.asarray(arrays[name]) for name in self._names))

    def read_on(self) -> None:
        """Read what another process has written into the store since it was opened."""
        if (self.folder / "manifest.json").exists():
            self._open(self._manifest["fingerprint"])

    def serves(self, workdir: str) -> None:
        """Note that a run reads this store, for `listing`."""
        path = self.folder / _USERS
        if jax.process_index() or (path.exists() and workdir in read_json(path)):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with locks.held(locks.Lock(locks.beside(path), waits=True)):
            users = read_json(path) if path.exists() else []
            write_json(path, [*users, workdir])

    def missing(self, row_ids: RowIds) -> np.ndarray:
        """Which of these rows are not stored: their indices in order, a repeated row only once."""
        ids = as_ids(row_ids)
        absent = np.flatnonzero(self._index.find(ids) < 0)
        return absent[RowIndex(ids[absent]).first]

    def append(self, row_ids: RowIds, scores: Kind) -> None:
        """Write one shard: the arrays first, then the manifest that names it."""
        import orbax.checkpoint as ocp

        ids = as_ids(row_ids)
        values_nP = scores[0]
        if not np.isfinite(values_nP).all():
            bad = ids[int(np.flatnonzero(~np.isfinite(values_nP).all(axis=1))[0])].tobytes().hex()
            what = {"logps": "log-prob", "errors": "error"}[self._names[0]]
            raise FloatingPointError(f"the reference's {what} of row {bad} is not finite; check the weights")
        name = f"shard_{len(self._shards):05d}"
        target = self.folder / name
        if target.exists() and jax.process_index() == 0:  # the manifest does not name it: left by a killed pass
            shutil.rmtree(target)
        meet(f"room for {name}")
        arrays = {
            name: np.asarray(values).astype(_dtype(name)) for name, values in zip(self._names, scores, strict=True)
        }
        with ocp.StandardCheckpointer() as writer:
            writer.save(target.absolute(), {"row_id": ids, **arrays})
        meet(f"{name} written")
        entry = {
            "name": name,
            "rows": len(ids),
            "slots": values_nP.shape[1],
            "digests": digest_folder(target),
        }
        self._manifest = {**self._manifest, "shards": [*self._manifest["shards"], entry]}
        write_sealed(self.folder / "manifest.json", self._manifest)
        self._shards.append((ids, self._kind(*arrays.values())))
        self._forget_derived()

    def _forget_derived(self) -> None:
        for derived in ("_index", "_scores"):
            self.__dict__.pop(derived, None)

    def lookup(self, row_ids: RowIds) -> Kind:
        """The scores of these rows, in their order.

        Raises:
            UserError: some are not stored; says how many.
        """
        places = self._index.find(as_ids(row_ids))
        if missing := int((places < 0).sum()):
            raise UserError(f"{self.folder}: {missing} of {len(places)} rows are missing; score them first.")
        return self._kind(*(array[places] for array in self._scores))


def _dtype(name: str) -> type:
    return np.int32 if name in _WHOLE_NUMBERS else np.float32


class Listed(NamedTuple):
    """A store as it lies on disk."""

    folder: Path
    rows: int
    fingerprint: Fingerprint
    used_by: list[str]  # working directories


def listing(root: Path) -> list[Listed]:
    """The stores at `root` or below."""
    stores = []
    for path in sorted(root.rglob("manifest.json")):
        manifest = read_json(path)
        if isinstance(manifest, dict) and "fingerprint" in manifest and "shards" in manifest:
            users = path.with_name(_USERS)
            rows = sum(shard["rows"] for shard in manifest["shards"])
            used_by = read_json(users) if users.exists() else []
            stores.append(Listed(path.parent, rows, manifest["fingerprint"], used_by))
    return stores
