"""The NumPy backend: a program becomes straight-line source that a person can read, over a planned arena.

`views(s, a, v)` makes the arrays of one binding; `step(P, v)` runs. No size stands in `step`, so new sizes re-plan and
never rebuild. The text is ours alone: identifiers are generated, foreign names enter by `repr`, comments are stripped.
"""

from __future__ import annotations

import itertools
import linecache
import time
import weakref
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from .. import dims, dtypes, interpret, xp
from ..dims import Dim
from ..dtypes import DType
from ..passes.memory import Plan, plan
from ..passes.program import Kernel, Program, Value

_serial = itertools.count()
WIDTH = 76
CHUNK = 2000  # lines per function


class Lowered:
    """A program as Python source, and the functions it defines."""

    def __init__(self, program: Program, name: str = "graph", timed: bool = False) -> None:
        self.program, self.timed = program, timed
        self.spent = [0.0] * len(program.kernels)  # seconds per kernel, if timed
        self.sizes: list[Dim] = []
        self._slot: dict[Dim, int] = {}
        self._records: dict[str, Any] = {}
        self._whole: dict[Value, str] = {}
        self.views_lines: list[str] = []
        self.step_lines: list[str] = []
        self._build()
        self.source = self._text(name)
        self.filename = f"<tensorgraph {name} {next(_serial)}>"
        linecache.cache[self.filename] = (len(self.source), None, self.source.splitlines(True), self.filename)
        weakref.finalize(self, linecache.cache.pop, self.filename, None)
        space: dict[str, Any] = {
            "np": xp.numpy,
            "F": SimpleNamespace(**self._records),
            "D": SimpleNamespace(**dtypes.ALL),
            "clock": time.perf_counter,
            "spent": self.spent,
        }
        exec(compile(self.source, self.filename, "exec"), space)  # law 9: the one exec, on generated text
        self.views: Callable[..., None] = space["views"]
        self.step: Callable[..., tuple[Any, ...]] = space["step"]

    def bind(self, binding: Mapping[str, int]) -> Bound:
        return Bound(self, binding, plan(self.program, binding))

    @property
    def times(self) -> list[float]:
        """Seconds spent in each kernel so far, if timed."""
        return self.spent

    # -- text
    def _size(self, d: Dim) -> str:
        if type(d) is int:
            return str(d)
        if d not in self._slot:
            self._slot[d] = len(self.sizes)
            self.sizes.append(d)
        return f"s[{self._slot[d]}]"

    def _shape(self, shape: Any) -> str:
        return "(" + "".join(self._size(d) + ", " for d in shape).rstrip(" ") + ")"

    def _ref(self, v: Value) -> str:
        """How `step` names a value: an array of this binding, or an expression on the caller's storage."""
        if v.kind == "leaf":
            return f"P[{v.key!r}]"
        if v.root.kind == "leaf":
            return self._seen(v)
        return f"v.t{v.index}"

    def _seen(self, v: Value) -> str:
        """A view, as an expression on what it looks at. Sizes in it are read from v."""
        assert v.base is not None
        base, view = self._ref(v.base), v.node.op.view
        if view == "permute":
            return f"{base}.transpose({', '.join(map(str, v.node.attrs['axes']))})"
        sizes = "" if v.root.kind != "leaf" else "v."
        if view == "reshape":
            return (
                f"{base}.reshape({sizes}{self._shape(v.shape)})"
                if not sizes
                else f"{base}.reshape({self._at_run(v.shape)})"
            )
        if view == "expand":
            return f"np.broadcast_to({base}, {self._at_run(v.shape) if sizes else self._shape(v.shape)})"
        ranges = ", ".join(self._range(r, d, sizes) for r, d in zip(v.node.attrs["ranges"], v.base.shape, strict=True))
        return f"{base}[{ranges}]"

    def _range(self, r: tuple[Dim, Dim, int], d: Dim, at_run: str) -> str:
        start, stop, step = r
        if step == 1 and dims.same(start, 0) and dims.same(stop, d):
            return ":"
        text = self._run_size if at_run else self._size
        return f"{text(start)}:{text(stop)}" + (f":{step}" if step != 1 else "")

    def _run_size(self, d: Dim) -> str:
        return "v." + self._size(d) if type(d) is not int else str(d)

    def _at_run(self, shape: Any) -> str:
        return "(" + "".join(self._run_size(d) + ", " for d in shape).rstrip(" ") + ")"

    def _attr(self, a: Any) -> str:
        if isinstance(a, DType):
            return f"D.{a.name}"
        if isinstance(a, tuple):
            return "(" + "".join(self._attr(x) + ", " for x in a).rstrip(" ") + ")"
        if hasattr(a, "free_symbols"):
            return self._run_size(a)
        if isinstance(a, float) and (a != a or a in (float("inf"), float("-inf"))):
            return f"float('{a}')"
        return repr(a)

    def _literal(self, v: Value) -> str | None:
        value = v.node.attrs.get("value") if v.kind == "literal" else None
        fine = type(value) in (bool, int, float) and v.dtype.name in ("float32", "float64", "int32", "int64", "bool")
        return self._attr(value) if fine else None

    # -- building
    def _build(self) -> None:
        for v in self.program.values:
            if v.kind == "arena":
                assert v.buffer is not None
                self.views_lines.append(
                    f"v.t{v.index} = a[{v.buffer.index}].reshape({self._shape(v.shape)})  # {self._note(v)}"
                )
            elif v.kind == "view" and v.root.kind != "leaf":
                self.views_lines.append(f"v.t{v.index} = {self._seen(v)}  # {self._note(v)}")
        for n, k in enumerate(self.program.kernels):
            line = self._copy(k) if k.kind == "copy" else self._kernel(k)
            self.step_lines += self._timed(n, f"{line:<{WIDTH}}  # {self._note(k.outputs[0], k)}")
        p = self.program
        for name, key in p.donated.items():
            v = p.outputs[name]
            if v.kind != "leaf" or v.key != key:
                self.step_lines.append(f"np.copyto(P[{key!r}], {self._ref(v)})")
        results = [
            f"{self._ref(v)}.copy()" if v.shape else f"{self._ref(v)}[()]"
            for n, v in p.outputs.items()
            if n not in p.donated
        ]
        self.step_lines.append(f"return ({', '.join(results)}{',' if len(results) == 1 else ''})")

    def _timed(self, n: int, line: str) -> list[str]:
        return ["v.start = clock()", line, f"spent[{n}] += clock() - v.start"] if self.timed else [line]

    def _copy(self, k: Kernel) -> str:
        src, out = k.inputs[0], k.outputs[0]
        whole = f"v.w{out.index}"
        self.views_lines.append(f"{whole} = v.t{out.index}.reshape({self._shape(src.shape)})")
        return f"np.copyto({whole}, {self._ref(src)})"

    def _kernel(self, k: Kernel) -> str:
        op, node = k.node.op, k.node
        outs = [self._ref(o) for o in k.outputs]
        if op.ufunc:
            args = [self._literal(v) or self._ref(v) for v in k.inputs]
            return f"np.{op.ufunc}({', '.join(args)}, out={outs[0]})"
        args = [self._ref(v) for v in k.inputs]
        half = _half(k)
        if op.name == "matmul" and not half:
            return f"np.matmul({', '.join(args)}, out={outs[0]})"
        if op.name == "cast":
            return f"np.copyto({outs[0]}, {args[0]}, casting='unsafe')"
        if op.forward_fn is None:
            raise interpret.no_forward(op)
        self._records[op.name] = op.forward_fn
        full = [a if a is not None else "None" for a in node.args(args)]
        attrs = [f"{n}={self._attr(a)}" for n, a in node.kwargs.items()]
        call = ", ".join(["np", *full, *attrs])
        if op.forward_out and not half:
            return f"F.{op.name}({call}, out={outs[0] if not op.outputs else '(' + ', '.join(outs) + ',)'})"
        if op.outputs:
            return f"{', '.join(o + '[...]' for o in outs)} = F.{op.name}({call})"
        return f"{outs[0]}[...] = F.{op.name}({call})"

    def _note(self, v: Value, k: Kernel | None = None) -> str:
        t = v.node if k is None else k.node
        where = f" ({t.where})" if t.where and k is not None else ""
        path = ("∂" if t.scope.backward else "") + t.scope.path + (f" {t.label}" if t.label else "")
        text = (
            f"{v.dtype.short}{dims.show_shape(v.shape).replace(' ', '')}  {path}{where}"
            if k is not None
            else f"{v.dtype.short} {t.op.name}"
        )
        return "".join(c for c in text if c.isprintable()).rstrip()

    def _text(self, name: str) -> str:
        safe = "".join(c for c in name if c.isprintable())
        sizes = ", ".join(f"s[{i}] = {dims.show(d)}" for i, d in enumerate(self.sizes))
        lines = [f"# {safe}: {len(self.program.kernels)} kernels, {len(self.program.buffers)} buffers; {sizes}"]
        lines += _function("views", "s, a, v", ["v.s = s", *self.views_lines])
        lines += _function("step", "P, v", self.step_lines)
        return "\n".join(lines) + "\n"


