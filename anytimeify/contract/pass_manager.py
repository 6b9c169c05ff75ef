"""The contract of a pass, kept in one place.

A pass takes a program, or what holds one (`Captured`, `Rewritten`), and gives another. Whoever writes one declares it:

    @rewrite("fold")
    def fold(program: Program) -> Program: ...

What a pass may count on
    * the programs that it is given are canonical (`anytimeify.contract.spec`), and the types of their nodes are right;
    * nobody but the caller holds what it returns.

What a pass owes
    * the programs that it is given stay as they are: graph, metadata and tensors. Tensors are shared by reference;
    * its result is canonical again: kinds and order of nodes, names that are unique, metadata with the keys of
      `anytimeify.ir.node_meta` and no others, and types that follow from the operations
      (`anytimeify.ir.infer_types`). New nodes are made by `anytimeify.graph.builder.Builder`, which infers their types;
    * what a user did is refused with one of the errors of `anytimeify.errors`; every other exception is a mistake of
      the pass.

What is done about it, around every call
    * the result is verified; a `SpecError` names the pass, the node with its module path and its line in the backbone's
      source, and the passes that ran before. Types of calls that were seen before are remembered, so that this costs
      about ten microseconds for each node. Of passes inside of passes the outermost result is. Where it is wrong, or
      one of them fails, all are run once more, and every result is verified: the innermost that is wrong is named;
    * an exception that is no error for users becomes a `PassError` from it, which names the pass, the node that was
      being worked on where the pass had one in hand, and the passes that ran before;
    * the program notes the name of the pass: `Program.passes`. Of passes inside of passes the innermost one reports,
      and the outermost one is noted.

The steps of capture edit a work graph, which is no program yet: they are run in the same way, without the verification.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

from torch import fx

from anytimeify.contract import spec
from anytimeify.contract.spec import SpecError
from anytimeify.errors import AnytimeError, Finding, PassError, first_line
from anytimeify.ir import Captured, Program
from anytimeify.ir.infer_types import TypeInferenceError
from anytimeify.ir.node_meta import module_stack_of, origin_of
from anytimeify.ir.rewritten import Rewritten

__all__ = ["rewrite", "run_pass"]

P = ParamSpec("P")
R = TypeVar("R")


def rewrite(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Declares a pass: every call of the function goes through `run_pass`."""

    def declared(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> R:
            return run_pass(name, function, *args, **kwargs)

        return called

    return declared


def run_pass(name: str, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """`function(*args, **kwargs)`, its result verified where it holds a program.

    Raises what `function` refuses with, `SpecError` where its result is not canonical, and `PassError` from everything
    else that goes wrong in it."""
    run = partial(_run, name, partial(function, *args, **kwargs), args, kwargs)
    around = _AROUND.get()
    if around is not None:
        around.holds_others = True
        return run(verified=around.doubted)  # type: ignore[no-any-return]  # of the same kind
    outermost = _Outermost()
    token = _AROUND.set(outermost)
    try:
        return run(verified=True)  # type: ignore[no-any-return]  # of the same kind
    except (SpecError, PassError):
        if outermost.holds_others:
            outermost.doubted = True
            run(verified=True)
        raise
    finally:
        _AROUND.reset(token)


@dataclass
class _Outermost:
    """What is known of a pass that runs, and that no other contains."""

    holds_others: bool = False
    doubted: bool = False  # it, or one of these, has made a mistake in its first run


_AROUND: ContextVar[_Outermost | None] = ContextVar("around", default=None)


def _run(name: str, function: Callable[[], Any], args: Any, kwargs: Any, *, verified: bool) -> Any:
    given = [program for argument in (*args, *kwargs.values()) for program in _programs(argument)]
    before = tuple(dict.fromkeys(one for argument in args for one in _history(argument)))
    try:
        result = function()
    except (MemoryError, Warning, Finding):
        raise
    except Exception as error:
        if isinstance(error, AnytimeError) and not isinstance(error, TypeInferenceError):
            raise
        raise PassError(_message(name, before, error)) from error
    return _noted(result, name, before, given, verified=verified)


def _programs(value: Any) -> Iterator[Program]:
    if isinstance(value, Program):
        yield value
    elif isinstance(value, Captured | Rewritten):
        yield value.program


def _history(value: Any) -> Sequence[str]:
    """The passes that made a program, what holds one, or a work graph of one."""
    found: Sequence[str] = getattr(getattr(value, "program", value), "passes", ())
    return found


def _noted(result: Any, name: str, before: tuple[str, ...], given: list[Program], *, verified: bool) -> Any:
    """The result, which notes the pass where it holds a new program."""
    for program in _programs(result):
        if any(program is one for one in given):
            return result
        program = replace(program, passes=before)
        if verified:
            spec.verify(program, after=name)
        program = replace(program, passes=(*before, name))
        return program if isinstance(result, Program) else replace(result, program=program)
    return result


def _message(name: str, before: tuple[str, ...], error: Exception) -> str:
    node = _node_at(error)
    place = f" at node '{node.name}' ({node.target}, {origin_of(node)})" if node is not None else ""
    history = f" Passes before it: {', '.join(before)}." if before else ""
    return (
        f"the pass '{name}' failed{place}: {type(error).__name__}: {first_line(error)[:300]}.{history} This is a "
        "mistake of anytimeify and not of the model: please report it with this message and the traceback."
    )


def _node_at(error: Exception) -> fx.Node | None:
    """The node that a pass was working on: what the innermost function that has one in hand calls `node`, or else any
    node among its variables. Passes are loops over nodes, and need not say it themselves."""
    frames = []
    trace = error.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame.f_locals)
        trace = trace.tb_next
    for variables in reversed(frames):
        for value in (variables.get("node"), *variables.values()):
            if isinstance(value, fx.Node) and ("origin" in value.meta or module_stack_of(value)):
                return value
    return None
