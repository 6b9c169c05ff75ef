"""The command line. A command is a file in `commands/`, and a few calls of the library.

Results go to standard output, progress and errors to standard error. Exit status: 0 for success; 1 for an error, with
one message and no partly written files; 2 for wrong usage.
"""

from __future__ import annotations

import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from anytimeify.cli.commands.bench import bench
from anytimeify.cli.commands.compare import compare
from anytimeify.cli.commands.convert import convert
from anytimeify.cli.commands.export import export
from anytimeify.cli.commands.extract import extract
from anytimeify.cli.commands.inspect import inspect
from anytimeify.cli.commands.levels import levels
from anytimeify.cli.commands.papers import papers
from anytimeify.cli.commands.report import report
from anytimeify.cli.commands.train import train
from anytimeify.errors import AnytimeError, first_line
from anytimeify.version import __version__

__all__ = ["app", "main"]

app = typer.Typer(
    name="anytimeify",
    help="Compiles a PyTorch network into an anytime model: several networks in one, from cheap to full.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (convert, inspect, extract, export, levels, bench, report, train, compare, papers):
    app.command()(command)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"anytimeify {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command, by default with the arguments of the process. Always raises `SystemExit`."""
    if arguments is None:  # we own the process: when terminated, it removes unfinished files
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                # from torch and the model's code, which the user of a command cannot change
                warnings.simplefilter("ignore")
            app(arguments)
    except AnytimeError as error:
        _fail(str(error))
    except Exception as error:  # a bug: say where it happened, for whoever fixes it
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(last.filename).name}:{last.lineno}"
        _fail(f"internal error in anytimeify, {type(error).__name__} in {place}: {first_line(error)}")


def _fail(message: str) -> NoReturn:
    """Exits with status 1 and a message; characters that the terminal cannot show are escaped."""
    encoding = sys.stderr.encoding or "utf-8"
    sys.stderr.write(f"error: {message}\n".encode(encoding, "backslashreplace").decode(encoding))
    sys.exit(1)
