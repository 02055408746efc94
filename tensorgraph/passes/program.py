"""The scheduled program that every backend lowers: kernels in order, what they read and write, and where that lies.

A value lies in an arena buffer, in the caller's storage (inputs, parameters, donated state), in a table that depends on
sizes alone, or is a view of another value. Nothing here knows a number: sizes stay symbols until memory is planned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from .. import dims
from ..dims import Dim, Shape
from ..dtypes import DType
from ..tensor import PICK, Tensor, topological
from .rewrite import Outputs, in_order
from .schedule import schedule

Kind: TypeAlias = "Literal['arena', 'leaf', 'table', 'literal', 'view']"


@dataclass(eq=False)
class Buffer:
    """A stretch of the arena, alive from kernel `first` to kernel `last`. `rows`: of how many rows of this size."""

    index: int
    size: Dim
    dtype: DType
    first: int
    last: int
    node: Tensor
    rows: Callable[[Mapping[str, int]], int] | None = None


@dataclass(eq=False)
class Value:
    """One array of the program. `base` is what a view looks at; `key` names a leaf in the caller's storage."""

    index: int
    node: Tensor
    shape: Shape
    dtype: DType
    kind: Kind
    contiguous: bool = True
    buffer: Buffer | None = None
    base: Value | None = None
    key: str = ""

    @property
    def root(self) -> Value:
        v = self
        while v.base is not None:
            v = v.base
        return v


@dataclass(eq=False)
class Kernel:
    """One step: an op from inputs to outputs. `alias[i]` is the input whose storage output i takes over, or None.

    kind "copy" writes input 0, in row-major order, into output 0 (a reshape that no view can express, or state kept).
    """

    node: Tensor
    inputs: list[Value]
    outputs: list[Value]
    kind: Literal["op", "copy"] = "op"
    alias: tuple[int | None, ...] = ()


BLOCK = 1 << 21  # bytes that a value inside a tile should take for one block of rows,
FEWEST = 256  # where that many rows take no more: each block reads whole what all rows are multiplied by


