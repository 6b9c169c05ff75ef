"""State of the whole process, such as warning filters, streams, loggers, environment variables and the mode of a model
that is being captured, is changed for a while and set back. Threads that did so at the same time would set back what
the other had set, so they take turns."""

from __future__ import annotations

import threading

__all__ = ["ONE_AT_A_TIME"]

ONE_AT_A_TIME = threading.RLock()
