"""The NumPy backend: a program becomes straight-line source that a person can read, over a planned arena.

`views(s, a, v)` makes the arrays of one binding; `held(P, v)` and `given(P, v)` those of the caller's arrays that
stay from run to run and that come anew; `step(P, v)` runs. No size stands in `step`, so new sizes re-plan and never
rebuild. The text is ours alone: identifiers are generated, foreign names enter by `repr`, comments are stripped.
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
from ..errors import DataError
from ..passes.memory import Plan, nbytes, plan
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
        self._units: dict[str, Any] = {}  # what a backend calls beside the records' forwards
        self.views_lines: list[str] = []
        self.held_lines: list[str] = []
        self.given_lines: list[str] = []
        self.step_lines: list[str] = []
        self._arrays: dict[Value, str] = {}
        self._named: set[Value] = set()  # literals, and views of the caller's arrays, that have their line
        self._build()
        self.source = self._text(name)
        self.filename = f"<tensorgraph {name} {next(_serial)}>"
        linecache.cache[self.filename] = (len(self.source), None, self.source.splitlines(True), self.filename)
        weakref.finalize(self, linecache.cache.pop, self.filename, None)
        space: dict[str, Any] = {
            "np": xp.numpy,
            "F": SimpleNamespace(**self._records),
            "C": SimpleNamespace(**self._units),
            "D": SimpleNamespace(**dtypes.ALL),
            "within": within,
            "clock": time.perf_counter,
            "spent": self.spent,
        }
        exec(compile(self.source, self.filename, "exec"), space)  # law 9: the one exec, on generated text
        self.views: Callable[..., None] = space["views"]
        self.held: Callable[..., None] = space["held"]
        self.given: Callable[..., None] = space["given"]
        self.body: Callable[..., tuple[Any, ...]] = space["step"]

    def step(self, P: Mapping[str, Any], v: Any) -> tuple[Any, ...]:
        """One run, for arrays by key, and the arrays of a binding."""
        arrays: dict[Any, Any] = dict(P)
        self.held(arrays, v)
        self.given(arrays, v)
        return self.body(arrays, v)

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
        """The array of a value: of the binding, of the caller, or a view of the caller's."""
        if v.kind == "leaf":
            return f"P[{v.key!r}]"
        if v.root.kind == "leaf":
            if self._copies(v):
                return self._seen(v)
            if v not in self._named:
                self._named.add(v)
                lines = self.given_lines if self._anew(v.root) else self.held_lines
                text = self._seen(v)
                lines.append(f"P[{v.index}] = {text}  # {self._note(v)}")
            return f"P[{v.index}]"
        if v not in self._named and (value := self._literal(v)) is not None:
            self._named.add(v)
            self.views_lines.append(f"# v.t{v.index} is {value}, {v.dtype.short}")
        return self._arrays.get(v) or f"v.t{v.index}"

    def _anew(self, leaf: Value) -> bool:
        """Whether a run is given this array anew each time: it is an input, and not the run's own state."""
        return leaf.node.op.name == "input" and leaf.key not in self.program.donated.values()

    def _copies(self, v: Value) -> bool:
        """Whether this may be a copy of an array that is overwritten, and so has to be made where it is read."""
        if v.root.key in self.program.joined or v.root.key not in self.program.donated.values():
            return False
        while v.base is not None and v.node.op.view != "reshape":
            v = v.base
        return v.base is not None

    def _seen(self, v: Value) -> str:
        """A view, as an expression on what it looks at. Sizes in it are read from v."""
        assert v.base is not None
        base, view = self._ref(v.base), v.node.op.view
        if view == "permute":
            return f"{base}.transpose({', '.join(map(str, v.node.attrs['axes']))})"
        at_run = v.root.kind == "leaf"
        shape = self._at_run if at_run else self._shape
        if view == "reshape":
            return f"{base}.reshape({shape(v.shape)})"
        if view == "expand":
            return f"np.broadcast_to({base}, {shape(v.shape)})"
        ranges = ", ".join(self._range(r, d, at_run) for r, d in zip(v.node.attrs["ranges"], v.base.shape, strict=True))
        return f"{base}[{ranges}]"

    def _range(self, r: tuple[Dim, Dim, int], d: Dim, at_run: bool) -> str:
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
        seen: dict[Any, str] = {}  # values that take over the buffer of a value of their shape are the same array
        for v in self.program.values:
            if v.kind == "arena":
                assert v.buffer is not None
                where = v.buffer.index, v.shape
                if where not in seen:
                    seen[where] = f"v.t{v.index}"
                    text = f"a[{v.buffer.index}].reshape({self._shape(v.shape)})  # {self._note(v)}"
                    self.views_lines.append(f"v.t{v.index} = {text}")
                self._arrays[v] = seen[where]
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
        self.views_lines.append(f"{whole} = {self._ref(out)}.reshape({self._shape(src.shape)})")
        return f"np.copyto({whole}, {self._ref(src)})"

    def _kernel(self, k: Kernel) -> str:
        op, node = k.node.op, k.node
        args, outs = ([self._ref(v) for v in vs] for vs in (k.inputs, k.outputs))
        if op.ufunc:
            return f"np.{op.ufunc}({', '.join(args)}, out={outs[0]})"
        half = _half(k)
        if op.name == "matmul" and not half:
            return f"np.matmul({', '.join(args)}, out={outs[0]})"
        if op.name in REDUCTIONS and not half and _some(k.inputs[0]):
            axis, keep = node.attrs["axis"], node.attrs["keepdims"]
            return (
                f"np.{REDUCTIONS[op.name]}.reduce({args[0]}, {axis}, D.{k.outputs[0].dtype.name}.np, {outs[0]}, {keep})"
            )
        if op.name == "cast":
            return f"np.copyto({outs[0]}, {args[0]}, casting='unsafe')"
        if op.forward_fn is None:
            raise interpret.no_forward(op)
        name = op.name
        while self._records.setdefault(name, op.forward_fn) is not op.forward_fn:  # another op of this name
            name += "_"
        full = [a if a is not None else "None" for a in node.args(args)]
        for r in op.ranges(*node.args(), **node.kwargs) if op.ranges else ():
            root = node.args(k.inputs)[r.input].root
            if root.kind == "arena" and root.node.op.name not in ORDERS:  # those from outside were looked at before
                what = f"{op.name} in {node.scope.path or 'the graph'} {node.where}".rstrip()
                full[r.input] = f"within({full[r.input]}, {r.low}, {self._run_size(r.high)}, {r.ignored}, {what!r})"
        attrs = [f"{n}={self._attr(a)}" for n, a in node.kwargs.items()]
        call = ", ".join(["np", *full, *attrs])
        if op.forward_out and not half:
            return f"F.{name}({call}, out={outs[0] if not op.outputs else '(' + ', '.join(outs) + ',)'})"
        if op.outputs:
            return f"{', '.join(o + '[...]' for o in outs)} = F.{name}({call})"
        return f"{outs[0]}[...] = F.{name}({call})"

    def _note(self, v: Value, k: Kernel | None = None) -> str:
        t = v.node if k is None else k.node
        where = f" ({t.where})" if t.where and k is not None else ""
        path = ("∂" if t.scope.backward else "") + t.scope.path + (f" {t.label}" if t.label else "")
        text = (
            f"{v.dtype.short}{dims.show_shape(v.shape).replace(' ', '')}  {path}{where}"
            if k is not None
            else f"{v.dtype.short} {t.op.name}"
        )
        return _printable(text).rstrip()

    def _text(self, name: str) -> str:
        safe = _printable(name)
        sizes = ", ".join(f"s[{i}] = {dims.show(d)}" for i, d in enumerate(self.sizes))
        lines = [f"# {safe}: {len(self.program.kernels)} kernels, {len(self.program.buffers)} buffers; {sizes}"]
        lines += _function("views", "s, a, v", ["v.s = s", *self.views_lines])
        lines += _function("held", "P, v", self.held_lines or ["pass"])
        lines += _function("given", "P, v", self.given_lines or ["pass"])
        lines += _function("step", "P, v", self.step_lines)
        return "\n".join(lines) + "\n"


