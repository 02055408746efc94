"""Weights of generation in fewer bits: bfloat16, or int8 with a scale for each row, packed once from a net's values."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from tensorgraph.dims import Dim, add, evaluate
from tensorgraph.dtypes import dtype
from tensorgraph.errors import ModelError
from tensorgraph.ops.leaf import param
from tensorgraph.ops.packed import packed_grouped, packed_matmul, packed_rows
from tensorgraph.passes.rewrite import Outputs, transform
from tensorgraph.tensor import Tensor, topological

from .room import Room

if TYPE_CHECKING:
    from .pretrained import Net

Array = np.ndarray[Any, np.dtype[Any]]
KINDS = ("float32", "bfloat16", "int8")
BLOCK = 1 << 16  # elements that are packed at a time


def check(kind: str | None) -> None:
    """Raise ModelError[TG950] for weights that cannot be packed so."""
    if kind is not None and kind not in KINDS:
        raise ModelError("TG950", f"weights cannot be packed as {kind!r}", hint=f"one of {', '.join(KINDS)}")


class Weights:
    """The weights of a graph's products, packed: `outputs` is the graph that reads them, `values` what it reads.

    A weight is packed if a product reads it: row by row of the result, whichever way round the file has it; those of
    experts [E, out, in] as they are. Those that multiply the same x alone (queries, keys and values; gate and up) are
    rows of one: a product, and its parts.
    """

    def __init__(self, outputs: Outputs, kind: str, binding: Mapping[str, int]) -> None:
        self.kind = kind
        found = _products(outputs)
        self.turned = {p.label: transposed for p, transposed in found.items()}
        self._packed: dict[str, tuple[Array, dict[str, Array]]] = {}
        self._read: tuple[Any, dict[str, Array]] = None, {}
        self._together: dict[str, tuple[str, int, int]] = {}  # what a weight is rows of; its first row, and all rows
        self._whole: dict[str, tuple[Array, Array | None]] = {}
        self._room = Room()
        leaves: dict[Tensor, tuple[Tensor, Tensor | None]] = {}
        places: dict[Tensor, tuple[Dim, Dim]] = {}
        for group in _groups(outputs, found):
            shapes = [(*p.shape[:-2], p.shape[-1], p.shape[-2]) if found[p] else p.shape for p in group]
            n = functools.reduce(add, [shape[-2] for shape in shapes])
            label = group[0].label if len(group) == 1 else f"{group[0].label}+{len(group) - 1}"
            rows_of_all = (*shapes[0][:-2], n)
            w = param(f"{label}.{kind}", (*rows_of_all, shapes[0][-1]), kind, trained=False)
            scale = param(f"{label}.scale", rows_of_all, trained=False) if kind == "int8" else None
            for t in (w, scale):
                if t is not None and "used" in group[0].attrs:
                    t.attrs["used"] = group[0].attrs["used"]
            at: Dim = 0
            for p, shape in zip(group, shapes, strict=True):
                rows = shape[-2]
                leaves[p] = w, scale
                if len(group) > 1:
                    places[p] = at, add(at, rows)
                    self._together[p.label] = label, evaluate(at, binding), evaluate(n, binding)
                at = add(at, rows)
        made: dict[tuple[Tensor, Tensor], Tensor] = {}

        def rule(t: Tensor, inputs: tuple[Tensor, ...]) -> Tensor | None:
            if (p := _factor(t)) in leaves:
                if t.op.name == "grouped_matmul":
                    return packed_grouped(inputs[0], *leaves[p], inputs[2])
                if p not in places:
                    return packed_matmul(inputs[0], *leaves[p])
                key = inputs[0], leaves[p][0]
                if key not in made:
                    made[key] = packed_matmul(inputs[0], *leaves[p])
                return made[key][..., places[p][0] : places[p][1]]
            if t.op.name == "take" and t.inputs[0] in leaves:
                return packed_rows(*leaves[t.inputs[0]], inputs[1], dtype=t.dtype)
            return None

        self.outputs = transform(outputs, rule)

    def values(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """The values with weights packed; each is packed again only when it is another array.

        Values that are read from a file are packed as they are read, one at a time, and once.
        """
        if not isinstance(values, dict):
            if self._read[0] is not values:
                self._read = values, {k: a for name in values for k, a in self._put(name, values[name])}
            return self._read[1]
        out = dict(values)
        for name in self.turned:
            source = out.pop(name)
            have = self._packed.get(name)
            if have is None or have[0] is not source:
                have = self._packed[name] = source, dict(self._put(name, source))
            out.update(have[1])
        return out

    def _put(self, name: str, source: Array) -> Iterator[tuple[str, Array]]:
        """What stands for a value, by parameter."""
        if name not in self.turned:
            yield name, source
            return
        part = np.swapaxes(source, -1, -2) if self.turned[name] else source
        *experts, rows, k = part.shape
        name, at, rows = self._together.get(name, (name, 0, rows))
        if name not in self._whole:
            scale = np.empty((*experts, rows), np.float32) if self.kind == "int8" else None
            self._whole[name] = self._room.empty((*experts, rows, k), dtype(self.kind).np), scale
        w, scale = self._whole[name]
        for e in np.ndindex(*experts):
            mine = (*e, slice(at, at + part.shape[-2]))
            pack(part[e], w[mine], None if scale is None else scale[mine])
        yield f"{name}.{self.kind}", w
        if scale is not None:
            yield f"{name}.scale", scale


def pack(w: Array, packed: Array, scale: Array | None) -> None:
    """Rows of w [f, d] in fewer bits into `packed`; for int8 into `scale` [f] that of each, whose largest is 127."""
    step = max(1, BLOCK // max(1, w.shape[1]))
    for at in range(0, len(w), step):
        part = slice(at, at + step)
        if scale is None:
            packed[part] = w[part].astype(packed.dtype)
            continue
        rows = np.ascontiguousarray(w[part], dtype=np.float32)
        scale[part] = np.abs(rows).max(axis=1, initial=0) / np.float32(127)
        steps = rows / np.where(scale[part] > 0, scale[part], np.float32(1))[:, None]
        packed[part] = np.rint(steps, out=steps)


def _weight(t: Tensor) -> Tensor | None:
    """The parameter [.., in, out] or, through a transposition, [.., out, in] that a product's second operand is."""
    if t.op.name == "permute" and t.attrs["axes"] in ((1, 0), (0, 2, 1)):
        t = t.inputs[0]
    return t if t.op.name == "param" and t.ndim in (2, 3) and t.dtype.is_float else None


