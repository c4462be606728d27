"""Errors in the background threads of other libraries: a line each. What they mean is told where it is noticed."""

from __future__ import annotations

import logging
import sys
import threading
from typing import Any

from dpo_jax.masking import mask
from dpo_jax.stages.progress import say

_LONGEST = 300


def tell_briefly() -> None:
    """From now on, in the whole process."""

    def tell(failed: Any) -> None:
        say("beside", f"{getattr(failed.exc_type, '__name__', failed.exc_type)}: {_first_line(str(failed.exc_value))}")

    threading.excepthook = tell
    sys.unraisablehook = tell
    logging.getLogger("absl").addFilter(_shorten)  # Orbax logs the traceback of each thread that fails


def _shorten(record: logging.LogRecord) -> bool:
    record.msg, record.args = mask(_first_line(record.getMessage())), ()
    record.exc_info = record.exc_text = record.stack_info = None
    return True


def _first_line(text: str) -> str:
    return text.partition("\n")[0][:_LONGEST]
