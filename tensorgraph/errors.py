"""Every error a user can meet: one class per kind, one formatter, one table of stable codes.

A message says what is wrong in the user's own names, shows the operands aligned with the clash marked,
where each was made (layer and line), and ends with one hint. It never exceeds twelve lines.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import CodeType
from typing import Any, NamedTuple, TypeAlias

MAX_LINES = 12
MAX_WIDTH = 160

Loc: TypeAlias = "tuple[str, int]"  # file and line
NOWHERE: Loc = ("", 0)
_engine_code: dict[CodeType, bool] = {}


def _is_engine(frame: Any) -> bool:
    code = frame.f_code
    known = _engine_code.get(code)
    if known is None:
        module = str(frame.f_globals.get("__name__", ""))
        ours = module == "tensorgraph" or module.startswith("tensorgraph.")
        user = module.startswith(("tensorgraph.models", "tensorgraph.visualize"))
        known = _engine_code[code] = (ours and not user) or module in ("contextlib", "functools")
    return known


def caller() -> Loc:
    """File and line of the innermost frame outside the engine: a model's or the user's line."""
    frame: Any = sys._getframe(1)
    while frame is not None and _is_engine(frame):
        frame = frame.f_back
    return (frame.f_code.co_filename, frame.f_lineno) if frame is not None else NOWHERE


def place(loc: Loc) -> str:
    """`llama.py:88`, or "" if unknown."""
    return f"{loc[0].replace(chr(92), '/').rpartition('/')[2]}:{loc[1]}" if loc[1] else ""


def counted(n: int, what: str) -> str:
    """`1 token`, `2,000 tokens`."""
    return f"{n:,} {what}{'s' * (n != 1)}"


class Operand(NamedTuple):
    """One line of an error: a tensor's name, its type, its layer and line; `mark` underlines type[start:end]."""

    name: str
    type: str
    layer: str = ""
    loc: str = ""
    mark: tuple[int, int] | None = None


class TensorgraphError(Exception):
    """Base of all errors raised on purpose.

    `code` is stable (`TG101`); `summary` is the first line; `hint` is one suggestion, or None.
    `details` holds one line each for all that the message sums up, if it does.
    `str(error)` is the whole message, `error.report()` the same headed by the class name.
    """

    def __init__(
        self,
        code: str,
        summary: str,
        *,
        operands: Iterable[Operand] = (),
        notes: Iterable[str] = (),
        hint: str | None = None,
        details: Iterable[str] = (),
    ) -> None:
        self.code = code
        self.summary = summary
        self.operands = tuple(operands)
        self.notes = tuple(notes)
        self.hint = hint
        self.details = tuple(details)
        super().__init__(self._text())

    def _text(self) -> str:
        lines = [f"[{self.code}] {self.summary}"]
        lines += aligned(self.operands)
        lines += [f"  {note}" for note in self.notes]
        room = MAX_LINES - (1 if self.hint else 0)
        if len(lines) > room:
            lines = [*lines[: room - 1], f"  ... and {len(lines) - room + 1} more lines (see .operands and .notes)"]
        if self.hint:
            lines.append(f"  hint: {self.hint}")
        return "\n".join(line if len(line) <= MAX_WIDTH else line[: MAX_WIDTH - 3] + "..." for line in lines)

    def report(self) -> str:
        """The message as the command line prints it: `ShapeError[TG101] matmul: ...`."""
        return type(self).__name__ + str(self)


def aligned(operands: tuple[Operand, ...]) -> list[str]:
    """Operands in columns, with a line of carets under a marked part."""
    if not operands:
        return []
    name_w = max(len(o.name) for o in operands)
    type_w = max(len(o.type) for o in operands)
    layer_w = max(len(o.layer) for o in operands)
    lines = []
    for o in operands:
        start = f"    {o.name:<{name_w}} : "
        lines.append(f"{start}{o.type:<{type_w}}  {o.layer:<{layer_w}}  {o.loc}".rstrip())
        if o.mark is not None:
            first, last = o.mark
            lines.append(" " * (len(start) + first) + "^" * max(1, last - first))
    return lines


class SizeError(TensorgraphError):
    """TG0xx: a symbolic size is malformed, contradictory or cannot be bound."""


class ShapeError(TensorgraphError, ValueError):
    """TG1xx: shapes that do not fit, found while the graph is built."""


class DTypeError(TensorgraphError, TypeError):
    """TG2xx: an op does not take this dtype."""


class OpError(TensorgraphError, TypeError):
    """TG25x: an op is called or defined wrongly (unknown argument, missing rule)."""


class GraphError(TensorgraphError, ValueError):
    """TG3xx: the graph as a whole is wrong (names, inputs, layers)."""


class GradError(TensorgraphError, ValueError):
    """TG4xx: a gradient cannot be taken, or a gradient check failed."""


class DataError(TensorgraphError, ValueError):
    """TG5xx: arrays handed to a compiled graph do not fit it (shape, dtype, range, missing)."""


class StateError(TensorgraphError, RuntimeError):
    """TG6xx: training state used wrongly (consumed, missing, of another model)."""


class BackendError(TensorgraphError, RuntimeError):
    """TG7xx: a backend is absent or cannot run this graph; not enough memory."""


class CheckpointError(TensorgraphError, ValueError):
    """TG8xx: a file is damaged, or its tensors are missing, unexplained or mis-shaped."""


class ModelError(TensorgraphError, ValueError):
    """TG9xx: an unknown model, configuration or setting."""


for _cls in list(globals().values()):  # tracebacks then read `tensorgraph.ShapeError: [TG101] ...`
    if isinstance(_cls, type) and issubclass(_cls, TensorgraphError):
        _cls.__module__ = "tensorgraph"