@dataclass(eq=False)
class Tile:
    """Kernels that run together, block after block of rows: `rows` in each of `entries` of a batch.

    `local`: values that have room for one block, by their columns; `sums`: products that sum over the rows. `causal`:
    columns after a block's last row count for nothing.
    """

    entries: Dim
    rows: Dim
    local: dict[Value, Dim] = field(default_factory=dict)
    sums: set[Kernel] = field(default_factory=set)
    causal: bool = False

    def block(self, binding: Mapping[str, int]) -> tuple[int, int]:
        """(entries, rows) of a block: some whole entries, or some rows of one. It depends on sizes alone."""
        entries, rows = dims.evaluate(self.entries, binding), dims.evaluate(self.rows, binding)
        row = max(dims.evaluate(d, binding) * v.dtype.size for v, d in self.local.items())
        fit = max(BLOCK // max(1, row), FEWEST)
        return (_even(entries, fit // rows), rows) if 0 < rows < fit else (1, _even(rows, fit))

    def room(self, binding: Mapping[str, int]) -> int:
        """Rows of a block."""
        entries, rows = self.block(binding)
        return entries * rows


def _even(n: int, most: int) -> int:
    """The length of parts of about one size, none longer than `most`; at least 1."""
    parts = -(-n // max(1, most))
    return max(1, -(-n // max(1, parts)))


@dataclass(eq=False)
class Program:
    """Kernels in order; all values; arena buffers; what is returned, and which leaves are overwritten with what."""

    kernels: list[Kernel] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    buffers: list[Buffer] = field(default_factory=list)
    leaves: dict[str, Value] = field(default_factory=dict)
    outputs: dict[str, Value] = field(default_factory=dict)
    donated: dict[str, str] = field(default_factory=dict)  # output name -> key of the leaf that it overwrites
    joined: dict[str, list[str]] = field(default_factory=dict)  # our leaf -> those of the caller that it joins


def size_only(nodes: Iterable[Tensor]) -> set[Tensor]:
    """Nodes that depend on sizes alone (masks, RoPE tables, counts): computed once per binding."""
    out: set[Tensor] = set()
    for t in nodes:
        if t.op.name not in ("input", "param") and not t.op.effect and all(i in out for i in t.inputs):
            out.add(t)
    return out


def lower(outputs: Outputs, keys: Mapping[Tensor, str], donate: Mapping[str, Tensor] | None = None) -> Program:
    """The program of a graph. `keys`: each leaf's name in the caller's storage; `donate`: what overwrites leaves."""
    return _Lowering(outputs, keys, dict(donate or {})).run()


class _Lowering:
    def __init__(self, outputs: Outputs, keys: Mapping[Tensor, str], donate: dict[str, Tensor]) -> None:
        self.outputs, self.keys, self.donate = outputs, keys, donate
        self.tables = size_only(in_order(outputs.values()))
        self.users = _users(outputs)
        self.program = Program()
        self.value: dict[Tensor, Value] = {}
        self.parts: dict[Tensor, list[Value]] = {}
        self.overwrite, after = self._overwritten()
        self.order = schedule(outputs.values(), after)

    # -- donated leaves: who may write into them, and after whom
    def _overwritten(self) -> tuple[dict[tuple[Tensor, int], Tensor], dict[Tensor, set[Tensor]]]:
        """Which output of which node may be written straight into a donated leaf; and the readers it must wait for."""
        found: dict[tuple[Tensor, int], Tensor] = {}
        after: dict[Tensor, set[Tensor]] = {}
        for name, leaf in self.donate.items():
            t = self.outputs[name]
            node, index = (t.inputs[0], t.attrs["index"]) if t.op is PICK else (t, 0)
            if not node.op.inplace or node in self.tables or (node, index) in found:
                continue
            slots = [node.op.inplace[index]] if node.specs is not None else list(node.op.inplace)
            if (
                not any(s < len(node.inputs) and node.inputs[s] is leaf for s in slots)
                or not dims.same_shape(t.shape, leaf.shape)
                or t.dtype != leaf.dtype
            ):
                continue
            reads = [(i, x) for i, x in enumerate(node.inputs) if _looks_at(x) is leaf]
            if any(x is not leaf or i not in node.op.inplace for i, x in reads):  # it would read what it has written
                continue
            readers = self._readers(leaf) - {node}
            if readers & self._descendants(node) or (node.inputs.count(leaf) > 1 and node.specs is not None):
                continue
            found[node, index] = leaf
            after.setdefault(node, set()).update(readers)
        return found, after

    def _readers(self, leaf: Tensor) -> set[Tensor]:
        """Nodes that read a leaf's storage, directly or through views."""
        out: set[Tensor] = set()
        stack = [leaf]
        while stack:
            for u in self.users.get(stack.pop(), ()):
                out.add(u)
                if u.op.view:
                    stack.append(u)
        return out

    def _descendants(self, node: Tensor) -> set[Tensor]:
        out: set[Tensor] = set()
        stack = [node]
        while stack:
            for u in self.users.get(stack.pop(), ()):
                if u not in out:
                    out.add(u)
                    stack.append(u)
        return out

    # -- the walk
    def run(self) -> Program:
        program, returned, overwritten = self.program, set(self.outputs.values()), set(self.donate.values())
        for t in self.order:
            if t.op is PICK:
                self.value[t] = self.parts[t.inputs[0]][t.attrs["index"]]
            elif t in self.tables:
                if t.op.name == "const" and not t.shape:
                    self.value[t] = self._new(t, "literal")
                elif t in returned or any(u not in self.tables for u in self.users.get(t, ())):
                    self.value[t] = self._new(t, "table")
            elif t.op.leaf:
                self.value[t] = v = self._new(t, "leaf")
                v.key = self.keys[t]
                program.leaves[v.key] = v
            elif t.op.view:
                self._view(t)
            else:
                self._kernel(t)
        kept: list[Kernel] = []
        for name, t in self.outputs.items():
            v = self.value[t]
            if v.root.kind == "leaf" and self._outlived(name, t, overwritten):
                out = self._new(t, "arena")
                kept.append(Kernel(t, [v], [out], "copy", (None,)))
                v = out
            program.outputs[name] = v
            if name in self.donate:
                program.donated[name] = self.keys[self.donate[name]]
        program.kernels[:0] = kept
        self._lifetimes()
        return program

    def _outlived(self, name: str, t: Tensor, overwritten: set[Tensor]) -> bool:
        """Whether an output is the old value of a leaf that is overwritten, or a view of it: it is copied first."""
        return _looks_at(t) in overwritten and self.donate.get(name) is not t

    def _new(self, t: Tensor, kind: Kind, spec: tuple[Shape, DType] | None = None) -> Value:
        shape, dtype = spec or (t.shape, t.dtype)
        v = Value(len(self.program.values), t, shape, dtype, kind)
        self.program.values.append(v)
        return v

    def _view(self, t: Tensor) -> None:
        base = self.value[t.inputs[0]]
        if t.op.view == "same":
            self.value[t] = base
            return
        if t.op.view == "reshape" and not base.contiguous and not _splits_only(base.shape, t.shape):
            out = self._new(t, "arena")
            self.value[t] = out
            self.program.kernels.append(Kernel(t, [base], [out], "copy", (None,)))
            return
        v = self._new(t, "view")
        v.base = base
        v.contiguous = base.contiguous and (t.op.view == "reshape" or (t.op.view == "permute" and _keeps_order(t)))
        if t.op.view == "slice":
            v.contiguous = base.contiguous and _leading_only(t)
        self.value[t] = v

    def _kernel(self, t: Tensor) -> None:
        specs = t.specs if t.specs is not None else ((t.shape, t.dtype),)
        inputs = [self.value[i] for i in t.inputs]
        outs: list[Value] = []
        alias: list[int | None] = []
        for i, spec in enumerate(specs):
            leaf = self.overwrite.get((t, i))
            if leaf is not None:
                outs.append(self.value[leaf])
                alias.append(next(k for k, x in enumerate(t.inputs) if x is leaf))
            else:
                outs.append(self._new(t, "arena", spec))
                alias.append(None)
        if t.specs is not None:
            self.parts[t] = outs
        else:
            self.value[t] = outs[0]
        self.program.kernels.append(Kernel(t, inputs, outs, "op", tuple(alias)))

    # -- who lies where
    def _lifetimes(self) -> None:
        """Give every arena value a buffer; an elementwise kernel takes over the buffer of an input that ends there."""
        p = self.program
        end = len(p.kernels)
        last: dict[Value, int] = {}
        for n, k in enumerate(p.kernels):
            for v in k.inputs:
                last[v.root] = n
        for v in p.outputs.values():
            last[v.root] = end
        for n, k in enumerate(p.kernels):
            for i, out in enumerate(k.outputs):
                if out.kind != "arena":
                    continue
                taken = self._take_over(k, i, n, last) if k.kind == "op" else None
                if taken is not None:
                    out.buffer = k.inputs[taken].root.buffer
                    k.alias = (*k.alias[:i], taken, *k.alias[i + 1 :])
                else:
                    out.buffer = Buffer(len(p.buffers), dims.size(out.shape), out.dtype, n, n, k.node)
                    p.buffers.append(out.buffer)
                assert out.buffer is not None
                out.buffer.last = max(out.buffer.last, last.get(out, n))

    def _take_over(self, k: Kernel, i: int, n: int, last: dict[Value, int]) -> int | None:
        out = k.outputs[i]
        op = k.node.op
        slots = op.inplace if not op.outputs else op.inplace[i : i + 1]
        for s in slots:
            if s >= len(k.inputs):
                continue
            v = k.inputs[s]
            root = v.root
            if root.kind != "arena" or not v.contiguous or v.dtype != out.dtype or last[root] != n:
                continue
            if not dims.same_shape(v.shape, out.shape) or not dims.same(dims.size(root.shape), dims.size(out.shape)):
                continue
            reads = [(j, o) for j, o in enumerate(k.inputs) if o.root is root]
            if any(o is not v or j not in op.inplace for j, o in reads) or any(
                o.buffer is root.buffer for o in k.outputs[:i]
            ):
                continue
            return s
        return None


def _looks_at(t: Tensor) -> Tensor:
    """What a view is a view of."""
    while t.op.view:
        t = t.inputs[0]
    return t


def _users(outputs: Outputs) -> dict[Tensor, list[Tensor]]:
    users: dict[Tensor, list[Tensor]] = {}
    for t in topological(outputs.values()):
        for i in set(t.inputs):
            users.setdefault(i, []).append(t)
    return users


def _splits_only(old: Shape, new: Shape) -> bool:
    """Whether a reshape only cuts axes, or adds and drops axes of size 1: then it is a view of any layout."""
    rest = [d for d in new if not (type(d) is int and d == 1)]
    for d in old:
        if type(d) is int and d == 1:
            continue
        have: Dim = 1
        while not dims.same(have, d):
            if not rest:
                return False
            have = dims.mul(have, rest.pop(0))
            if len(dims.terms(have)) == 1 and type(have) is int and type(d) is int and have > d:
                return False
    return not rest


def _keeps_order(t: Tensor) -> bool:
    """Whether a permutation moves axes of size 1 only."""
    axes = [a for a in t.attrs["axes"] if not (type(t.inputs[0].shape[a]) is int and t.inputs[0].shape[a] == 1)]
    return axes == sorted(axes)


def _leading_only(t: Tensor) -> bool:
    """Whether a slice leaves a contiguous stretch: it cuts the first axis alone (others of size 1 before it aside)."""
    cut = False
    for d, (start, stop, step) in zip(reversed(t.inputs[0].shape), reversed(t.attrs["ranges"]), strict=True):
        if cut and not (type(d) is int and d == 1):
            return False
        if step != 1 or not dims.same(start, 0) or not dims.same(stop, d):
            cut = True
            if step != 1:
                return False
    return True
