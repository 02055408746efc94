"""Updates of many small parameters as one: their storage is read and written as one flat array.

An update of a few numbers costs what its calls cost. AdamW works element by element, so that one update of all the
elements gives the same bits. It is the caller who lays parameters and moments one after another; see `join`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from ..ops.leaf import INPUT
from ..ops.movement import concat, reshape
from ..optim import adamw
from ..tensor import PICK, Tensor, at, topological
from . import program as programs
from .program import Program, Value
from .rewrite import Outputs, transform

SMALL = 1 << 12  # elements up to which the calls of an update cost more than its arithmetic
ROLES = (0, 2, 3)  # of adamw's inputs, those that it overwrites: parameter and moments


def lower(outputs: Outputs, keys: Mapping[Tensor, str], donate: Mapping[str, Tensor]) -> Program:
    """The program of a graph (see program.lower), with the updates of small parameters in one."""
    groups = _groups(outputs, donate)
    if not groups:
        return programs.lower(outputs, keys, donate)
    own = {u for us in groups for u in us}
    written = {n: donate[n] for n, t in outputs.items() if t.op is PICK and t.inputs[0] in own}
    rest = {n: t for n, t in outputs.items() if n not in written}
    parts: dict[str, list[Tensor]] = {}  # leaves of one stretch
    flat: list[tuple[Tensor, ...]] = []
    swap: dict[Tensor, Tensor] = {}
    for updates in groups:
        stretches = []
        for role in ROLES:
            leaves = [u.inputs[role] for u in updates]
            key = f"{keys[leaves[0]]} .. {keys[leaves[-1]]}"
            sizes = [cast("int", t.size) for t in leaves]
            first = leaves[0]
            whole = Tensor(INPUT, (), {}, (sum(sizes),), first.dtype, first.scope, first.loc, key)
            start = 0
            for leaf, n in zip(leaves, sizes, strict=True):
                with at(leaf.scope, leaf.loc):
                    swap[leaf] = reshape(whole[start : start + n], leaf.shape)
                start += n
            parts[key] = leaves
            stretches.append(whole)
        flat.append(tuple(stretches))
    gradients = {f"gradient {i} {k}": u.inputs[1] for i, us in enumerate(groups) for k, u in enumerate(us)}
    scalars = {f"scalar {i} {k}": x for i, us in enumerate(groups) for k, x in enumerate(us[0].inputs[4:])}
    new = transform({**rest, **gradients, **scalars}, lambda t, _: swap.get(t))
    together = {n: new[n] for n in rest}
    where = {n: t for n, t in donate.items() if n in rest}
    for i, (updates, (p, m, v)) in enumerate(zip(groups, flat, strict=True)):
        with at(updates[0].scope, updates[0].loc):
            g = concat(*[reshape(new[f"gradient {i} {k}"], (-1,)) for k in range(len(updates))])
            made = adamw(p, g, m, v, *[new[f"scalar {i} {k}"] for k in range(3)], **updates[0].attrs)
        for leaf, t in zip((p, m, v), cast("Any", made), strict=True):
            together[f"new {leaf.label}"], where[f"new {leaf.label}"] = t, leaf
    out = programs.lower(together, {**keys, **{t: t.label for ts in flat for t in ts}}, where)
    for key, leaves in parts.items():
        del out.leaves[key]
        out.joined[key] = [keys[t] for t in leaves]
    for name, leaf in written.items():
        value = Value(len(out.values), leaf, leaf.shape, leaf.dtype, "leaf", key=keys[leaf])
        out.values.append(value)
        out.leaves[value.key] = out.outputs[name] = value
        out.donated[name] = value.key
    return out


def _groups(outputs: Outputs, donate: Mapping[str, Tensor]) -> list[list[Tensor]]:
    """Updates that may be one: small, of equal rates and dtypes, in place, and none of them depending on another."""
    if not any(t.op is PICK and t.inputs[0].op is adamw for t in outputs.values()):
        return []
    order = topological(outputs.values())
    users: dict[Tensor, int] = {}
    for t in order:
        for x in set(t.inputs):
            users[x] = users.get(x, 0) + 1
    picked: dict[Tensor, list[Tensor]] = {}
    for name, t in outputs.items():
        if t.op is PICK and t.inputs[0].op is adamw and t not in users:
            ours = t.inputs[0].inputs[ROLES[t.attrs["index"]]]
            picked.setdefault(t.inputs[0], []).append(ours if donate.get(name) is ours else t)
    found: dict[Any, list[Tensor]] = {}
    for u, leaves in picked.items():
        p, g, m, v = u.inputs[:4]
        kinds = {x.dtype for x in (p, g, m, v)}
        small = all(type(d) is int for d in p.shape) and 0 < cast("int", p.size) <= SMALL
        alone = len(leaves) == users[u] == 3 and {*leaves} == {p, m, v}
        if alone and small and len(kinds) == 1 and p.dtype.size > 2:
            found.setdefault((u.inputs[4:], p.dtype, *u.attrs.values()), []).append(u)
    groups = [us for us in found.values() if len(us) > 1]
    updates = {u for us in groups for u in us}
    after: set[Tensor] = set()
    for t in order:
        if any(x in updates or x in after for x in t.inputs):
            if t in updates:
                return []
            after.add(t)
    return groups


__all__ = ["lower"]
