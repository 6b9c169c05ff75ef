"""Every error a user can meet. Each message says what, where, and what to do next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class AnytimeError(Exception):
    """Base of all errors raised on purpose; the command line prints its text and exits with 1."""


class AnytimeWarning(UserWarning):
    """The model is right, but something that its user may count on is not as in the backbone; says what and why."""


class CaptureError(AnytimeError):
    """The model could not be turned into a canonical program."""


class SchemeError(AnytimeError, ValueError):
    """A scheme is malformed or cannot apply to this backbone; names the field and the reason."""


class UnsupportedOpError(AnytimeError):
    """An operation has no meaning in the canonical form (aliased mutation, a graph-breaking call)."""


class VerificationError(AnytimeError):
    """Two graphs that must agree do not; names the first node that differs."""


class ArgumentError(AnytimeError, TypeError):
    """A call with arguments of another kind than it takes; says what it takes."""


class ArgumentValueError(AnytimeError, ValueError):
    """An argument of the right kind whose value, shape or type of elements is refused; says what is expected."""


class BudgetError(AnytimeError, ValueError):
    """No level fits a budget; names the cheapest level and its cost."""


class ArtifactError(AnytimeError):
    """A file is missing, damaged, of another format, or would be overwritten."""


class OutputsError(AnytimeError, AttributeError):
    """`Outputs` were taken for a tensor; says how to get at the prediction of one level."""


class MissingExtraError(AnytimeError, ImportError):
    """An optional dependency is absent; names the extra that brings it."""

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
    """Around everything that is made of what somebody else wrote: a file, or a text that was typed.

    It may say anything, so anything may go wrong: numbers without end, nesting without end, bytes that are no text.
    What nobody thought of becomes an error of this kind, from its cause. `what` names the file or quotes the text.
    """
    try:
        yield
    except PassError as error:
        raise kind(f"{what} cannot be read ({error})") from error
    except (AnytimeError, Warning):  # warnings are errors where a user says so
        raise
    except MemoryError as error:
        raise kind(f"{what} asks for more memory than there is") from error
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise kind(f"{what} cannot be read ({type(error).__name__}: {first[:200]})") from error
