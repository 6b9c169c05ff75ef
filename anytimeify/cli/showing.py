"""What commands show: results on standard output, progress on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from anytimeify import progress
from anytimeify.storage.export import quiet

__all__ = ["cell", "console_of", "doing", "progressing", "say", "show", "watching"]


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Shows progress: a spinner on a terminal, a line elsewhere. Hides what torch and the model print."""
    console = console_of(sys.stderr)
    if console.is_terminal:
        with console.status(f"{what} ..."), quiet():
            yield
    else:
        show(f"{what} ...", sys.stderr)
        with quiet():
            yield


@contextmanager
def progressing(what: str) -> Iterator[None]:
    """Shows which step work is at and how long it will take, on a terminal; a line elsewhere."""
    console = console_of(sys.stderr)
    if not console.is_terminal:
        with doing(what):
            yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as shown, quiet():
        task = shown.add_task(what, total=1.0)

        def move(name: str, share: float) -> None:
            shown.update(task, description=f"{what}: {name}", completed=share)

        with progress.shown_by(move):
            yield


@contextmanager
def watching(what: str) -> Iterator[None]:
    """Shows how far a training is: a bar on a terminal; elsewhere a line an epoch, or every half minute."""
    console = console_of(sys.stderr)
    if console.is_terminal:
        columns = (SpinnerColumn(), BarColumn(bar_width=20), TextColumn("{task.description}", markup=False))
        with Progress(*columns, console=console, transient=True) as shown:
            task = shown.add_task(what, total=1.0)

            def move(name: str, share: float) -> None:
                shown.update(task, description=name, completed=share)

            with progress.shown_by(move):
                yield
        return
    show(f"{what} ...", sys.stderr)
    last = time.monotonic()

    def tell(name: str, share: float) -> None:
        nonlocal last
        if "accuracy" in name or time.monotonic() - last > 30:
            last = time.monotonic()
            show(f"{share:4.0%} {name}", sys.stderr)

    with progress.shown_by(tell):
        yield


def show(what: RenderableType, file: TextIO | None = None) -> None:
    """Prints text or a table, by default to standard output."""
    console = console_of(file or sys.stdout)
    if console.is_terminal or isinstance(what, str):
        console.print(what, soft_wrap=isinstance(what, str))
        return
    with console.capture() as capture:
        console.print(what)
    typer.echo("\n".join(line.rstrip() for line in capture.get().rstrip().splitlines()), file=file)


def say(line: str) -> None:
    """A line on standard error."""
    show(line, sys.stderr)


def console_of(file: TextIO) -> Console:
    """Tables are as wide as the terminal, or 120 columns elsewhere. User input is never interpreted as markup."""
    return Console(file=file, markup=False, highlight=False, emoji=False, width=None if file.isatty() else 120)


def cell(value: object) -> str:
    """A value in a table."""
    return f"{value:,}" if isinstance(value, int) else str(value)
