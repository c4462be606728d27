"""The data looked at before anything is trained: what was read, cut and left out, and what is odd about the rest."""

from __future__ import annotations

from dpo_jax.experiments.data_reports import keep
from dpo_jax.experiments.steps import Steps
from dpo_jax.files import write_atomic
from dpo_jax.reporting.data import as_html, as_text
from dpo_jax.runtime.progress import say


def run(experiment: Steps) -> None:
    """Says what is in the rows of each split, and writes WORKDIR/data.html and data.json."""
    reports = experiment.data_reports()
    keep(experiment.workdir, reports)
    print("\n".join(as_text(reports)))
    path = experiment.run.data_page
    write_atomic(path, as_html(f"Data of {experiment.workdir.name}", reports))
    say("data", f"wrote {path}")
