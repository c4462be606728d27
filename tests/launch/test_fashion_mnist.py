"""fashion_mnist.sh with pretended apt-get, dpkg-deb and sha256sum: nothing is downloaded."""

from __future__ import annotations

import re
from pathlib import Path

from tests.launch.conftest import ROOT, Fakes, refused

NAMES = [
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
]
# Files are whole that are there and hold "right".
SHA = 'while read -r _ name; do [[ "$(cat "$name" 2>/dev/null)" == right ]] || exit 1; done'
UNPACK = f'mkdir -p "$3/usr/share/datasets/fashion-mnist"; for name in {" ".join(NAMES)}; do '


def prepared(
    fakes: Fakes, held: str = "right", download: str = "touch dataset-fashion-mnist_1_all.deb"
) -> dict[str, str]:
    fakes.add("sha256sum", SHA)
    fakes.add("apt-get", download)
    fakes.add("dpkg-deb", f'{UNPACK} printf {held} >"$3/usr/share/datasets/fashion-mnist/$name"; done')
    return {"DATASETS": str(fakes.folder / "datasets")}


def ends(fakes: Fakes, tmp_path: Path, there: dict[str, str]) -> str:
    """The last thing that it says before it stops with exit code 2."""
    done = fakes.run("fashion_mnist.sh", str(tmp_path / "out"), **there)
    assert done.returncode == 2, done.stderr
    return done.stderr.splitlines()[-1]


def fetched(fakes: Fakes) -> list[list[str]]:
    return [call for call in fakes.calls() if call[0] != "sha256sum"]


def test_the_package_is_downloaded_unpacked_and_checked(fakes: Fakes, tmp_path: Path):
    there = prepared(fakes)
    done = fakes.run("fashion_mnist.sh", str(tmp_path / "out"), **there)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(NAMES)
    assert fetched(fakes) == [
        ["apt-get", "-qq", "download", "dataset-fashion-mnist"],
        ["dpkg-deb", "-x", "dataset-fashion-mnist_1_all.deb", "."],
    ]
    again = fakes.run("fashion_mnist.sh", str(tmp_path / "out"), **there)
    assert again.returncode == 0 and len(fetched(fakes)) == 2  # it is there already


def test_an_installed_package_is_copied(fakes: Fakes, tmp_path: Path):
    there = prepared(fakes)
    (fakes.folder / "datasets" / "fashion-mnist").mkdir(parents=True)
    for name in NAMES:
        (fakes.folder / "datasets" / "fashion-mnist" / name).write_text("right")
    assert fakes.run("fashion_mnist.sh", str(tmp_path / "out"), **there).returncode == 0
    assert (tmp_path / "out" / NAMES[0]).read_text() == "right" and fetched(fakes) == []


def test_a_dry_run_does_nothing(fakes: Fakes, tmp_path: Path):
    done = fakes.run("fashion_mnist.sh", "--dry-run", str(tmp_path / "out"), **prepared(fakes))
    assert done.returncode == 0 and done.stderr.startswith("Downloading the Debian package dataset-fashion-mnist to ")
    assert fetched(fakes) == [] and not (tmp_path / "out").exists()


def test_other_files_and_no_network_say_what_serves_instead(fakes: Fakes, tmp_path: Path):
    there = prepared(fakes, held="wrong")
    says = ends(fakes, tmp_path, there)
    assert "holds other files than those known; nothing was written" in says and "{package: digits}" in says
    there = prepared(fakes, download="exit 100")
    says = ends(fakes, tmp_path, there)
    assert "could not be downloaded" in says and "{package: digits}" in says
    assert not (tmp_path / "out").exists()


def test_nonsense(fakes: Fakes):
    for arguments in (["--dry"], ["one", "two"]):
        assert refused(fakes.run("fashion_mnist.sh", *arguments)).startswith("Usage: bash launch/fashion_mnist.sh")


def test_the_files_are_pinned_and_the_source_looks_where_they_are_put():
    text = (ROOT / "launch" / "fashion_mnist.sh").read_text()
    assert sorted(re.findall(r"^[0-9a-f]{64}  (.*)$", text, re.MULTILINE)) == sorted(NAMES)
    from dpo_jax.data.pictures.packages import FASHION_MNIST

    assert all(f"{folder}"[:-14] in text for folder in FASHION_MNIST)  # without /fashion-mnist
    assert ".data/" in (ROOT / ".gitignore").read_text().splitlines()