ORDERS = {"argsort", "argmax"}  # what they make are indices
REDUCTIONS = {"sum": "add", "max": "maximum", "min": "minimum"}


def within(ids: Any, low: int, high: int, ignored: int | None, what: str) -> Any:
    """Indices that the graph computed. Raises DataError[TG505] for one outside [low, high)."""
    if ids.size and (ids.min() < low or ids.max() >= high):
        wrong = ids[(ids < low) | (ids >= high)]
        wrong = wrong if ignored is None else wrong[wrong != ignored]
        if wrong.size:
            raise DataError("TG505", f"an index computed by the graph is {int(wrong[0])}, outside [{low}, {high})",
                            notes=[f"needed by {what}"])  # fmt: skip
    return ids


def _some(v: Value) -> bool:
    """Whether a value has elements, whatever the sizes."""
    return all(dims.at_least(d, 1) for d in v.shape)


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(c for c in text if c.isprintable())


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
    """A lowered program for one binding: its arena, its arrays and its tables. An interrupt may come in the middle."""

    atomic = False

    def __init__(self, lowered: Lowered, binding: Mapping[str, int], memory: Plan) -> None:
        program = lowered.program
        self.lowered, self.memory = lowered, memory
        self.arena = np.empty(memory.arena + 64, np.uint8)
        start = -self.arena.ctypes.data % 64
        stretches = []
        for b, at in zip(program.buffers, memory.offsets, strict=True):
            n = nbytes(b, binding)
            stretches.append(self.arena[start + at : start + at + n].view(b.dtype.np))
        self.v = SimpleNamespace()
        tables = [v for v in program.values if v.kind in ("table", "literal")]
        for v, array in zip(tables, interpret.evaluate([v.node for v in tables], {}, binding), strict=True):
            setattr(self.v, f"t{v.index}", np.asarray(array, v.dtype.np))  # NumPy promotes by other rules
        self.tables = sum(int(a.nbytes) for a in (getattr(self.v, f"t{v.index}") for v in tables))
        lowered.views([dims.evaluate(d, binding) for d in lowered.sizes], stretches, self.v)

    def run(self, P: dict[str, Any]) -> tuple[Any, ...]:
        """Results, for arrays by key."""
        lowered, joined = self.lowered, self.lowered.program.joined
        if not joined:
            return lowered.step(P, self.v)
        whole = {key: join([P[k] for k in keys]) for key, keys in joined.items()}
        results = lowered.step({**P, **{key: flat for key, (flat, _) in whole.items()}}, self.v)
        for key, (flat, copied) in whole.items():
            if copied:
                for k, part in zip(joined[key], split(flat, [P[k] for k in joined[key]]), strict=True):
                    P[k][...] = part
        return results

    def repeat(self, P: dict[str, Any], given: Mapping[str, Any], ranges: list[Any]) -> Any:
        """The same call again, with the arrays `given` anew each time; None if they have to be made fit."""
        lowered = self.lowered
        leaves = lowered.program.leaves
        if any(k not in leaves or type(a) is not np.ndarray or a.dtype != P[k].dtype for k, a in given.items()):
            return None
        arrays = {k: P[k] for k in leaves}
        for key, keys in lowered.program.joined.items():
            flat, copied = join([P[k] for k in keys])
            if copied:
                return None
            arrays[key] = flat
        return Repeat(lowered, self, arrays, given, ranges)