def _factor(t: Tensor) -> Tensor | None:
    """The parameter that a product can read packed: [in, out] or [out, in], or one such for each group of rows."""
    if t.op.name not in ("matmul", "grouped_matmul"):
        return None
    p = _weight(t.inputs[1])
    return p if p is not None and p.ndim == (2 if t.op.name == "matmul" else 3) else None


def _products(outputs: Outputs) -> dict[Tensor, bool]:
    """Parameters that products read, and nothing else but lookups of rows; whether they are [in, out]."""
    users: dict[Tensor, list[Tensor]] = {}
    nodes = topological(outputs.values())
    for t in nodes:
        for x in set(t.inputs):
            users.setdefault(x, []).append(t)
    found: dict[Tensor, bool] = {}
    for p in nodes:
        if _weight(p) is not p or p in outputs.values():
            continue
        views = [u for u in users[p] if _weight(u) is p]
        through = [(u, v) for v in views for u in users.get(v, ())]
        direct = [u for u in users[p] if _multiplies(u, p)]
        rows = [u for u in users[p] if u.op.name == "take" and u.inputs[0] is p and u.attrs["axis"] == 0]
        if len(users[p]) > len(views) + len(direct) + len(rows) or not all(_multiplies(u, v) for u, v in through):
            continue
        if bool(direct) != bool(through) and not (direct and rows):  # one way round: that of the rows of the result
            found[p] = bool(direct)
    return found


def _groups(outputs: Outputs, found: Mapping[Tensor, bool]) -> list[list[Tensor]]:
    """The parameters found, those together that one product each reads, all of the same x."""
    uses: dict[Tensor, list[Tensor]] = {}  # x of each product; the parameter itself where its rows are looked up
    for t in topological(outputs.values()):
        if (p := _factor(t)) in found:
            uses.setdefault(cast("Tensor", p), []).append(t.inputs[0])
        elif t.op.name == "take":
            uses.setdefault(t.inputs[0], []).append(t.inputs[0])
    groups: dict[Tensor, list[Tensor]] = {}
    for p in found:
        groups.setdefault(p if p.ndim == 3 or len(uses[p]) > 1 else uses[p][0], []).append(p)
    return list(groups.values())


def _multiplies(t: Tensor, w: Tensor) -> bool:
    return _factor(t) is not None and t.inputs[1] is w and t.inputs[0] is not w


def kind_of(net: Net) -> str | None:
    """How the net's weights are packed to generate with, or None: as they are."""
    return None if net.weights == net.dtype else net.weights


def weights(net: Net, outputs: Outputs) -> Weights | None:
    """The net's weights as it is to generate with, or None: as they are."""
    kind = kind_of(net)
    return None if kind is None else Weights(outputs, kind, net.model.binding)


__all__ = ["KINDS", "Weights", "check", "kind_of", "pack"]
