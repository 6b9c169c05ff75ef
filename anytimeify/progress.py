"""What long work is at, for whoever shows it: the name of a step, and which share of the whole is done before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["is_shown", "shown_by", "step"]

_SHOWN_BY: ContextVar[Callable[[str, float], None] | None] = ContextVar("shown by", default=None)


@contextmanager
def shown_by(show: Callable[[str, float], None]) -> Iterator[None]:
    """Steps inside, in this thread, are told to `show(name, share)`."""
    token = _SHOWN_BY.set(show)
    try:
        yield
    finally:
        _SHOWN_BY.reset(token)


def is_shown() -> bool:
    """Whether anybody is told."""
    return _SHOWN_BY.get() is not None


def step(name: str, share: float) -> None:
    """A step begins, when a share of the whole is done."""
    show = _SHOWN_BY.get()
    if show is not None:
        show(name, share)
