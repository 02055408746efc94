"""A product that is only read transposed is computed transposed: (x y)ᵀ = yᵀ xᵀ, and nothing is turned in memory."""

from __future__ import annotations

from ..op import REGISTRY
from ..tensor import Tensor, make
from .program import _users
from .rewrite import Outputs, transform


def orient(outputs: Outputs) -> Outputs:
    """Swap the operands of every product whose readers all are permutations that put its last axis before the other."""
    users, wanted = _users(outputs), set(outputs.values())
    turned = {
        t
        for t, readers in users.items()
        if t.op.name == "matmul"
        and t not in wanted
        and all(x.ndim >= 2 for x in t.inputs)
        and all(u.op.name == "permute" and _turns(u.attrs["axes"]) for u in readers)
    }
    product: dict[Tensor, Tensor] = {}

    def rule(t: Tensor, inputs: tuple[Tensor, ...]) -> Tensor | None:
        if t in turned:
            x, y = (_transposed(i) for i in inputs)
            shape = (*t.shape[:-2], t.shape[-1], t.shape[-2])
            product[t] = make(t.op, (y, x), {}, t.scope, t.loc, (shape, t.dtype, None))
            return None
        if t.op.name == "permute" and t.inputs[0] in turned:
            n = t.ndim
            swap = {n - 1: n - 2, n - 2: n - 1}
            axes = tuple(swap.get(a, a) for a in t.attrs["axes"])
            return make(t.op, (product[t.inputs[0]],), {"axes": axes}, t.scope, t.loc, (t.shape, t.dtype, None))
        return None

    return transform(outputs, rule) if turned else outputs


def _turns(axes: tuple[int, ...]) -> bool:
    return axes.index(len(axes) - 1) < axes.index(len(axes) - 2)


def _transposed(x: Tensor) -> Tensor:
    n = x.ndim
    shape = (*x.shape[:-2], x.shape[-1], x.shape[-2])
    return make(
        REGISTRY["permute"], (x,), {"axes": (*range(n - 2), n - 1, n - 2)}, x.scope, x.loc, (shape, x.dtype, None)
    )


__all__ = ["orient"]
