"""Files that a disk, a copy or a person has damaged: `dpo-jax verify` names them, and what reads them refuses."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dpo_jax import cli
from dpo_jax.errors import UserError
from dpo_jax.files import changed, read_sealed
from dpo_jax.reference.store import Store
from dpo_jax.runs.verify import examine
from dpo_jax.training.checkpoint import Checkpoints
from dpo_jax.weights.folder import open_folder
from tests.tiny_experiment import refused

GARBAGE = (b"", b"{", b"\xff\xfe{}", b"\x00" * 64, b"[" * 100_000, b"null", b"[]", b'{"record": 1}')


@pytest.fixture
def run(run: Path) -> Path:
    """A copy of a trained and exported run, its store elsewhere, to be damaged; as fine-tuning leaves it."""
    shutil.copytree(run / "checkpoints", run / "sft/checkpoints")
    return run


def bad(root: Path) -> list[str]:
    return [f"{each.what}: {each.says}" for each in examine(root) if each.state == "bad"]


def stores() -> list[Path]:
    return sorted(path.parent for path in Path("runs/stores").glob("*/manifest.json"))


def read_checkpoints(run: Path, step: int) -> None:
    checkpoints = Checkpoints(run / "checkpoints")
    checkpoints.record(step)
    checkpoints._verify(step)


FINGERPRINT: dict[str, dict[str, str]] = {}


def read_store(folder: Path) -> None:
    Store(folder, FINGERPRINT[folder.name])


def targets(run: Path) -> dict[str, tuple[list[Path], Callable[[Path], None]]]:
    """The kinds of things that are damaged: name -> its files, and what reads the thing that a file is of."""
    for folder in stores():
        FINGERPRINT[folder.name] = read_sealed(folder / "manifest.json")["fingerprint"]
    checkpoints, export = run / "checkpoints", run / "export"

    def step(path: Path) -> int:
        return int(Path(path.relative_to(checkpoints).parts[0]).stem)

    def whole_store(path: Path) -> None:
        read_store(next(folder for folder in stores() if path.is_relative_to(folder)))

    def files(folder: Path) -> list[Path]:
        return sorted(path for path in folder.rglob("*") if path.is_file())

    return {
        "a checkpoint": (files(checkpoints), lambda path: read_checkpoints(run, step(path))),
        "the store": ([path for f in stores() for path in files(f) if path.name != "used_by.json"], whole_store),
        "exported safetensors": (sorted(export.glob("*.safetensors")), lambda path: open_folder(export)),
        "other exported files": (
            [path for path in files(export) if path.suffix != ".safetensors"],
            lambda path: open_folder(export),
        ),
    }


def test_a_whole_run_is_good(run: Path, capsys: pytest.CaptureFixture[str]):
    cli.main(["verify", str(run)])
    said = capsys.readouterr().out
    for part in ("checkpoints/4", "checkpoints/6", "sft/checkpoints/4", "export", "metrics.jsonl", "config.yaml"):
        assert re.search(rf"good  runs/demo/{part}: ", said), said
    assert "16 rows" in said and "good  runs/stores/" in said  # the store is not below the run
    assert "bad" not in said
    for part in ("checkpoints", "export", "../stores", "sft"):
        cli.main(["verify", str(run / part)])
        assert "good" in capsys.readouterr().out


@pytest.mark.fault("a flipped byte in {what}")
@pytest.mark.parametrize("what", ["a checkpoint", "the store", "exported safetensors", "other exported files"])
def test_a_flipped_byte(run: Path, what: str, trials: Callable, held: Callable):
    chance, (files, read), count = random.Random(what), targets(run)[what], trials(12, 200)
    assert not bad(run)
    for _ in range(count):
        path = chance.choice([path for path in files if path.stat().st_size])
        data = path.read_bytes()
        place = chance.randrange(len(data))
        path.write_bytes(data[:place] + bytes([data[place] ^ chance.randrange(1, 256)]) + data[place + 1 :])
        (found,) = bad(run)
        assert path.name in found or str(path.parent) in found, (path, place, found)
        if what == "a checkpoint" and path.relative_to(run / "checkpoints").parts[0] in ("6", "6.json"):
            assert "Delete 6 and 6.json to go on from step 4." in found
        with pytest.raises(UserError):
            read(path)
        path.write_bytes(data)
    assert not bad(run)
    readers = "" if what == "other exported files" else " and by what reads it"
    held(count, f"seen by `verify`{readers}")


def truncated(path: Path, chance: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: chance.randrange(path.stat().st_size)])


def missing(path: Path, chance: random.Random) -> None:
    path.unlink()


def half_deleted(path: Path, chance: random.Random) -> None:
    files = [each for each in path.parent.rglob("*") if each.is_file()]
    for each in chance.sample(files, (len(files) + 1) // 2):
        each.unlink()


@pytest.mark.fault("truncated, missing, half-deleted files")
@pytest.mark.parametrize("harm", [truncated, missing, half_deleted])
@pytest.mark.parametrize("what", ["a checkpoint", "the store", "exported safetensors"])
def test_files_that_are_cut_or_gone(run: Path, tmp_path: Path, what: str, harm: Callable, trials: Callable, held):
    chance, (files, read), count = random.Random(f"{what} {harm}"), targets(run)[what], trials(2, 10)
    # Without its seal a step, and without its manifest a store, is one that was never finished.
    inner = [path for path in files if path.stat().st_size and path.parent.parent.name not in ("stores", "demo")]
    files = inner if what != "exported safetensors" else files
    for number in range(count):
        path = chance.choice(files)
        kept = tmp_path / f"kept{number}"
        shutil.copytree("runs", kept)
        harm(path, chance)
        assert bad(run), path
        if what != "exported safetensors" or Path(run / "export/digests.json").exists():  # else as from elsewhere
            with pytest.raises(UserError):
                read(path)
        shutil.rmtree("runs")
        kept.rename("runs")
    held(count, "seen by `verify` and by what reads them")


@pytest.mark.fault("the newest checkpoint is damaged")
def test_training_refuses_the_newest_and_the_hint_works(run: Path, capsys, held: Callable):
    step, seal = run / "checkpoints/6", run / "checkpoints/6.json"
    array = max((p for p in step.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    more, hint = ("train", "e.yaml", "--train.steps", "8"), "Delete 6 and 6.json to go on from step 4"
    for path, cut in ((array, lambda data: data[:-70] + b"#" + data[-69:]), (seal, lambda data: data[:70])):
        data = path.read_bytes()
        path.write_bytes(cut(data))
        assert hint in refused(capsys, *more) and hint in refused(capsys, "verify", str(run))
        path.write_bytes(data)
    shutil.rmtree(step)
    seal.unlink()
    cli.main(more)
    assert "resumes at step 4 of 8" in capsys.readouterr().err
    cli.main(["verify", str(run)])
    held(2, "training names the step before, and goes on from it")


@pytest.mark.fault("stale partial files, Orbax's leftovers")
def test_what_killed_processes_leave_behind_harms_nobody(run: Path, capsys, held: Callable):
    left = [run / ".metrics.jsonl.123.partial", run / ".shared-77", stores()[0] / ".manifest.json.9.partial"]
    for path in left:
        path.write_bytes(b"half a fi")
    folders = [
        run / "checkpoints/9/params.orbax-checkpoint-tmp-1",
        run / ".export.partial",
        stores()[0] / "shard_00099",
        run / "checkpoints/8",
    ]
    for path in folders:
        path.mkdir(parents=True)
        (path / "half").write_bytes(b"half a fi")
    cli.main(["verify", str(run)])
    said = capsys.readouterr().out
    assert said.count("left  ") >= len(left) + len(folders) and "bad  " not in said
    cli.main(["train", "e.yaml", "--train.steps", "8"])
    cli.main(["export", "e.yaml"])
    assert "resumes at step 6 of 8" in capsys.readouterr().err
    held(len(left) + len(folders), "named, harmless, training goes on")


@pytest.mark.fault("garbage in seal, manifest, config.yaml, history and metrics")
@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "history.json", "checkpoints/6.json", "manifest"])
def test_garbage_is_a_clear_error(run: Path, capsys, name: str, trials: Callable, held: Callable):
    path = stores()[0] / "manifest.json" if name == "manifest" else run / name
    data, count = path.read_bytes(), trials(3, len(GARBAGE))
    command = "report" if name in ("config.yaml", "metrics.jsonl", "history.json") else "train"
    harmless = {"history.json": 3, "config.yaml": 1}.get(name, 0)  # the last are JSON, and may be of another version
    tried = GARBAGE[: min(count, len(GARBAGE) - harmless)]
    for garbage in tried:
        path.write_bytes(garbage + b"\n" + data if name == "metrics.jsonl" else garbage)
        assert path.name in refused(capsys, "verify", str(run))
        assert str(path) in refused(capsys, command, "e.yaml", "--train.steps", "8")
    path.write_bytes(data)
    held(len(tried), "a clear error")


def test_verify_needs_no_jax_and_starts_at_once(run: Path):
    code = (
        "import sys; from dpo_jax import cli; cli.main(['verify', 'runs/demo'])\n"
        "print(sorted({'jax', 'numpy', 'orbax', 'transformers', 'rich'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_exports_without_digests_and_folders_without_anything(run: Path, capsys, tmp_path: Path):
    (run / "export/digests.json").unlink()
    assert "has no digests.json" in refused(capsys, "verify", str(run))
    (tmp_path / "empty").mkdir()
    assert "holds no checkpoint" in refused(capsys, "verify", "empty")
    assert "is not a folder" in refused(capsys, "verify", "nowhere")
    assert "verify: 'more' is not understood" in refused(capsys, "verify", "empty", "more")


def test_a_new_file_in_a_checkpoint_is_named(run: Path):
    (run / "checkpoints/6/params/added").write_bytes(b"x")
    (found,) = bad(run)
    assert "params/added is new" in found
    assert changed(run / "checkpoints/6", read_sealed(run / "checkpoints/6.json")["digests"]) == ["params/added"]


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    FINGERPRINT.clear()
