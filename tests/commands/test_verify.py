"""Verification while a run is at work: its locks are told, and are no damage."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import pytest

from dpo_jax.commands.verify import verify
from dpo_jax.errors import UserError
from dpo_jax.files import write_sealed
from dpo_jax.locks import Lock, beside, held, inside
from dpo_jax.runs.verify import examine


def findings(root: Path) -> list[tuple[str, str]]:
    return [(each.state, each.what) for each in examine(root)]


def test_a_folder_in_use_is_told_with_its_store_and_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    store = tmp_path / "stores" / "a"
    write_sealed(store / "manifest.json", {"format": 2, "fingerprint": {}, "shards": []})
    (tmp_path / "history.json").write_text("[]")
    places = [inside(tmp_path), inside(store), beside(store / "used_by.json"), beside(tmp_path / "export")]
    with contextlib.ExitStack() as all_of_them:
        for place in places:
            all_of_them.enter_context(held(Lock(place, "dpo-jax train mine.yaml")))
        verify(tmp_path)
    said = capsys.readouterr().out.splitlines()
    assert sorted(line.split()[0] for line in said) == ["good", "good", "warn", "warn", "warn", "warn"]
    assert sum(f"in use by process {os.getpid()} on host" in line for line in said) == 4
    assert any(f"warn  {tmp_path}: in use" in line and "(dpo-jax train mine.yaml)" in line for line in said)
    assert findings(tmp_path) == [("good", str(tmp_path / "history.json")), ("good", str(store))]


def test_the_lock_of_a_killed_process_is_left(tmp_path: Path):
    lock = Lock(inside(tmp_path))
    inside(tmp_path).write_text(json.dumps(lock._own._replace(started="1")._asdict()))
    assert findings(tmp_path) == [("left", str(inside(tmp_path)))]
    with pytest.raises(UserError, match="nothing else of a run"):
        verify(tmp_path)
