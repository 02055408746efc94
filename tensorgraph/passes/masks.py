"""Masks: a large table that elementwise ops make of small ones is not kept; each of its readers makes its elements.

A table depends on sizes alone and is computed once per binding. A mask [T, S] compares positions [T, 1] with [S]: where
it is large, to read it costs more than to make it in the region that needs it.
"""

from __future__ import annotations

from collections.abc import Container, Mapping

from .. import dims
from ..errors import SizeError
from ..tensor import Tensor, make
from .program import Kernel, Program, Value

LARGE = 1 << 22  # bytes: what does not stay in cache
CHEAP = {"less", "less_equal", "greater", "greater_equal", "equal", "not_equal", "logical_and", "logical_or",
         "logical_not", "where", "add", "sub"}  # fmt: skip


def unfold(program: Program, maps: Container[str], binding: Mapping[str, int]) -> None:
    """Replace large tables among the inputs of elementwise kernels (`maps`) by kernels over the reader's shape."""

    def large(t: Tensor) -> bool:
        try:
            return t.op.name in CHEAP and dims.evaluate(t.size, binding) * t.dtype.size >= LARGE
        except SizeError:
            return False

    kernels: list[Kernel] = []
    small: dict[Tensor, Value] = {}
    gone: set[Value] = set()

    def new(t: Tensor, kind: str, shape: dims.Shape) -> Value:
        v = Value(len(program.values), t, shape, t.dtype, kind)  # type: ignore[arg-type]
        program.values.append(v)
        return v

    for k in program.kernels:
        for i, v in enumerate(k.inputs if k.kind == "op" and k.node.op.name in maps else ()):
            if v.kind == "table" and large(v.node):
                made: dict[Tensor, Value] = {}
                stack = [v.node]
                while stack:
                    t = stack[-1]
                    missing = [x for x in t.inputs if x not in made and x not in small]
                    if not large(t):
                        small[t] = new(t, "literal" if t.op.name == "const" and not t.shape else "table", t.shape)
                    elif missing:
                        stack += missing
                        continue
                    else:
                        here = make(t.op, t.inputs, t.attrs, k.node.scope, t.loc, (t.shape, t.dtype, t.specs))
                        made[t] = new(here, "arena", k.outputs[0].shape)
                        inputs = [made[x] if x in made else small[x] for x in t.inputs]
                        kernels.append(Kernel(here, inputs, [made[t]], "op", (None,)))
                    stack.pop()
                k.inputs[i] = made[v.node]
                gone.add(v)
        kernels.append(k)
    program.kernels[:] = kernels
    gone -= {v.root for k in kernels for v in k.inputs} | {v.root for v in program.outputs.values()}
    program.values[:] = [v for v in program.values if v not in gone]
