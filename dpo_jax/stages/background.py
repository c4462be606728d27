"""Errors in the background threads of other libraries: a line each. What they mean is told where it is noticed."""

from __future__ import annotations

import sys
import threading
from typing import Any

from dpo_jax.stages.progress import say


def tell_briefly() -> None:
    """From now on, in the whole process."""

    def tell(failed: Any) -> None:
        words = str(failed.exc_value).partition("\n")[0]
        say("beside", f"{getattr(failed.exc_type, '__name__', failed.exc_type)}: {words}")

    threading.excepthook = tell
    sys.unraisablehook = tell
