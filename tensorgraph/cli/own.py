"""The user's own file.py:callable: what it returns, and what it raises."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tensorgraph.errors import ModelError
from tensorgraph.nn import Module
from tensorgraph.tensor import Tensor

PREFIX = "tensorgraph_own_"
OURS = (f"{Path(__file__).parents[1]}{os.sep}", "<frozen ")  # how the names of files begin that are not the user's


def call(text: str, file: Path, attribute: str) -> Any:
    """What the callable of the user's own file returns; the file's folder is importable, as when Python runs it."""
    if not file.is_file():
        raise ModelError("TG930", f"no such file: {file}")
    name = f"{PREFIX}{file.stem}"  # a name of its own: the user's json.py must not become `json`
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    loader = spec.loader
    assert loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.resolve().parent))
    sys.modules[name] = module
    try:
        loader.exec_module(module)
    except SyntaxError as e:
        at = f"at {Path(e.filename or file).name}:{e.lineno}"
        raise ModelError("TG943", f"{file.name} is not Python: {e.msg}", notes=[at]) from None
    found: Callable[[], Any] | None = getattr(module, attribute, None)
    if found is None:
        names = [n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == name]
        near = difflib.get_close_matches(attribute, names, 3) or names[:6]
        hint = f"it has {', '.join(near)}" if near else None
        raise ModelError("TG930", f"{file} has nothing called {attribute!r}", hint=hint)
    if not callable(found) or isinstance(found, (Module, Tensor)):
        return found
    needed = [
        p.name for p in _parameters(found) if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if needed:
        text = f"{file.name}:{attribute} needs {', '.join(needed)}, and is called without arguments"
        raise ModelError("TG943", text, hint="give them defaults, or a function that calls it")
    return found()


def _parameters(f: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(f).parameters.values())
    except (TypeError, ValueError):  # of what is written in C, nothing is known
        return []


def own_traceback(error: BaseException) -> str | None:
    """The traceback of what the user's own file raised, less the lines of ours that called it, or lie between its own.

    None if no line of it is the user's.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    first = next((i for i, f in enumerate(frames) if str(f.f_globals.get("__name__")).startswith(PREFIX)), None)
    if first is None:
        return None
    whole = traceback.TracebackException.from_exception(error)
    between, raised = whole.stack[first:-1], whole.stack[-1]
    whole.stack = traceback.StackSummary.from_list([*(f for f in between if not f.filename.startswith(OURS)), raised])
    return "".join(whole.format(chain=False))


__all__ = ["call", "own_traceback"]
