"""What `pairs` has sampled and judged is kept as it comes: a command that was ended goes on from there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dpo_jax import cli
from dpo_jax.experiments import samples
from dpo_jax.runs.kept import Kept
from tests.tiny import make_hf_folder
from tests.tiny_experiment import amend, end_soon, read_lines

JUDGE = """\
def score(prompts, responses):
    with open("asked.txt", "a") as file:
        file.write("".join(repr(both) + "\\n" for both in zip(prompts, responses)))
    return [len(text) for text in responses]
"""


class Killed(BaseException):
    """The end of a process."""


@pytest.fixture
def begun(scored: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows with which each sampling began."""
    amend(
        sampling={"samples": 3, "max_new_tokens": 6, "temperature": 1.5, "batch_rows": 16},
        pairs={"judge": {"name": "python", "function": "log.py:score"}},
    )
    end_soon()
    Path("log.py").write_text(JUDGE)
    first, generate = list[int](), samples.generate_batches

    def told(*arguments: Any, **options: Any) -> Any:
        first.append(options["first"])
        return generate(*arguments, **options)

    monkeypatch.setattr(samples, "generate_batches", told)
    return first


def made(workdir: str, *arguments: str) -> tuple[str, list[str]]:
    """The pairs, and what the judge was asked."""
    log = Path("asked.txt")
    log.write_text("")
    cli.main(["pairs", "e.yaml", "--workdir", workdir, *arguments])
    return Path(workdir, "pairs.jsonl").read_text(), log.read_text().splitlines()


@pytest.mark.parametrize("puts", [2, 5])
def test_after_the_end_of_a_process_the_rest_is_sampled_and_judged(
    puts: int, begun: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, asked = made("runs/whole")
    assert len(asked) == len(set(asked)) > 16
    put, count = Kept.put, 0

    def killed(kept: Kept, values: Any) -> None:
        nonlocal count
        if count == puts:
            raise Killed
        count += 1
        put(kept, values)

    with monkeypatch.context() as patch:
        patch.setattr(Kept, "put", killed)
        with pytest.raises(Killed):
            made("runs/killed")
    before = Path("asked.txt").read_text().splitlines()
    found, after = made("runs/killed")
    assert found == wanted
    assert begun == [0, 0, 32 if puts == 2 else 60]
    assert sorted(set(before + after)) == sorted(asked)
    # Of what it had been asked, it is asked again no more than the answers of the call in flight.
    assert len(before + after) - len(asked) == (len(before) - 8 if before else 0)


def test_what_decides_it_differently_is_done_anew(begun: list[int]) -> None:
    wanted, asked = made("runs/demo")
    assert made("runs/demo") == (wanted, []) and begun == [0, 60]
    make_hf_folder(Path("other"), seed=1)
    end_soon("other")
    for change in (("--sampling.temperature", "1.4"), ("--seed", "1"), ("--model.weights", "other")):
        begun.clear()
        found, again = made("runs/demo", *change)
        assert begun == [0] and found != wanted and again, change
    begun.clear()
    found, again = made("runs/demo")
    assert (found, begun) == (wanted, [0]) and not again  # the texts are those of the first time
    Path("log.py").write_text(JUDGE.replace("len(text)", "-len(text)"))
    found, again = made("runs/demo")
    assert begun == [0, 60] and sorted(again) == sorted(asked)
    assert {row["chosen_score"] for row in read_lines("runs/demo/pairs.jsonl")} < set(range(-99, 1))
