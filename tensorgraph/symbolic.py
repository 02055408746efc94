"""What a node of a graph is not: a number, an array, a thing that changes. Refused, with what to write instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from .errors import GraphError, OpError
from .op import REGISTRY, operand

# What NumPy calls where an array stands on the left of an operator, and the operator of what stands on the right.
REFLECTED = {
    "add": "__radd__",
    "subtract": "__rsub__",
    "multiply": "__rmul__",
    "divide": "__rtruediv__",
    "matmul": "__rmatmul__",
    "power": "__rpow__",
    "bitwise_and": "__rand__",
    "bitwise_or": "__ror__",
    "less": "__gt__",
    "less_equal": "__ge__",
    "greater": "__lt__",
    "greater_equal": "__le__",
}


def _refuse(what: str, hint: str, error: type[GraphError | OpError] = GraphError, code: str = "TG303") -> Any:
    def method(self: Symbolic, *_: Any, **__: Any) -> NoReturn:
        raise error(code, f"{_name(self)} {what}", operands=[operand(self.__tensor__())], hint=hint)

    return method


def _name(x: Symbolic) -> str:
    t = x.__tensor__()
    return str(t.label or t.op.name)


EVALUATE = "y.eval(x=...) computes it; tg.op functions take it as it is"
REPLACE = "x itself never changes: make another with tg.where(condition, a, x), tg.concat or tg.update_slice"


class Symbolic:
    """What stands for a node: tensors and parameters. `==` is identity between them, so that they are keys of dicts."""

    __slots__ = ()
    __array_priority__ = 1000.0

    def __tensor__(self) -> Any:
        return self

    def __eq__(self, other: object) -> bool:
        """Whether it is the same node. Raises OpError[TG260] for a number or an array: values are compared by ops."""
        if isinstance(other, (int, float, complex, np.generic, np.ndarray)):
            shown = "y" if isinstance(other, np.ndarray) else str(other)
            raise OpError(
                "TG260",
                f"== asks whether {_name(self)} is the same node as something else; it does not compare values",
                operands=[operand(self.__tensor__())],
                hint=f"tg.equal({_name(self)}, {shown}) compares, and tg.not_equal",
            )
        return self is other

    __hash__ = object.__hash__

    __array__ = _refuse("is a node of a graph, not an array", EVALUATE)
    __float__ = _refuse("has no value while the graph is built: float() needs a number", EVALUATE)
    __int__ = _refuse("has no value while the graph is built: int() needs a number", EVALUATE)
    __complex__ = _refuse("has no value while the graph is built: complex() needs a number", EVALUATE)
    __round__ = _refuse("has no value while the graph is built: round() needs a number", "tg.floor(x + 0.5) rounds")
    __setitem__ = _refuse("is a node of a graph: no element of it can be set", REPLACE)
    __delitem__ = _refuse("is a node of a graph: no element of it can be deleted", REPLACE)
    __floordiv__ = __rfloordiv__ = _refuse("takes no //", "tg.floor(x / y)", OpError, "TG262")
    __mod__ = __rmod__ = _refuse("takes no %", "x - tg.floor(x / y) * y", OpError, "TG262")
    __xor__ = __rxor__ = _refuse("takes no ^", "x ** y is a power, tg.not_equal(a, b) exclusive or", OpError, "TG262")

    def _sympy_(self) -> NoReturn:  # so that `size * x` is left to us
        from sympy import SympifyError

        raise SympifyError(self)

    def __format__(self, spec: str) -> str:
        if spec:
            _refuse(f"has no value while the graph is built: it cannot be formatted as {spec!r}", EVALUATE)(self)
        return str(self)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        """`array + x` is our operator; NumPy's functions of elements are refused."""
        reflected = REFLECTED.get(ufunc.__name__)
        if reflected and method == "__call__" and not options and not isinstance(inputs[0], Symbolic):
            return getattr(self, reflected)(inputs[0])
        raise self._numpys(ufunc)

    def __array_function__(self, function: Any, *_: Any) -> Any:
        raise self._numpys(function)

    def _numpys(self, function: Callable[..., Any]) -> OpError:
        name = function.__name__
        ours = next((o.name for o in REGISTRY.values() if name in (o.ufunc, o.name)), None)
        return OpError(
            "TG261",
            f"numpy.{name} takes arrays, and {_name(self)} is a node of a graph",
            operands=[operand(self.__tensor__())],
            hint=f"tg.{ours} takes it" if ours else "tg has functions of its own, and tensors their methods",
        )


def not_a_condition(op: str, slot: str, value: Any) -> OpError:
    """A Python value stands where a tensor of truth values is needed: most likely the result of `==`."""
    return OpError(
        "TG260",
        f"{op}: {slot} is {value}, a {type(value).__name__} of Python, not a tensor of truth values",
        notes=["== asks whether two tensors are the same node; it does not compare values"] * isinstance(value, bool),
        hint="tg.equal(x, 0) compares, as <, <=, > and >= do",
    )
