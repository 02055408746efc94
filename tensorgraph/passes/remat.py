"""Rematerialisation: forward values are computed again where backward reads them, instead of being kept till then.

A region is what is computed again together: a layer of a stack, or a `checkpoint`. What leaves its region is kept; the
rest is cloned into a scope of kind "recomputed", at the place of its first ∂ reader. It runs after the last pass that
merges equal nodes; random nodes keep their identity, so a clone has the bits of the original (Chen et al. 2016,
arXiv:1604.06174).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from .. import dims
from ..errors import BackendError, SizeError
from ..tensor import PICK, Scope, Tensor, make, reached, scope, topological
from .memory import parse
from .program import size_only
from .rewrite import Outputs, again, date, in_order

SCORES, AGAIN = 1 << 24, 8
CHECKPOINT, RECOMPUTED = "checkpoint", "recomputed"
Regions = Mapping[Tensor, Hashable]


class Choice(NamedTuple):
    """How many layers, from the first on, are computed again; and over how many of them one kept value reaches. Of how
    many attentions the scores are."""

    layers: int = 0
    stride: int = 1
    scores: int = 0

    def __str__(self) -> str:
        kept = f", one value kept for every {self.stride}" if self.stride > 1 else ""
        parts = [f"{self.layers} layers{kept}"] if self.layers else []
        parts += [f"the scores of {self.scores} attentions"] if self.scores else []
        return " and ".join(parts) or "none"


def mode(text: str) -> tuple[str, int | None]:
    """("none" | "block" | "full", None), or ("budget", bytes). Raises BackendError[TG712] for anything else."""
    budget = parse(text.removeprefix("budget=")) if isinstance(text, str) and text.startswith("budget=") else None
    if budget is not None:
        return "budget", budget
    if text in ("none", "block", "full"):
        return text, None
    raise BackendError(
        "TG712", f"unknown rematerialisation {text!r}", hint='"none", "block", "full", or a peak: "budget=2GB"'
    )


@contextmanager
def checkpoint() -> Iterator[Scope]:
    """`with tg.checkpoint():` what is computed here is computed again in the backward pass, and not kept till then."""
    with scope("", kind=CHECKPOINT) as s:
        yield s


# ------------------------------------------------------------------------------------------- what is chosen


def choices(outputs: Outputs) -> list[Choice]:
    """From nothing computed again to the least memory."""
    n = len(set(layers(outputs).values()))
    stride = math.isqrt(n - 1) + 1 if n else 0
    return [Choice(k) for k in range(n + 1)] + ([Choice(n, stride)] if 1 < stride < n else [])


def layers(outputs: Outputs) -> dict[Tensor, int]:
    """The number of the layer in which each forward value is made: `layers.3`; or, without such scopes, of its stretch
    between places where fewest values are alive."""
    forward = _forward(outputs)
    paths = {t: p for t in forward if (p := _numbered(t.scope.path))}
    if not paths:
        return _stretches(forward, outputs)
    places: dict[str, int] = {}
    return {t: places.setdefault(p, len(places)) for t, p in paths.items()}


def _forward(outputs: Outputs) -> list[Tensor]:
    """Values that are no ∂ values nor updates, and what they depend on: merging may have left that in a ∂ scope."""
    nodes = in_order(outputs.values())
    fixed = size_only(nodes)
    plain = [t for t in nodes if not (t.scope.backward or t.scope.kind == "update")]
    inside = set(topological(plain))
    return [t for t in nodes if t in inside and not t.op.leaf and t not in fixed]


def _numbered(path: str) -> str:
    """`encoder.layers.3` of `encoder.layers.3.attn.q`; "" without a number."""
    parts = path.split(".")
    return next((".".join(parts[: i + 1]) for i, p in enumerate(parts) if p.isdigit()), "")


def _stretches(forward: list[Tensor], outputs: Outputs) -> dict[Tensor, int]:
    place = {t: i for i, t in enumerate(forward)}
    last: dict[Tensor, int] = {}
    for t in forward:
        for x in t.inputs:
            if (r := root(x)) in place:
                last[r] = place[t]
    alive: set[Tensor] = set()
    counts: list[int] = []
    for i, t in enumerate(forward):
        alive = {x for x in (*alive, root(t)) if last.get(x, -1) > i}
        counts.append(len(alive))
    fewest = min((n for n in counts if n), default=0)
    least = math.isqrt(len(forward))
    found, number, start = {}, 0, 0
    for i, t in enumerate(forward):
        found[t] = number
        if counts[i] == fewest and i + 1 - start >= least:
            number, start = number + 1, i + 1
    return found


def root(t: Tensor) -> Tensor:
    """The value in memory that a node is a view of, itself if it is none. A reshape across strides is a copy."""
    while t.op is PICK or (t.op.view and not (t.op.view == "reshape" and _strided(t.inputs[0]))):
        t = t.inputs[0]
    return t


def _strided(t: Tensor) -> bool:
    while t.op.view:
        if t.op.view not in ("reshape", "same"):
            return True
        t = t.inputs[0]
    return False


# ---------------------------------------------------------------------------------------------- the pass


def remat(outputs: Outputs, choice: Choice, more: Regions | None = None) -> Outputs:
    """The graph with what `choice` and `checkpoint` name computed again, and `more`."""
    scopes = {t.scope for t in reached(outputs.values())}
    if not any(s.backward for s in scopes) or not (choice.layers or more or any(map(_marked, scopes))):
        return outputs
    number = layers(outputs) if choice.layers else {}
    fine: dict[Tensor, Hashable] = {t: n for t, n in number.items() if n < choice.layers}
    forward = set(_forward(outputs))
    marked = {t: s for t in forward if (s := _marked(t.scope)) is not None}
    coarse: dict[Tensor, Hashable] = {**(more or {})}
    coarse.update({t: n // choice.stride for t, n in number.items() if n < choice.layers})
    coarse.update(marked)
    if not coarse:
        return outputs
    outputs, origin = _recompute(outputs, coarse, forward)
    if choice.stride > 1:  # a second time, within what was computed again
        inner = {c: fine[t] for c, t in origin.items() if t in fine and t not in marked}
        outputs, _ = _recompute(outputs, inner, inner)
    return outputs


def scores(outputs: Outputs, binding: Mapping[str, int]) -> dict[Tensor, Hashable]:
    """Forward products of more than `SCORES` bytes and `AGAIN` times as large as what they are made of, as the scores
    of long attention are, with all that comes of them up to the next products. To make them again costs little beside
    what is done with them; sizes must be known."""

    def known(t: Tensor) -> int:
        try:
            return dims.evaluate(t.size, binding) * t.dtype.size
        except SizeError:
            return 0

    def vast(t: Tensor) -> bool:
        n = known(t)
        return n >= SCORES and all(0 < AGAIN * known(x) <= n for x in t.inputs)

    nodes = reached(outputs.values())
    seeds = {t for t in nodes if t.op.name == "matmul" and not t.scope.backward and vast(t)}
    forward = _forward(outputs) if seeds and any(t.scope.backward for t in nodes) else []
    users: dict[Tensor, list[Tensor]] = {}
    for t in forward:
        for x in t.inputs:
            users.setdefault(x, []).append(t)
    found: dict[Tensor, Hashable] = {}
    for seed in [t for t in forward if t in seeds]:
        region, stack = {seed}, [seed]
        while stack:
            for u in users.get(stack.pop(), ()):
                if u not in region:
                    region.add(u)
                    stack += [] if u.op.name == "matmul" else [u]
        if any(t.op.name == "matmul" for t in region - {seed}):  # else backward follows at once, as after a loss
            found.update(dict.fromkeys(region, ("scores", seed)))
    return found


def _marked(s: Scope) -> Scope | None:
    """The outermost `checkpoint` around a scope."""
    found, at = None, s
    while at is not None and at.parent is not None:
        found, at = (at if at.kind == CHECKPOINT else found), at.parent
    return found


def _recompute(outputs: Outputs, region: Regions, original: Container[Tensor]) -> tuple[Outputs, dict[Tensor, Tensor]]:
    """Clones of what lies in regions, for all readers that are not `original`; and of what each is a clone."""
    nodes = in_order(outputs.values())
    kept = {root(t) for t in outputs.values()}
    for t in nodes:
        if t in original:
            kept |= {r for x in t.inputs if region.get(r := root(x)) != region.get(t)}

    def stays(t: Tensor) -> bool:
        return region.get(r := root(t)) is None or r in kept

    scopes: dict[Scope, Scope] = {}
    clones: dict[Tensor, Tensor] = {}
    new: dict[Tensor, Tensor] = {}

    def clone(t: Tensor) -> Tensor:
        if stays(t):
            return new[t]
        for x in topological([t], stop=_Stays(stays, clones)):
            if x.scope not in scopes:
                scopes[x.scope] = s = x.scope.twin.copy(x.scope.times)
                s.kind = RECOMPUTED
            inputs = tuple([new[i] if stays(i) else clones[i] for i in x.inputs])
            clones[x] = make(x.op, inputs, x.attrs, scopes[x.scope], x.loc, (x.shape, x.dtype, x.specs))
        return clones[t]

    for t in nodes:
        plain = t in original or t in region or t.op.leaf
        inputs = tuple([new[i] if plain else clone(i) for i in t.inputs])
        new[t] = t if inputs == t.inputs else again(t, inputs)
        date(new[t], t.age)
    return {k: new[t] for k, t in outputs.items()}, {c: t for t, c in clones.items()}


class _Stays:
    """What a walk back from a clone stops at: values that are kept, or are cloned already."""

    def __init__(self, stays: Callable[[Tensor], bool], clones: Mapping[Tensor, Tensor]) -> None:
        self.stays, self.clones = stays, clones

    def __contains__(self, t: object) -> bool:
        return isinstance(t, Tensor) and (t in self.clones or self.stays(t))


__all__ = ["Choice", "checkpoint", "choices", "layers", "mode", "remat", "scores"]
