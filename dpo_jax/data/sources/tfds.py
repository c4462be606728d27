"""TensorFlow Datasets on array_record files, read and written without TensorFlow.

A source is `{tfds: name, split: train, data_dir: folder}`; `write_corpus` writes such a data set of preference pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dpo_jax.data.sources.cells import ClassNumber
from dpo_jax.data.sources.record import Record, Records, Spec, text_of
from dpo_jax.errors import UserError, nearest
from dpo_jax.types import PreferencePair

_COLUMNS = ("prompt", "chosen", "rejected")
_EXTRAS = {"weight": 1.0, "margin": 0.0, "soft_label": 1.0}  # what a row that does not say means


def read(spec: Spec) -> Records:
    """Read the rows of one split in its order, bytes as the text that they are; `where` counts them from 1.

    Raises:
        UserError: there is no such data set or split on disk, it holds fewer rows than it declares, or one is damaged.
    """
    import tensorflow_datasets as tfds

    name, split, folder = text_of(spec, "tfds", ""), text_of(spec, "split", "train"), text_of(spec, "data_dir", None)
    try:
        builder: Any = tfds.builder(name, data_dir=folder, try_gcs=False)
        names = list(builder.info.splits)
        if (whole := split.partition("[")[0]) not in names:
            allowed = nearest(whole, names) if names else "The data set is not prepared on disk."
            raise UserError(f"data source {dict(spec)}: no split {whole!r}. {allowed}")
        declared = builder.info.splits[split].num_examples
        rows = builder.as_data_source(split)
        features = dict(builder.info.features.items())
        classes = {name: of for name, of in features.items() if isinstance(of, tfds.features.ClassLabel)}
    except UserError:
        raise
    except Exception as error:  # TFDS raises what it likes: ValueError, AssertionError, NotImplementedError
        raise _unread(spec, "", error) from error
    if len(rows) != declared:
        raise UserError(f"data source {dict(spec)}: declares {declared} rows, and {len(rows)} can be read.")
    for number in range(declared):
        try:
            values = {column: _text(value) for column, value in rows[number].items()}
            values |= {column: ClassNumber.of(values[column], of.names) for column, of in classes.items()}
        except Exception as error:  # of a damaged file: RuntimeError, ValueError, DecodeError
            raise _unread(spec, f"row {number + 1} ", error) from error
        yield Record(f"{name} {split} row {number + 1}", values)


def _unread(spec: Spec, what: str, error: Exception) -> UserError:
    said = str(error).partition("\n")[0][:500]
    return UserError(f"data source {dict(spec)}: {what}cannot be read ({type(error).__name__}): {said}")


def _text(value: object) -> object:
    """Bytes as text, arrays as lists, numbers as Python has them."""
    if isinstance(value, bytes):
        return value.decode("utf8", errors="surrogateescape")
    if isinstance(value, dict):
        return {name: _text(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_text(item) for item in value]
    return _text(value.tolist()) if isinstance(value, np.ndarray | np.generic) else value


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
            for number, pair in enumerate(pairs):
                row = pair._asdict()
                if not all(isinstance(row[column], str) for column in _COLUMNS):
                    says = "the corpus holds texts, not messages. Keep such pairs as JSON Lines."
                    raise UserError(f"{pair.where}: {says}")
                extras = {name: none if row[name] is None else row[name] for name, none in _EXTRAS.items()}
                yield number, {**{column: row[column] for column in _COLUMNS}, **extras}

    Corpus.name = name
    folder = Path(data_dir) / name / str(Corpus.VERSION)
    if folder.exists():
        raise UserError(f"{folder} is there already; remove it, or choose another name.")
    builder = Corpus(data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    return Path(builder.data_dir)
