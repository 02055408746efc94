"""Weights of generation in fewer bits: bfloat16, or int8 with a scale for each row, packed once from a net's values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tensorgraph.dtypes import dtype
from tensorgraph.errors import ModelError
from tensorgraph.ops.leaf import param
from tensorgraph.ops.packed import packed_matmul, packed_rows
from tensorgraph.passes.rewrite import Outputs, transform
from tensorgraph.tensor import Tensor, topological

if TYPE_CHECKING:
    from .pretrained import Net

Array = np.ndarray[Any, np.dtype[Any]]
KINDS = ("float32", "bfloat16", "int8")


def check(kind: str | None) -> None:
    """Raise ModelError[TG950] for weights that cannot be packed so."""
    if kind is not None and kind not in KINDS:
        raise ModelError("TG950", f"weights cannot be packed as {kind!r}", hint=f"one of {', '.join(KINDS)}")


class Weights:
    """The weights of a graph's products, packed: `outputs` is the graph that reads them, `values` what it reads.

    A weight is packed if a product reads it: row by row of the result, whichever way round the file has it.
    """

    def __init__(self, outputs: Outputs, kind: str) -> None:
        self.kind = kind
        found = _products(outputs)
        self.turned = {p.label: transposed for p, transposed in found.items()}
        self._packed: dict[str, tuple[Array, Array, Array | None]] = {}
        leaves: dict[Tensor, tuple[Tensor, Tensor | None]] = {}
        for p, transposed in found.items():
            n, k = p.shape[::-1] if transposed else p.shape
            w = param(f"{p.label}.{kind}", (n, k), kind, trained=False)
            scale = param(f"{p.label}.scale", (n,), trained=False) if kind == "int8" else None
            leaves[p] = w, scale

        def rule(t: Tensor, inputs: tuple[Tensor, ...]) -> Tensor | None:
            if t.op.name == "matmul" and (p := _weight(t.inputs[1])) in leaves:
                return packed_matmul(inputs[0], *leaves[p])
            if t.op.name == "take" and t.inputs[0] in leaves:
                return packed_rows(*leaves[t.inputs[0]], inputs[1], dtype=t.dtype)
            return None

        self.outputs = transform(outputs, rule)

    def values(self, values: dict[str, Array]) -> dict[str, Array]:
        """The values with weights packed; each is packed again only when it is another array."""
        out = dict(values)
        for name, transposed in self.turned.items():
            source = out.pop(name)
            have = self._packed.get(name)
            if have is None or have[0] is not source:
                have = self._packed[name] = source, *pack(source.T if transposed else source, self.kind)
            out[f"{name}.{self.kind}"] = have[1]
            if have[2] is not None:
                out[f"{name}.scale"] = have[2]
        return out


def pack(w: Array, kind: str) -> tuple[Array, Array | None]:
    """Rows of w [f, d] in fewer bits, and for int8 the scale [f] of each: its largest magnitude is 127."""
    if kind != "int8":
        return np.ascontiguousarray(w).astype(dtype(kind).np), None
    w = np.ascontiguousarray(w, dtype=np.float32)
    scale = np.abs(w).max(axis=1, initial=0) / np.float32(127)
    steps = w / np.where(scale > 0, scale, np.float32(1))[:, None]
    return np.rint(steps, out=steps).astype(np.int8), scale


def _weight(t: Tensor) -> Tensor | None:
    """The parameter [in, out] or, through a transposition, [out, in] that a product's second operand is."""
    if t.op.name == "permute" and t.attrs["axes"] == (1, 0):
        t = t.inputs[0]
    return t if t.op.name == "param" and t.ndim == 2 and t.dtype.name == "float32" else None


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


def _multiplies(t: Tensor, w: Tensor) -> bool:
    return t.op.name == "matmul" and t.inputs[1] is w and t.inputs[0] is not w


def weights(net: Net, outputs: Outputs) -> Weights | None:
    """The net's weights as it is to generate with, or None: as they are."""
    kind = net.weights
    return None if kind in (None, net.dtype) else Weights(outputs, kind)


__all__ = ["KINDS", "Weights", "check", "pack"]
