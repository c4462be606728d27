"""Checkpoints: exact, sealed, digested, on another mesh, and never half."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.errors import UserError
from dpo_jax.mesh import make_mesh, named_sharding, replicated
from dpo_jax.training import checkpoint
from dpo_jax.training.checkpoint import Checkpoints
from dpo_jax.training.finite import NotFinite, first_not_finite
from dpo_jax.training.state import TrainState


class Pair(NamedTuple):
    first: jax.Array
    second: jax.Array


def state(number: float, mesh=None) -> TrainState:
    mesh = mesh or make_mesh(fsdp=8)
    matrix = named_sharding(mesh, ("embed", "mlp"), (8, 4))
    array = jax.device_put(jnp.arange(32, dtype=jnp.float32).reshape(8, 4) + number, matrix)
    whole = replicated(mesh)
    return TrainState(
        step=jax.device_put(jnp.asarray(int(number), jnp.int32), whole),
        params={"layer": {"w": array}},
        optimizer=(jax.device_put(array * 2, matrix), ()),
        key=jax.device_put(jax.random.key_data(jax.random.key(int(number))), whole),
        # a loss that remembers, one that does not, and one that remembers two things
        loss_state=(
            {"state": jax.device_put(jnp.float32(number), whole)},
            {},
            {"a": Pair(*jax.device_put((1.5, number), whole))},
        ),
        frozen={"layer": {"w": jax.device_put(array - 7, matrix)}},
        skipped=jax.device_put(jnp.asarray(2, jnp.int32), whole),
    )


def like(wanted: TrainState):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), wanted)


def saved(folder: Path, *steps: int, keep: int = 2) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep=keep)
    for step in steps:
        checkpoints.save(step, state(step), {"note": step})
    checkpoints.wait()
    return checkpoints


def assert_same(ours: TrainState, wanted: TrainState) -> None:
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.sharding == b.sharding and a.dtype == b.dtype


def test_restores_bit_for_bit_where_it_lay(tmp_path: Path):
    checkpoints = saved(tmp_path, 3)
    assert checkpoints.latest() == 3 and checkpoints.record(3) == {"note": 3}
    assert_same(checkpoints.restore(3, like(state(0))), state(3))


def test_restores_onto_another_mesh_and_the_parameters_alone(tmp_path: Path):
    saved(tmp_path, 3)
    elsewhere = state(3, make_mesh(data=2, fsdp=2, tensor=2))
    assert_same(Checkpoints(tmp_path).restore(3, like(elsewhere)), elsewhere)
    params = Checkpoints(tmp_path).restore_params(3, like(elsewhere).params)
    np.testing.assert_array_equal(params["layer"]["w"], elsewhere.params["layer"]["w"])
    assert_same(Checkpoints(tmp_path).restore_loss_state(3, like(elsewhere).loss_state), elsewhere.loss_state)


def test_a_state_that_remembers_nothing_is_restored_as_such(tmp_path: Path):
    plain = state(4)._replace(loss_state=({}, {}), frozen=None)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(4, plain, {})
    checkpoints.wait()
    restored = checkpoints.restore(4, like(plain))
    assert_same(restored, plain)
    assert restored.loss_state == ({}, {}) == checkpoints.restore_loss_state(4, ({}, {})) and restored.frozen is None


def test_keeps_the_newest(tmp_path: Path):
    assert saved(tmp_path, 1, 2, 3, keep=2).steps() == [2, 3]
    assert not (tmp_path / "1").exists()


def test_a_step_without_its_seal_does_not_count_and_is_written_again(tmp_path: Path):
    checkpoints = saved(tmp_path, 1, 2)
    (tmp_path / "2.json").unlink()  # killed between Orbax's commit and our seal
    assert Checkpoints(tmp_path).latest() == 1
    checkpoints.save(2, state(2), {})
    checkpoints.wait()
    assert checkpoints.latest() == 2


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def test_a_flipped_byte_in_any_file_is_found_and_the_older_step_offered(tmp_path: Path):
    checkpoints = saved(tmp_path, 1, 2)
    for path in files_of(tmp_path / "2"):
        good = path.read_bytes()
        middle = len(good) // 2
        path.write_bytes(good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :])
        with pytest.raises(UserError, match=r"damaged: .*Delete 2 and 2\.json to go on from step 1"):
            checkpoints.restore(2, like(state(0)))
        path.write_bytes(good)
    assert_same(checkpoints.restore(2, like(state(0))), state(2))


def test_a_missing_file_is_found(tmp_path: Path):
    checkpoints = saved(tmp_path, 1)
    files_of(tmp_path / "1")[0].unlink()
    with pytest.raises(UserError, match=r"damaged.*No older step"):
        checkpoints.restore(1, like(state(0)))


def test_another_dtype_or_shape_is_refused_not_cast(tmp_path: Path):
    checkpoints = saved(tmp_path, 1)
    wanted = like(state(0))
    narrow = jax.ShapeDtypeStruct((8, 4), jnp.bfloat16, sharding=wanted.params["layer"]["w"].sharding)
    with pytest.raises(UserError, match=r"float32.*wants bfloat16"):
        checkpoints.restore(1, wanted._replace(params={"layer": {"w": narrow}}))
    with pytest.raises(UserError, match=r"\[8, 4\].*\[4, 4\]"):
        checkpoints.restore_params(1, {"layer": {"w": jax.ShapeDtypeStruct((4, 4), jnp.float32)}})
    with pytest.raises(UserError, match="another model"):
        checkpoints.restore_params(1, {"a": narrow, "b": narrow})


def test_a_folder_that_cannot_be_written_is_said_at_once(tmp_path: Path):
    (tmp_path / "in_the_way").write_text("")
    checkpoints = Checkpoints(tmp_path / "in_the_way")
    with pytest.raises(UserError, match="cannot be written"):
        checkpoints.save(1, state(1), {})


def test_a_save_that_fails_is_said_as_soon_as_it_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    checkpoints = saved(tmp_path, 1)

    def full(path: Path, value: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("dpo_jax.training.checkpoint.write_sealed", full)
    checkpoints.save(2, state(2), {})
    with pytest.raises(UserError, match=r"2: the checkpoint could not be written: No space left on device\. The steps"):
        while True:
            checkpoints.check()  # as the loop does after every step
    checkpoints.check()
    assert checkpoints.latest() == 1


def test_what_is_being_written_is_sealed_by_itself(tmp_path: Path):
    checkpoints = saved(tmp_path, 1)
    checkpoints.save(2, state(2), {})
    checkpoints.settle()
    assert Checkpoints(tmp_path).latest() == 2


def test_what_a_killed_run_left_half_is_swept_away(tmp_path: Path):
    (tmp_path / "7" / "params.orbax-checkpoint-tmp").mkdir(parents=True)
    (tmp_path / "notes").mkdir()
    saved(tmp_path, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "1.json", "notes"]


def harmed(step: int, part: str, value: float) -> TrainState:
    """A state one number of which, on the last device, is not finite."""
    whole = state(step)
    tree = getattr(whole, part)
    leaves = jax.tree.leaves(tree)
    last = max(place for place, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.inexact))
    leaves[last] = leaves[last].at[(-1,) * leaves[last].ndim].set(value)
    return whole._replace(**{part: jax.tree.unflatten(jax.tree.structure(tree), leaves)})


PARTS = {
    "params": "params.layer.w",
    "optimizer": r"rest.optimizer\.0",
    "loss_state": r"memory.1",
    "frozen": "frozen.layer.w",
}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("part", PARTS)
def test_a_step_with_a_number_that_is_not_finite_is_never_sealed(part: str, value: float, tmp_path: Path):
    checkpoints = saved(tmp_path, 3)
    with pytest.raises(NotFinite, match=f"step 4: {PARTS[part]} is NaN or infinite; .* Step 3 is the last one"):
        checkpoints.save(4, harmed(4, part, value), {})
    checkpoints.save(5, state(5), {})
    checkpoints.close()
    assert checkpoints.steps() == [3, 5] and not (tmp_path / "4").exists()


def test_such_a_step_of_an_earlier_version_is_refused_when_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    checkpoints = saved(tmp_path, 3)
    with monkeypatch.context() as earlier:
        earlier.setattr(checkpoint, "first_not_finite", lambda tree: None)
        checkpoints.save(4, harmed(4, "params", np.nan), {})
        checkpoints.wait()
    for read in (checkpoints.restore, lambda step, whole: checkpoints.restore_params(step, whole.params)):
        with pytest.raises(UserError, match=r"layer\.w is NaN or infinite.* Delete 4 and 4\.json to go on from step 3"):
            read(4, like(state(4)))
        read(3, like(state(3)))


def test_every_kind_of_number_is_looked_at():
    for dtype in (jnp.bfloat16, jnp.float16, jnp.float32, jnp.float8_e5m2):
        array = jnp.ones(3, dtype)
        assert first_not_finite({"whole": jnp.arange(3), "a": array}) is None
        assert first_not_finite({"whole": jnp.arange(3), "a": array.at[2].set(jnp.inf)}) == "a"
    assert first_not_finite({"whole": jnp.arange(3)}) is None and first_not_finite({}) is None
