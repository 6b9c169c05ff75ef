"""State of the whole process, such as warning filters, streams, loggers, environment variables and the mode of a model
that is being captured, is changed for a while and set back. Threads that did so at the same time would set back what
the other had set, so they take turns."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["ONE_AT_A_TIME", "without_garbage_search"]

ONE_AT_A_TIME = threading.RLock()


@contextmanager
def without_garbage_search() -> Iterator[None]:
    """Python does not look for unreachable cycles meanwhile. Graphs are many objects that stay, and looking through all
    of them again and again takes a fifth of the time."""
    with ONE_AT_A_TIME:
        looking = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if looking:
                gc.enable()
