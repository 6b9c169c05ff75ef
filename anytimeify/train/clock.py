"""How fast a training is, and how long it will take."""

from __future__ import annotations

import time

from anytimeify import progress

__all__ = ["Clock"]

SHOWN_EVERY = 0.5  # seconds


class Clock:
    """How fast a run is, and how long it will take."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self._samples, self._steps = 0, 0
        self._start = self._shown = time.monotonic()

    def tick(self, samples: int) -> bool:
        """A step is done; whether somebody is shown progress, and it is time to tell."""
        self.done += 1
        self._steps += 1
        self._samples += samples
        due = progress.is_shown() and time.monotonic() - self._shown > SHOWN_EVERY
        if due:
            self._shown = time.monotonic()
        return due

    @property
    def share(self) -> float:
        return self.done / max(1, self.total)

    @property
    def rate(self) -> float:
        return self._samples / max(1e-9, time.monotonic() - self._start)

    @property
    def left(self) -> str:
        seconds = (time.monotonic() - self._start) / max(1, self._steps) * (self.total - self.done)
        minutes, seconds = divmod(round(seconds), 60)
        return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
