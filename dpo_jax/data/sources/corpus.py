"""Preference corpora as TensorFlow Datasets has them, on array_record files and without TensorFlow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from dpo_jax.errors import UserError
from dpo_jax.types import PreferencePair

_COLUMNS = ("prompt", "chosen", "rejected")
_EXTRAS = {"weight": 1.0, "margin": 0.0, "soft_label": 1.0}  # what a row that does not say means


def write_corpus(splits: Mapping[str, Iterable[PreferencePair]], data_dir: str, *, name: str) -> Path:
    """Write a data set of these splits; `{tfds: name, split: ..., data_dir: ...}` reads it back, in the same order.

    All columns are there: a weight that no row has is 1, a margin 0, a soft label 1. Returns its folder.

    Raises:
        UserError: there is such a data set already, or a pair is of messages, for which the corpus has no columns.
    """
    import tensorflow_datasets as tfds

    class Corpus(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Pairs of texts."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> tfds.core.DatasetInfo:
            texts = {column: tfds.features.Text() for column in _COLUMNS}
            numbers = {column: tfds.features.Scalar(np.float64) for column in _EXTRAS}
            return tfds.core.DatasetInfo(
                builder=self,
                description="Preference pairs: a prompt, the chosen response and the rejected one.",
                features=tfds.features.FeaturesDict({**texts, **numbers}),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: object) -> dict[str, Iterator]:
            return {split: self._generate_examples(pairs) for split, pairs in splits.items()}

        def _generate_examples(self, pairs: Iterable[PreferencePair]) -> Iterator[tuple[int, dict[str, str | float]]]:
            yield from enumerate(_examples(pairs))

    Corpus.name = name
    folder = Path(data_dir) / name / str(Corpus.VERSION)
    if folder.exists():
        raise UserError(f"{folder} is there already; remove it, or choose another name.")
    builder = Corpus(data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    return Path(builder.data_dir)


def _examples(pairs: Iterable[PreferencePair]) -> Iterator[dict[str, str | float]]:
    for pair in pairs:
        row = pair._asdict()
        if not all(isinstance(row[column], str) for column in _COLUMNS):
            raise UserError(f"{pair.where}: the corpus holds texts, not messages. Keep such pairs as JSON Lines.")
        extras = {name: none if row[name] is None else row[name] for name, none in _EXTRAS.items()}
        yield {**{column: row[column] for column in _COLUMNS}, **extras}
