"""Errors in the background threads of other libraries: a line each. What they mean is told where it is noticed."""

from __future__ import annotations

import logging
import sys
import threading
from typing import Any

from dpo_jax.masking import mask
from dpo_jax.runtime.progress import say

_LONGEST = 300


def tell_briefly() -> None:
    """From now on, in the whole process."""

    def tell(failed: Any) -> None:
        say("beside", f"{getattr(failed.exc_type, '__name__', failed.exc_type)}: {_first_line(str(failed.exc_value))}")

    threading.excepthook = tell
    sys.unraisablehook = tell
    logging.getLogger("absl").addFilter(_shortened)  # Orbax logs the traceback of each thread that fails
    logging.getLogger("asyncio").addFilter(_first_of_its_kind)  # and leaves behind a task for each array


def _first_of_its_kind(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if error is None:
        return _shortened(record)
    if type(error) in _told:
        return False
    _told.add(type(error))
    record.msg, record.args = f"{type(error).__name__}: {error}", ()
    return _shortened(record)


def _shortened(record: logging.LogRecord) -> bool:
    record.msg, record.args = mask(_first_line(record.getMessage())), ()
    record.exc_info = record.exc_text = record.stack_info = None
    return True


_told: set[type[BaseException]] = set()


def _first_line(text: str) -> str:
    return text.partition("\n")[0][:_LONGEST]
