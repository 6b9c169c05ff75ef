"""An audit hook that sees code run, and files, processes and sockets opened, while a file is read.

Reading a model compiles code of its own: torch.fx writes the graph down as a function, and annotations of types are
looked up. That code is looked at: it may call and assign, and nothing else.
"""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Watch"]

FORBIDDEN = (
    *("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.startfile", "os.putenv"),
    *("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.chown", "os.link", "os.symlink", "os.truncate"),
    *("subprocess.Popen", "pty.spawn", "pickle.find_class", "webbrowser.open", "urllib.Request", "code.__new__"),
    *("ctypes.dlopen", "ctypes.dlsym", "builtins.input", "sys.setprofile", "sys.settrace"),
)
FORBIDDEN_PREFIXES = ("socket.", "shutil.", "ftplib.", "http.", "smtplib.", "telnetlib.", "sqlite3.")
# Packages that are read further into when something new has to be looked up or an error printed.
PACKAGES = frozenset(
    {
        "anytimeify",
        "torch",
        "sympy",
        "mpmath",
        "numpy",
        "onnx",
        "google",
        "ml_dtypes",
        "onnxruntime",
        "safetensors",
        "tests",
    }
)
_NAMES = frozenset({"eval", "exec", "compile", "open", "input", "globals", "locals", "vars", "setattr", "delattr"})
# Two underscores at the end, not three: a part called `__init__` becomes the attribute `__init___` of a graph's module.
_SPECIAL = re.compile(r"__\w*[^\W_]__")
_STATEMENTS = (
    ast.Import,
    ast.ImportFrom,
    ast.Lambda,
    ast.While,
    ast.For,
    ast.With,
    ast.Try,
    ast.ClassDef,
    ast.comprehension,
)


# What the standard library, sympy and networkx compile, whatever they read: fields of a `namedtuple` are names, and the
# decorators of networkx compile their own wrappers at first use.
_SYMPIFY, _NAMED_TUPLE, _ARGMAP = "from sympy import *", "lambda _cls, ", "networkx.utils.decorators.argmap"


class Watch:
    """What happened while it was on. A hook cannot be taken out again: for processes that end soon."""

    def __init__(self) -> None:
        self.on = False
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    @contextmanager
    def watching(self) -> Iterator[list[str]]:
        """Collects what must not happen while the block runs."""
        self.seen, self.on = [], True
        try:
            yield self.seen
        finally:
            self.on = False

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        self.on = False  # what the hook itself does is not of interest
        try:
            problem = _problem(event, args)
            if problem is not None and problem not in self.seen:
                self.seen.append(problem)
        finally:
            self.on = True


def _problem(event: str, args: tuple[Any, ...]) -> str | None:
    bad = event in FORBIDDEN or event.startswith(FORBIDDEN_PREFIXES)
    if event == "os.putenv":
        bad = not os.fsdecode(args[0]).startswith("TORCH_")
    if event == "open":
        bad = _writes(args)
    elif event == "import":
        top = str(args[0]).partition(".")[0]
        bad = top not in PACKAGES and top not in sys.stdlib_module_names
    elif event == "compile":
        bad = not _harmless(args[0], os.fsdecode(args[1] or ""))
    elif event == "exec":
        name = str(getattr(args[0], "co_filename", ""))
        # Looked at when it was compiled.
        compiled = name.startswith(("<eval_with_key>", "<frozen ")) or name == "<string>" or _ARGMAP in name
        bad = not (compiled or os.path.isabs(name))
    return f"{event}{tuple(str(one)[:120] for one in args)}" if bad else None


def _writes(args: tuple[Any, ...]) -> bool:
    path, mode, flags = args
    writing = any(letter in str(mode or "") for letter in "wax+")
    return (writing or bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))) and not str(path).startswith("/proc/self/")


def _harmless(source: Any, filename: str) -> bool:
    """Whether code to be compiled is that of a module that is installed, or does no more than a graph does."""
    text = source.decode(errors="replace") if isinstance(source, bytes) else source
    if filename == "<unknown>":
        return True  # by `ast.parse`, as a traceback does with its lines; to run such code is another event
    if os.path.isabs(filename) or text == _SYMPIFY or str(text).startswith(_NAMED_TUPLE) or _ARGMAP in filename:
        return True
    try:
        tree = source if isinstance(source, ast.AST) else ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return True  # it will not run
    for node in ast.walk(tree):
        if isinstance(node, _STATEMENTS):
            return False
        name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
        if _SPECIAL.fullmatch(name) or (isinstance(node, ast.Name) and name in _NAMES):
            return False
    return True
