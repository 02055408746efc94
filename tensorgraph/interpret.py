"""The plain way to compute: node by node, by each record's forward. The reference for everything faster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from . import dims
from . import xp as namespaces
from .autodiff import expanded
from .dtypes import DType
from .errors import BackendError, DataError
from .op import Op
from .tensor import Loop, Tensor, identities, topological


def bound(value: Any, binding: Mapping[str, int]) -> Any:
    """An attribute with every size replaced by its value."""
    if isinstance(value, tuple) and not isinstance(value, DType):
        return tuple(bound(v, binding) for v in value)
    return dims.evaluate(value, binding) if hasattr(value, "free_symbols") else value


def shape_of(t: Tensor, binding: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(d if type(d) is int else dims.evaluate(d, binding) for d in t.shape)


def refuse_loop(node: Tensor) -> None:
    """Raise BackendError[TG701] for the frame of a block that is repeated a symbolic number of times."""
    if isinstance(node.attrs.get("loop"), Loop):
        count = dims.show(node.attrs["loop"].count)
        raise BackendError(
            "TG701",
            f"a block repeated a symbolic number of times ({count}) is not run",
            hint="build the model with a number of layers",
        )


def no_forward(op: Op) -> BackendError:
    """The error of an op that has neither a forward nor a definition in smaller ops."""
    hint = f"write one: @{op.name}.forward, a function (xp, *arrays, **attributes)"
    return BackendError("TG702", f"{op.name} has no forward", hint=hint)


def compute(
    node: Tensor,
    args: Iterable[Any],
    binding: Mapping[str, int],
    xp: Any = namespaces.numpy,
    identity: tuple[str, int, int] | None = None,
) -> Any:
    """One node's value from the values of its inputs: by its forward, or by its definition.

    `identity`: what a random node is called within its graph (see `identities`).
    Raises BackendError[TG701] for a block repeated a symbolic number of times, [TG702] for an op without either.
    """
    op, args = node.op, list(args)
    if op.name == "const":
        return xp.asarray(np.asarray(node.attrs["value"], node.attrs["dtype"].np))
    if op.name == "dimension":
        return xp.asarray(np.asarray(dims.evaluate(node.attrs["value"], binding), node.attrs["dtype"].np))
    if op.name == "pick":
        return args[0][node.attrs["index"]]
    refuse_loop(node)
    if op.forward_fn is None:
        if op.body is None:
            raise no_forward(op)
        inner = expanded(node)
        several = isinstance(inner, tuple)
        values = evaluate(inner if several else [inner], dict(zip(node.inputs, args, strict=True)), binding, xp)
        return tuple(values) if several else values[0]
    full = args if not op.has_optional else node.args(args)
    attrs = {k: bound(v, binding) for k, v in node.kwargs.items()}
    if op.effect:
        attrs["identity"] = identity or identities([node])[node]
    y = op.forward_fn(xp, *full, **attrs)
    return tuple(xp.asarray(v) for v in y) if op.outputs else xp.asarray(y)


def evaluate(
    outputs: Iterable[Tensor], values: Mapping[Tensor, Any], binding: Mapping[str, int], xp: Any = namespaces.numpy
) -> list[Any]:
    """Values of `outputs` given the values of leaves (or of any nodes). Frees what is no longer needed.

    Raises DataError[TG501] for an input without a value.
    """
    outputs = list(outputs)
    order = topological(outputs, stop=values)
    uses: dict[Tensor, int] = {}
    for node in order:
        for x in node.inputs:
            uses[x] = uses.get(x, 0) + 1
    for y in outputs:
        uses[y] = uses.get(y, 0) + 1
    have = dict(values)
    own = identities(order)
    for node in order:
        if node.op.leaf and node.op.name in ("input", "param"):
            raise DataError("TG501", f"no value given for {node.label}", notes=[f"{node.label}: {node.type_text}"])
        with np.errstate(all="ignore"):  # nan and inf are results
            have[node] = compute(node, [have[x] for x in node.inputs], binding, xp, own.get(node))
        for x in node.inputs:
            uses[x] -= 1
            if not uses[x] and x not in values:
                have.pop(x, None)
    return [have[y] for y in outputs]
