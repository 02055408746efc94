"""Optimisers as graphs: the update of every parameter is made of nodes, so a training step is one graph."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias, cast

from . import dims
from .errors import ModelError
from .op import Bad, InputSpec, S, clash, need_dtype, op
from .ops.elementwise import add, cos, exp, expm1, maximum, minimum, mul, sqrt
from .ops.elementwise import cast as cast_
from .ops.leaf import const, input
from .ops.reduce import sum
from .tensor import Scope, Tensor, at, current_loc, scope

SQUARES, SHARE = (
    InputSpec("B d", low=0.0, top=1.0),
    InputSpec("", low=0.1, top=0.9),
)  # a variance; a rate or bias correction
Rate: TypeAlias = "float | Tensor | Callable[[Tensor], Tensor]"


def _adamw_dtype(p: Tensor, g: Tensor, m: Tensor, v: Tensor, *rates: Tensor, **_: Any) -> Any:
    for t, slot in zip((p, g, m, v, *rates), ("p", "g", "m", "v", "rate", "c1", "c2"), strict=True):
        need_dtype("adamw", t, "f", slot)
    return p.dtype, m.dtype, v.dtype


def _adamw_shape(p: Tensor, *rest: Tensor, **_: Any) -> Any:
    for t, slot in zip(rest[:3], ("g", "m", "v"), strict=True):
        if not dims.same_shape(t.shape, p.shape):
            raise clash("TG123", f"adamw: {slot} must have the shape of p", (p, "p", None), (t, slot, None))
    return p.shape, p.shape, p.shape


@op(
    builtin=True,
    outputs=("p", "m", "v"),
    shape=_adamw_shape,
    dtype=_adamw_dtype,
    style="update",
    inplace=(0, 2, 3),
    flops=lambda y, p, *_, **__: dims.mul(16, p.size),
    nodiff="an update",
    samples=[
        S("B d", "B d", "B d", SQUARES, SHARE, SHARE, SHARE, b1=0.9, b2=0.95, eps=1e-8, decay=0.1),
        Bad("B d", "d B", "B d", "B d", "", "", "", match="g must have the shape of p"),
        Bad(*[InputSpec("B", "int32")] * 4, "", "", "", match="must be floating"),
    ],
)
def adamw(
    p: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    rate: Tensor,
    c1: Tensor,
    c2: Tensor,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    decay: float = 0.01,
) -> tuple[Tensor, Tensor, Tensor]:
    """One AdamW update with decoupled decay (Loshchilov and Hutter 2019); c1, c2 are the bias corrections 1 - b^t."""
    g = cast_(g, m.dtype)
    m2 = m * b1 + g * (1.0 - b1)
    v2 = v * b2 + g.square() * (1.0 - b2)
    p2 = p * (1.0 - rate * decay) - rate * (m2 / c1) / (sqrt(v2 / c2) + eps)
    return cast_(p2, p.dtype), m2, v2


BLOCK = 1 << 15  # elements that stay in cache while all steps of the update pass over them


@adamw.forward
def _(
    xp: Any,
    p: Any,
    g: Any,
    m: Any,
    v: Any,
    rate: Any,
    c1: Any,
    c2: Any,
    b1: float,
    b2: float,
    eps: float,
    decay: float,
    out: Any = None,
) -> Any:
    to = out or (p.copy(), m.copy(), v.copy())
    if out:
        for new, old in zip(to, (p, m, v), strict=True):
            if new is not old:
                xp.copyto(new, old)
    flat = [xp.reshape(a, (-1,)) for a in to]
    grad = xp.reshape(g, (-1,))
    kind = m.dtype.type
    keep, small, inv1, inv2 = kind(1) - rate * kind(decay), kind(eps), kind(1) / c1, kind(1) / c2
    for start in range(0, grad.size, BLOCK):
        part = slice(start, start + BLOCK)
        pb, mb, vb, gb = flat[0][part], flat[1][part], flat[2][part], grad[part].astype(m.dtype)
        t = gb * kind(1 - b1)
        mb *= kind(b1)
        mb += t
        xp.multiply(gb, gb, out=t)
        t *= kind(1 - b2)
        vb *= kind(b2)
        vb += t
        xp.multiply(vb, inv2, out=t)
        xp.sqrt(t, out=t)
        t += small
        xp.divide(mb, t, out=t)
        t *= rate * inv1
        if pb.dtype == t.dtype:
            pb *= keep
            pb -= t
        else:
            pb[...] = (pb.astype(t.dtype) * keep - t).astype(pb.dtype)
    return to


class Clock(NamedTuple):
    """The scope of an update, the state's count of steps, the number of the step in hand, and its learning rate."""

    scope: Scope
    step: Tensor
    now: Tensor
    rate: Tensor