class Repeat:
    """A program called again on the same state: what does not change is looked up once."""

    atomic = False

    def __init__(
        self, lowered: Lowered, bound: Bound, P: dict[Any, Any], given: Mapping[str, Any], ranges: list[Any]
    ) -> None:
        self.lowered, self.v, self.P = lowered, bound.v, P
        self.like = {k: (a.dtype, a.shape) for k, a in given.items()}
        self.ranges = ranges
        lowered.held(P, self.v)

    def __call__(self, given: Mapping[str, Any]) -> tuple[Any, ...] | None:
        """Results; None if the arrays given are not like those of the first call, or may be out of range: nothing was
        done."""
        P = self.P
        if given.keys() != self.like.keys():
            return None
        for k, a in given.items():
            if type(a) is not np.ndarray or (a.dtype, a.shape) != self.like[k]:
                return None
            P[k] = a
        for k, low, high, _ in self.ranges:
            a = P[k]
            if a.size and (np.minimum.reduce(a, None) < low or np.maximum.reduce(a, None) >= high):
                return None
        with np.errstate(all="ignore"):
            self.lowered.given(P, self.v)
            return self.lowered.body(P, self.v)


def join(parts: list[Any]) -> tuple[Any, bool]:
    """One flat array of arrays of a dtype: themselves, where they lie after one another in memory, or else a copy."""
    at, base = parts[0].ctypes.data, parts[0].base
    if type(base) is np.ndarray and all(a.base is base and a.flags.c_contiguous and a.flags.writeable for a in parts):
        ends = [a.ctypes.data for a in parts[1:]]
        if ends == list(itertools.accumulate([a.nbytes for a in parts[:-1]], initial=at))[1:]:
            n = sum(a.nbytes for a in parts)
            whole = base.reshape(-1).view(np.uint8)
            start = at - whole.ctypes.data
            return whole[start : start + n].view(parts[0].dtype), False
    return np.concatenate([a.reshape(-1) for a in parts]), True


def split(flat: Any, like: list[Any]) -> list[Any]:
    """The parts of a flat array, in the shapes of `like`."""
    ends = list(itertools.accumulate([a.size for a in like]))
    return [flat[e - a.size : e].reshape(a.shape) for e, a in zip(ends, like, strict=True)]
