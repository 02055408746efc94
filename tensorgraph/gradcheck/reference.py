"""Derivatives of array functions to compare with: complex step, Richardson extrapolation, the order of a remainder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..complex_numpy import guarded, is_complex

STEP = 1e-30  # of the complex step: its square vanishes beside 1, itself stays far from underflow
EXACT = 1e-12  # residuals up to this are rounding, in float64
SETTLED = 1e-6  # a reference this well known needs no other step
ROUGH = 1e-4  # one whose own error is larger decides nothing
REACHES = (2e-2, 2e-4, 2e-6, 2e-9, 0.5)  # the first steps of differences that are tried, until one settles
LONG = np.longdouble if np.finfo(np.longdouble).eps < 1e-18 else np.float64  # where there is none, float64 decides

Function = Callable[[list[Any]], list[Any]]


class Slope(NamedTuple):
    """J u for one direction u: one array per output, with an estimate of its relative error."""

    value: list[Any]
    error: float
    method: str


class NotComplex(Exception):
    """A function that a complex step does not pass through."""


def complex_step(fn: Function, args: Sequence[Any], tangents: Sequence[Any]) -> Slope:
    """Im fn(x + ihu) / h, 0 for a real result. Raises NotComplex if fn refuses complex arrays."""
    moved = [a if u is None else a + (1j * STEP) * u for a, u in zip(args, tangents, strict=True)]
    try:
        with guarded():
            ys = fn(moved)
    except Exception as why:
        raise NotComplex(f"{type(why).__name__}: {why}") from why
    if any(y.dtype.itemsize < 16 for y in ys if is_complex(y)):
        raise NotComplex("the result is rounded to float32")
    with np.errstate(all="ignore"):
        return Slope(
            [np.asarray(y.imag / STEP) if is_complex(y) else np.zeros_like(y) for y in ys], 0.0, "complex step"
        )


def richardson(fn: Function, args: Sequence[Any], tangents: Sequence[Any]) -> Slope:
    """Central differences at halving steps, extrapolated to step 0 in long double (Ridders 1982).

    The error is estimated by the distance of neighbours in the table, so it needs no step size.
    """
    best: Slope | None = None
    for reach in REACHES:
        found = extrapolated(fn, args, tangents, reach)
        rounded = best is not None and best.error < 0.5 and not any(np.any(v) for v in found.value)
        if best is None or (found.error < best.error and not rounded):  # rounded values stand still over small steps
            best = found
        if best.error <= SETTLED:
            break
    assert best is not None
    return best


def extrapolated(fn: Function, args: Sequence[Any], tangents: Sequence[Any], reach: float, rows: int = 8) -> Slope:
    """Richardson extrapolation from differences over `reach`."""
    kinds: list[Any] = [LONG, np.float64] if LONG is not np.float64 else [np.float64]
    for kind in kinds:
        try:
            return _ridders(
                fn,
                [a if u is None else a.astype(kind) for a, u in zip(args, tangents, strict=True)],
                tangents,
                reach,
                rows,
            )
        except (TypeError, ValueError):
            if kind is np.float64:
                raise
    raise AssertionError


def _ridders(fn: Function, args: list[Any], tangents: Sequence[Any], reach: float, rows: int) -> Slope:
    def difference(h: float) -> list[Any]:
        with guarded():
            up = fn([a if u is None else a + u * h for a, u in zip(args, tangents, strict=True)])
            down = fn([a if u is None else a - u * h for a, u in zip(args, tangents, strict=True)])
            return [np.asarray((p - m) / (2 * h)) for p, m in zip(up, down, strict=True)]

    noise = _noise(fn, args, tangents, reach / 2000)
    above: list[list[Any]] = []
    best, error = None, np.inf
    for k in range(rows):
        row = [difference(reach * 0.5**k)]
        for j in range(k):
            with np.errstate(all="ignore"):
                row.append([r + (r - a) / (4.0 ** (j + 1) - 1) for r, a in zip(row[j], above[j], strict=True)])
            size = max((float(np.max(np.abs(r), initial=0.0)) for r in row[j + 1]), default=0.0)
            e = max(
                distance(row[j + 1], row[j]),
                distance(row[j + 1], above[j]),
                noise / (reach * 0.5**k * size) if size else 0.0,
            )
            if e < error:
                best, error = row[j + 1], e
        above = row
    if best is None:
        best = above[-1]
    return Slope([np.asarray(b, np.float64) for b in best], float(error), "Richardson")


def _noise(fn: Function, args: list[Any], tangents: Sequence[Any], h: float) -> float:
    """How unsteady fn's values are: its fourth differences over steps too small for a smooth function to have any.

    The idea of ECnoise (More and Wild 2011); it finds, for instance, a result that was rounded to float32.
    """
    with guarded():
        rows = [
            fn([a if u is None else a + u * (k * h) for a, u in zip(args, tangents, strict=True)]) for k in range(7)
        ]
        worst = 0.0
        for ys in zip(*rows, strict=True):
            fourth = np.diff(np.stack([np.asarray(y) for y in ys]), 4, axis=0)
            worst = max(worst, float(np.max(np.abs(fourth), initial=0.0)))
    return worst / 70**0.5 if np.isfinite(worst) else 0.0


def distance(a: Sequence[Any], b: Sequence[Any]) -> float:
    """max |a - b| relative to the largest of b, over all arrays; NaN never equals NaN."""
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        if not np.size(x):
            continue
        gap, size = float(np.max(np.abs(x - y))), float(np.max(np.abs(y)))
        if not np.isfinite(gap):
            return np.inf
        worst = max(worst, gap / max(size, 1e-300) if gap else 0.0)
    return worst


def jvp(fn: Function, args: Sequence[Any], tangents: Sequence[Any], trusted: bool = True) -> Slope:
    """J u by the sharpest way that works: a complex step, else Richardson extrapolation.

    A function that is not `trusted` to be analytic as written (np.abs, say, is not) needs both to agree.
    """
    if trusted:
        try:
            return complex_step(fn, args, tangents)
        except NotComplex:
            return richardson(fn, args, tangents)
    rough = richardson(fn, args, tangents)
    try:
        sharp = complex_step(fn, args, tangents)
    except NotComplex:
        return rough
    if not any(np.any(s) for s in sharp.value):
        return rough  # nothing says that the imaginary part was not dropped
    size = max((norm(r) for r in rough.value), default=0.0)
    gap = max((norm(s - r) for s, r in zip(sharp.value, rough.value, strict=True)), default=0.0)
    return sharp if gap <= max(1e-6, 100 * rough.error) * size else rough


def agrees(residual: float, slope: Slope) -> bool:
    """Whether a residual is no more than the reference itself may be off; none that is too rough to decide agrees."""
    return residual <= max(EXACT, min(10 * slope.error, 10 * ROUGH))


def unsteady(residual: float, slope: Slope) -> str:
    """In words, that the reference is too rough to tell whether a gradient is wrong; empty if it can."""
    if residual > 10 * slope.error:
        return ""
    return f"its values are too unsteady to tell: differences settle to {slope.error:.1e} of the derivative at best"


def adjoint_residual(cotangent: Any, u: Any, cotangents: Sequence[Any], slope: Sequence[Any]) -> float:
    """|<vjp(v), u> - <v, J u>| over the norm of the elementwise products: it does not grow with the array.

    Infinite if either side is not finite.
    """
    left = np.asarray(cotangent) * u
    rights = [np.asarray(v) * w for v, w in zip(cotangents, slope, strict=True)]
    with np.errstate(all="ignore"):
        gap = abs(np.sum(left) - sum(np.sum(r) for r in rights))
        scale = max(norm(left), sum(norm(r) ** 2 for r in rights) ** 0.5)
    if not np.isfinite(gap) or not np.isfinite(scale):
        return np.inf
    return float(gap / scale) if gap else 0.0


def norm(x: Any) -> float:
    """The Euclidean norm of all elements, without underflow."""
    x = np.asarray(x).reshape(-1)
    square = x @ x
    if 1e-200 < square < 1e200:
        return float(np.sqrt(square))
    top = np.max(np.abs(x), initial=0)
    return float(top * np.sqrt(np.sum(np.square(x / top)))) if top and np.isfinite(top) else float(top)


def signed(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    """A random direction: signs of ±1, magnitudes in [3/4, 5/4).

    Plain ±1 can cancel: where an error is the same in n elements, half of the signs may be minus.
    """
    u = rng.uniform(-0.5, 0.5, shape)
    return np.copysign(0.75, u) + u


def remainder_order(fn: Callable[[float], float], slope: float, reach: float = 0.1, rows: int = 12) -> float | None:
    """The order p with which fn(h) - fn(0) - h·slope vanishes: 2 for a right slope, 1 for a wrong one (Taylor).

    None if the remainders are rounding from the start.
    """
    start = fn(0.0)
    hs = [reach * 0.5**k for k in range(rows)]
    rest = [abs(fn(h) - start - h * slope) for h in hs]
    floor = 100 * np.finfo(np.float64).eps * max(abs(start), abs(slope) * reach, 1e-300)
    kept = [(h, r) for h, r in zip(hs, rest, strict=True) if r > floor]
    if len(kept) < 3:
        return None
    h, r = np.log([k[0] for k in kept[-3:]]), np.log([k[1] for k in kept[-3:]])
    return float(np.polyfit(h, r, 1)[0])
