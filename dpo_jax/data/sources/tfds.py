"""TensorFlow Datasets on array_record files, read without TensorFlow.

A source is `{tfds: name, split: train, data_dir: folder}`; `corpus` writes such a data set.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dpo_jax.data.sources.record import Record, Records, Spec
from dpo_jax.errors import UserError, nearest


def read(spec: Spec) -> Records:
    """Read the rows of one split in its order, bytes as the text that they are; `where` counts them from 1.

    Raises:
        UserError: there is no such data set or split on disk, it holds fewer rows than it declares, or one is damaged.
    """
    import tensorflow_datasets as tfds

    for key in ("tfds", "split", "data_dir"):
        if key in spec and (not isinstance(spec[key], str) or not spec[key]):
            raise UserError(f"data source {dict(spec)}: {key} is {spec[key]!r}, not text.")
    split = spec.get("split", "train")
    try:
        builder: Any = tfds.builder(spec["tfds"], data_dir=spec.get("data_dir"), try_gcs=False)
        names = list(builder.info.splits)
        if (name := split.partition("[")[0]) not in names:
            allowed = nearest(name, names) if names else "The data set is not prepared on disk."
            raise UserError(f"data source {dict(spec)}: no split {name!r}. {allowed}")
        declared = builder.info.splits[split].num_examples
        rows = builder.as_data_source(split)
    except UserError:
        raise
    except Exception as error:  # TFDS raises what it likes: ValueError, AssertionError, NotImplementedError
        raise _unread(spec, "", error) from error
    if len(rows) != declared:
        raise UserError(f"data source {dict(spec)}: declares {declared} rows, and {len(rows)} can be read.")
    for number in range(declared):
        try:
            values = {name: _text(value) for name, value in rows[number].items()}
        except Exception as error:  # of a damaged file: RuntimeError, ValueError, DecodeError
            raise _unread(spec, f"row {number + 1} ", error) from error
        yield Record(f"{spec['tfds']} {split} row {number + 1}", values)


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