class Optimizer:
    """What turns gradients into new parameters. `slots(p)` names its state per parameter; `update` makes the nodes."""

    slots: tuple[str, ...] = ()

    def __init__(self, lr: Rate, clip: float | None = None) -> None:
        if isinstance(lr, (int, float)) and not lr >= 0:
            raise ModelError("TG901", f"the learning rate must not be negative: {lr}")
        if clip is not None and not clip > 0:
            raise ModelError("TG901", f"the clipping norm must be positive: {clip}")
        self.lr, self.clip = lr, clip

    def rate(self, step: Tensor) -> Tensor:
        """The learning rate at a step counted from 1, as a float32 scalar."""
        if callable(self.lr) and not isinstance(self.lr, Tensor):
            return self.lr(cast_(step, "float32"))
        return self.lr if isinstance(self.lr, Tensor) else const(float(self.lr), "float32")

    def clock(self) -> Clock:
        """The steps counted, and the learning rate at the next one: what an update has without any gradient."""
        step = input("step", (), "int32")
        with scope("", kind="update") as here:
            now = step + 1
            return Clock(here, step, now, self.rate(now))

    def build(
        self, params: Mapping[str, Tensor], grads: Mapping[str, Tensor], clock: Clock | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Leaves of the optimiser's state, and what every entry of the state becomes."""
        here, step, now, rate = clock or self.clock()
        state: dict[str, Tensor] = {"step": step}
        after: dict[str, Tensor] = {"step": now}
        with at(here, current_loc()):
            if self.clip is not None:
                grads = clip_by_global_norm(grads, self.clip)
            shared = self.shared(now, rate)
            for name, g in grads.items():
                p = params[name]
                slots = {
                    s: input(f"{s}/{name}", p.shape, "float32" if p.dtype.size < 4 else p.dtype) for s in self.slots
                }
                state.update({f"{s}/{name}": t for s, t in slots.items()})
                new, new_slots = self.update(p, g, slots, shared)
                after[f"params/{name}"] = new
                after.update({f"{s}/{name}": t for s, t in new_slots.items()})
        return state, after

    def shared(self, step: Tensor, rate: Tensor) -> dict[str, Tensor]:
        return {"rate": rate}

    def update(
        self, p: Tensor, g: Tensor, slots: dict[str, Tensor], shared: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        raise NotImplementedError(type(self).__name__)


class AdamW(Optimizer):
    """AdamW with decoupled weight decay. `lr`: a number, a tensor, or a function of the step (see `cosine`, `linear`).

    `clip`: global-norm clipping before the update. All trained parameters decay, as in PyTorch.
    """

    slots = ("m", "v")

    def __init__(
        self,
        lr: Rate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        clip: float | None = None,
    ) -> None:
        super().__init__(lr, clip)
        for b in betas:
            if not 0 <= b < 1:
                raise ModelError("TG901", f"betas must lie in [0, 1): {betas}")
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay

    def shared(self, step: Tensor, rate: Tensor) -> dict[str, Tensor]:
        t = cast_(step, "float32")
        # 1 - b^t by expm1: exact in float32 from the first step on
        c1, c2 = (-expm1(t * math.log(b)) if b > 0 else const(1.0, "float32") for b in self.betas)
        return {"rate": rate, "c1": c1, "c2": c2}

    def update(
        self, p: Tensor, g: Tensor, slots: dict[str, Tensor], shared: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        scalars = [cast_(shared[k], slots["m"].dtype) for k in ("rate", "c1", "c2")]
        new, m, v = cast(
            "Any",
            adamw(
                p,
                g,
                slots["m"],
                slots["v"],
                *scalars,
                b1=self.betas[0],
                b2=self.betas[1],
                eps=self.eps,
                decay=self.weight_decay,
            ),
        )
        return new, {"m": m, "v": v}


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum as PyTorch defines it: m = momentum · m + g; p = p - lr · m."""

    def __init__(self, lr: Rate, momentum: float = 0.0, clip: float | None = None) -> None:
        super().__init__(lr, clip)
        self.momentum = momentum
        self.slots = ("m",) if momentum else ()

    def update(
        self, p: Tensor, g: Tensor, slots: dict[str, Tensor], shared: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        move = slots["m"] * self.momentum + cast_(g, slots["m"].dtype) if self.momentum else g
        return cast_(p - cast_(shared["rate"], p.dtype) * cast_(move, p.dtype), p.dtype), {
            "m": move
        } if self.momentum else {}


def clip_by_global_norm(grads: Mapping[str, Tensor], limit: float) -> dict[str, Tensor]:
    """Gradients scaled so that the norm of all together is at most `limit` (as torch.nn.utils.clip_grad_norm_)."""
    squares = [sum(cast_(g, "float32").square() if g.dtype.size < 4 else g.square()) for g in grads.values()]
    norm = sqrt(functools.reduce(add, squares)).named("grad_norm")
    factor = minimum(limit / (norm + 1e-6), 1.0)
    return {n: mul(g, cast_(factor, g.dtype)) for n, g in grads.items()}


# ------------------------------------------------------------------------------------------- schedules


def _ramp(step: Tensor, warmup: int) -> Tensor:
    return minimum(step / float(max(1, warmup)), 1.0)


def cosine(peak: float, total: int, warmup: int = 0, floor: float = 0.0) -> Callable[[Tensor], Tensor]:
    """Linear warm-up to `peak`, then half a cosine down to `floor` at step `total`."""

    def rate(step: Tensor) -> Tensor:
        done = maximum(minimum((step - float(warmup)) / float(max(1, total - warmup)), 1.0), 0.0)
        return _ramp(step, warmup) * (floor + (peak - floor) * 0.5 * (1.0 + cos(done * math.pi)))

    return rate


def linear(peak: float, total: int, warmup: int = 0, floor: float = 0.0) -> Callable[[Tensor], Tensor]:
    """Linear warm-up to `peak`, then a straight line down to `floor` at step `total`."""

    def rate(step: Tensor) -> Tensor:
        done = maximum(minimum((step - float(warmup)) / float(max(1, total - warmup)), 1.0), 0.0)
        return _ramp(step, warmup) * (peak + (floor - peak) * done)

    return rate


def exponential(start: float, decay: float) -> Callable[[Tensor], Tensor]:
    """start · decay^step."""
    return lambda step: start * exp(step * math.log(decay))


def __dir__() -> list[str]:  # what completion shows
    return sorted(__all__)


__all__ = ["SGD", "AdamW", "Optimizer", "adamw", "clip_by_global_norm", "cosine", "exponential", "linear"]
