"""All errors that users can see. Each message says what is wrong, where, and what to do next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class AnytimeError(Exception):
    """Base class of all errors raised on purpose; the command line prints the message and exits with status 1."""


class AnytimeWarning(UserWarning):
    """The model is correct, but differs from the backbone in something that users may rely on; says what and why."""


class CaptureError(AnytimeError):
    """The model cannot be converted to the canonical form."""


class SchemeError(AnytimeError, ValueError):
    """A scheme is malformed or cannot be applied to this backbone; names the field and the reason."""


class UnsupportedOpError(AnytimeError):
    """An operation cannot be expressed in the canonical form (aliased mutation, a graph-breaking call)."""


class VerificationError(AnytimeError):
    """Two graphs that must be equivalent are not; names the first node that differs."""


class ArgumentError(AnytimeError, TypeError):
    """An argument of the wrong type; says what is expected."""


class ArgumentValueError(AnytimeError, ValueError):
    """An argument of the right type with a wrong value, shape or dtype; says what is expected."""


class BudgetError(AnytimeError, ValueError):
    """No level fits the budget; names the cheapest level and its cost."""


class ArtifactError(AnytimeError):
    """A file is missing, damaged or in an unknown format, or would be overwritten."""


class OutputsError(AnytimeError, AttributeError):
    """`Outputs` were used as a tensor; says how to select the prediction of one level."""


class MissingExtraError(AnytimeError, ImportError):
    """An optional dependency is not installed; names the extra that provides it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed. "
            f"Install it with: pip install 'anytimeify[{extra}]'"
        )


class PassError(AnytimeError):
    """A pass failed, by a mistake of the package: names the pass, the node it was at, and the passes before it."""


class Finding(Exception):  # noqa: N818  # not an error
    """What a step found out, raised for its caller to act on; no user ever sees one."""


@contextmanager
def refusing(kind: type[AnytimeError], what: object) -> Iterator[None]:
    """Wraps code that interprets untrusted input: a file, or text from the command line.

    Such input can fail in ways that nobody foresaw: huge numbers, deep nesting, bytes that are not text. Any other
    exception becomes an error of this `kind`, with the exception as its cause. `what` names the file or quotes the
    text.
    """
    try:
        yield
    except PassError as error:
        raise kind(f"{what} cannot be read ({error})") from error
    except (AnytimeError, Warning):  # users can turn warnings into errors
        raise
    except MemoryError as error:
        raise kind(f"{what} needs more memory than is available") from error
    except Exception as error:
        raise kind(f"{what} cannot be read ({type(error).__name__}: {first_line(error)[:200]})") from error


def first_line(error: BaseException) -> str:
    """What an exception says, in one line; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
