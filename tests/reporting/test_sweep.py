from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from dpo_jax.reporting.sweep import as_html, as_markdown, draw, make_table


class Line(NamedTuple):
    settings: dict[str, Any]
    runs: int
    measures: dict[str, tuple[float, tuple[float, float] | None]]
    curve: str
    counts: Mapping[str, int] = MappingProxyType({})


def line(name: str, beta: float, accuracy: float, margin: float, runs: int = 1) -> Line:
    measures: dict[str, Any] = {
        "held-out accuracy": (accuracy, (accuracy - 0.05, accuracy + 0.05)),
        "held-out margin": (margin, None),
    }
    return Line({"loss.name": name, "loss.options.beta": beta}, runs, measures, name)


LINES = [line("dpo", 0.1, 0.8, 3.0), line("dpo", 0.5, 0.7, 1.0), line("ipo", 0.1, 0.6, 2.0)]


def test_the_table_in_markdown() -> None:
    text = as_markdown(make_table(LINES, [("name=kto", "it is <not> paired")]))
    assert text.splitlines()[:3] == [
        "| name | beta | held-out accuracy | held-out margin |",
        "| --- | --- | --- | --- |",
        "| dpo | 0.1 | 80.0\u00a0% (75.0 to 85.0\u00a0%) | 3.00\u00a0nats |",
    ]
    assert text.endswith("Left out: name=kto: it is \\<not\\> paired\n")


def test_seeds_are_a_column_only_where_there_are_several() -> None:
    assert "seeds" not in make_table(LINES, []).heads
    assert "seeds" in make_table([LINES[0]._replace(runs=3)], []).heads


def test_keys_with_the_same_last_part_are_written_whole() -> None:
    lines = [Line({"sft.train.steps": 5, "train.steps": 7}, 1, LINES[0].measures, "")]
    assert list(make_table(lines, []).heads[:2]) == ["sft.train.steps", "train.steps"]


def test_a_measure_that_only_some_have_leaves_cells_empty_and_is_not_drawn() -> None:
    lines = [LINES[0], LINES[1]._replace(measures={"held-out accuracy": (0.5, None)})]
    assert make_table(lines, []).rows[1][-1] == ("", "")
    assert draw(lines) is None


def test_a_mixture_is_written_as_in_a_file() -> None:
    mixed = LINES[0]._replace(settings={"loss": [{"name": "sft"}, {"name": "orpo", "weight": 0.1}]})
    assert make_table([mixed], []).rows[0][0] == ("[{name: sft}, {name: orpo, weight: 0.1}]", "")


def test_where_points_start_is_a_column_only_if_they_start_apart() -> None:
    def starting(*shares: float) -> list[Line]:
        return [
            each._replace(measures={**each.measures, "positive before": (x, None)})
            for each, x in zip(LINES, shares, strict=True)
        ]

    assert "positive before" in make_table(starting(0.4, 0.5, 0.4), []).heads
    assert "positive before" not in make_table(starting(0.4, 0.4, 0.4), []).heads


def test_each_loss_is_a_curve() -> None:
    plot = draw(LINES)
    assert plot is not None
    assert (list(plot.series), plot.gained, plot.cost) == (["dpo", "ipo"], "held-out accuracy", "held-out margin")
    assert "#00000" not in plot.svg  # all colours are those of the page


def test_the_page_escapes_what_it_is_told() -> None:
    page = as_html("a<b", "dpo-jax sweep 'x<y'", make_table(LINES, [("p", "<script>")]), LINES)
    assert "a&lt;b" in page and "<script" not in page and "x&lt;y" in page
    assert page == as_html("a<b", "dpo-jax sweep 'x<y'", make_table(LINES, [("p", "<script>")]), LINES)
