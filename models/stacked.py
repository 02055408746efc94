"""Parameters that a file holds in pieces: a `{}` in their name stands for one tensor per entry of the first axis."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tensorgraph.dims import evaluate
from tensorgraph.io.files import Array
from tensorgraph.nn import Parameter

from .model import Model

HOLE = "{}"


def pieces(name: str, count: int) -> list[str]:
    """The names in a file of a parameter's `count` pieces."""
    return [name.replace(HOLE, str(i), 1) for i in range(count)]


def names_of(name: str, p: Parameter, binding: Mapping[str, int]) -> list[str]:
    """The names in a file of what a parameter called `name` holds: itself, or its pieces."""
    return pieces(name, evaluate(p.shape[0], binding)) if HOLE in name else [name]


def split(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Arrays by parameter -> arrays by the names in a file, views of the same storage."""
    out: dict[str, Array] = {}
    for name, array in arrays.items():
        if HOLE in name:
            out.update(zip(pieces(name, len(array)), array, strict=True))
        else:
            out[name] = array
    return out


class Stacks:
    """Arrays by the names in a file -> arrays by parameter, stacked once: the names then hold views of the stack."""

    def __init__(self, model: Model) -> None:
        self.names = {
            name: names_of(name, p, model.binding) for name, p in model.named_parameters().items() if HOLE in name
        }
        self.held: dict[str, tuple[list[Array], Array]] = {}

    def join(self, state: dict[str, Array]) -> dict[str, Array]:
        """`state` by parameter; itself where nothing is stacked. A piece that was replaced is stacked anew."""
        if not self.names:
            return state
        out = dict(state)
        for name, names in self.names.items():
            parts = [out.pop(n) for n in names]
            views, whole = self.held.get(name, ([], None))
            if whole is None or any(a is not b for a, b in zip(parts, views, strict=True)):
                whole = _stack(parts)
                views = list(whole)
                state.update(zip(names, views, strict=True))
                self.held[name] = views, whole
            out[name] = whole
        return out


def _stack(parts: list[Array]) -> Array:
    """The array that `parts` are the entries of, if they are views of one; else a new one."""
    base = parts[0].base
    if isinstance(base, np.ndarray) and base.shape == (len(parts), *parts[0].shape) and base.dtype == parts[0].dtype:
        step = base.strides[0]
        start = base.__array_interface__["data"][0]
        fits = all(
            p.base is base and p.strides == base.strides[1:] and p.__array_interface__["data"][0] == start + i * step
            for i, p in enumerate(parts)
        )
        if fits:
            return base
    return np.stack(parts)


__all__ = ["HOLE", "Stacks", "names_of", "pieces", "split"]