def _half(k: Kernel) -> bool:
    return any(v.dtype.is_float and v.dtype.size == 2 for v in (*k.inputs, *k.outputs))


def returns(k: Kernel) -> bool:
    """Whether a kernel makes an array of its own, which is then copied to its place: memory that no plan knows."""
    op = k.node.op
    if k.kind == "copy" or op.name == "cast" or op.ufunc:
        return False
    return _half(k) or not (op.forward_out or op.name == "matmul")


def _function(name: str, args: str, body: list[str]) -> list[str]:
    """A function as lines; a long one in parts, since Python compiles those in linear time."""
    lines: list[str] = []
    parts = range(0, len(body) - CHUNK, CHUNK) if len(body) > 2 * CHUNK else range(0)
    for at in parts:
        lines += [f"def {name}{at // CHUNK}({args}):", *[f"    {x}" for x in body[at : at + CHUNK]], ""]
    rest = body[len(parts) * CHUNK :]
    calls = [f"    {name}{at // CHUNK}({args})" for at in parts]
    return [*lines, f"def {name}({args}):", *calls, *[f"    {x}" for x in rest], ""]


class Bound:
    """A lowered program for one binding: its arena, its arrays and its tables."""

    def __init__(self, lowered: Lowered, binding: Mapping[str, int], memory: Plan) -> None:
        program = lowered.program
        self.memory = memory
        self.arena = np.empty(memory.arena + 64, np.uint8)
        start = -self.arena.ctypes.data % 64
        stretches = []
        for b, at in zip(program.buffers, memory.offsets, strict=True):
            n = dims.evaluate(b.size, binding) * b.dtype.size
            stretches.append(self.arena[start + at : start + at + n].view(b.dtype.np))
        self.v = SimpleNamespace()
        tables = [v for v in program.values if v.kind in ("table", "literal")]
        for v, array in zip(tables, interpret.evaluate([v.node for v in tables], {}, binding), strict=True):
            setattr(self.v, f"t{v.index}", array)
        self.tables = sum(int(a.nbytes) for a in (getattr(self.v, f"t{v.index}") for v in tables))
        lowered.views([dims.evaluate(d, binding) for d in lowered.sizes], stretches, self.v)

    def run(self, lowered: Lowered, P: dict[str, Any]) -> tuple[Any, ...]:
        """Results, for arrays by key."""
        return lowered.step(P, self.v)
