"""Nodes as functions of their inputs' values, made once and called at many values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ..autodiff import expanded
from ..complex_numpy import complex_numpy
from ..interpret import bound, compute
from ..tensor import Loop, Tensor, topological

Values = dict[Tensor, Any]


def function_of(t: Tensor, binding: Mapping[str, int]) -> Callable[[Sequence[Any]], Any]:
    """What `compute` does for one node in the namespace of the check: its definition is opened once, not each time."""
    op = t.op
    if op.leaf or op.effect or op.name == "pick" or isinstance(t.attrs.get("loop"), Loop):
        return lambda args: compute(t, args, binding, complex_numpy)
    if op.forward_fn is None:
        if op.body is None:
            return lambda args: compute(t, args, binding, complex_numpy)  # raises what it raises
        inner = expanded(t)
        several = isinstance(inner, tuple)
        program = Program(inner if several else [inner], t.inputs, binding)

        def by_definition(args: Sequence[Any]) -> Any:
            ys = program(dict(zip(t.inputs, args, strict=True)))
            return tuple(ys) if several else ys[0]

        return by_definition
    forward, attrs = op.forward_fn, {k: bound(v, binding) for k, v in t.kwargs.items()}

    def by_forward(args: Sequence[Any]) -> Any:
        y = forward(complex_numpy, *(t.args(args) if op.has_optional else args), **attrs)
        return tuple(map(complex_numpy.asarray, y)) if op.outputs else complex_numpy.asarray(y)

    return by_forward


class Program:
    """Outputs as a function of the values of `given` nodes."""

    def __init__(self, outputs: Iterable[Tensor], given: Iterable[Tensor], binding: Mapping[str, int]) -> None:
        self.outputs = list(outputs)
        order = topological(self.outputs, stop=set(given))
        self.steps = [(t, t.inputs, function_of(t, binding)) for t in order]

    def __call__(self, values: Mapping[Tensor, Any]) -> list[Any]:
        have = dict(values)
        for t, inputs, fn in self.steps:
            have[t] = fn([have[x] for x in inputs])
        return [have[y] for y in self.outputs]


__all__ = ["Program", "function_of"]
