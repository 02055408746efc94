"""Every entry of a gradient by central differences: the plainest check there is, in generated C where there is some."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..autodiff import grad
from ..backends import cpu
from ..backends.cimage import Native, out_of_range
from ..compile import compile
from ..compiled import Compiled
from ..errors import GradError
from ..graph import Graph
from ..tensor import Tensor

STEP = 6e-6  # about the cube root of float64's rounding: truncation and cancellation weigh alike


class Differences:
    """A scalar, compiled in float64 with its gradients; `check(arrays)` compares every entry with central differences.

    `wrt`: names of inputs and parameters; by default all that are floats. A call evaluates the scalar twice per entry.
    Raises GradError[TG401] for what is no scalar.
    """

    def __init__(self, y: Tensor, wrt: Iterable[str] = (), *, backend: str = "auto", binding: Any = None) -> None:
        graph = Graph({"y": y}).astype("float64")
        (self.scalar,) = graph.outputs.values()
        if self.scalar.shape:
            raise GradError("TG401", "central differences are of a scalar", hint="y.sum(), or weigh y's elements")
        leaves = {**graph.inputs, **graph.params}
        self.names = list(wrt) or [n for n, t in leaves.items() if t.dtype.is_float]
        if backend == "auto":
            backend = "c" if cpu.offered() else "numpy"
        self.f: Compiled = compile(self.scalar, backend=backend, binding=binding, name="differences")
        gradients = grad(self.scalar, {n: leaves[n] for n in self.names}, unused="zero")
        self.gradients: Compiled = compile(gradients, backend=backend, binding=binding, name="gradients")

    def check(self, arrays: Mapping[str, Any], step: float = STEP) -> dict[str, float]:
        """For each name the largest difference, relative to the largest entry of all gradients."""
        found, want = self.numeric(arrays, step), self.gradients(**_given(self.gradients, arrays))
        largest = max((float(np.abs(g).max(initial=0)) for g in want.values()), default=0.0) or 1.0
        return {n: float(np.abs(found[n] - want[n]).max(initial=0)) / largest for n in self.names}

    def numeric(self, arrays: Mapping[str, Any], step: float = STEP) -> dict[str, Any]:
        """The central differences, by name."""
        given = _given(self.f, arrays)
        given = {n: np.array(a, np.float64, order="C") if n in self.names else a for n, a in given.items()}
        self.f(**given)  # checks the arrays, and binds sizes
        native = self._native(given, step)
        return native if native is not None else {n: self._plain(given, n, step) for n in self.names}

    def _plain(self, given: dict[str, Any], name: str, step: float) -> Any:
        x = given[name].reshape(-1)
        out = np.empty(x.size)
        for i in range(x.size):
            at = x[i]
            x[i] = at + step
            above = self.f(**given)
            x[i] = at - step
            out[i] = (above - self.f(**given)) / (2 * step)
            x[i] = at
        return out.reshape(given[name].shape)

    def _native(self, given: dict[str, Any], step: float) -> dict[str, Any] | None:
        """All in one call of C for each array, where the program is one."""
        leaves = self.f.program.leaves
        P = {n: given[n] if type(given[n]) is np.ndarray else np.asarray(given[n]) for n in given}
        P = {n: np.ascontiguousarray(P[n], v.dtype.np) for n, v in leaves.items()}
        bound, *_ = self.f._bound[tuple(given), tuple([np.shape(a) for a in given.values()])]
        if not isinstance(bound, Native):
            return None
        bound.run(P)
        (y,) = bound.results
        call, segment = ctypes.addressof(bound.frame.call), ctypes.cast(bound.segment, ctypes.c_void_p).value
        out: dict[str, Any] = {}
        for name in self.names:
            x, out[name] = P[name], np.empty(given[name].shape)
            to = y.ctypes.data, out[name].ctypes.data
            bad = cpu.library().tg_differences(call, segment, x.ctypes.data, x.size, step, *to)
            if bad:
                raise out_of_range()
        return out


def _given(f: Compiled, arrays: Mapping[str, Any]) -> dict[str, Any]:
    return {n: arrays[n] for n in f.program.leaves if n in arrays}


__all__ = ["STEP", "Differences"]
