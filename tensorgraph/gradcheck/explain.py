"""What is the matter with a wrong gradient: a factor, a sign, another order, the elements that differ and where."""

from __future__ import annotations

from typing import Any

import numpy as np

from .reference import Function, Slope, jvp, signed

DIAGNOSED = 600  # elements of an input up to which its whole gradient is taken to say what is wrong
OPAQUE = 100  # the same, of a function that may be slow and needs differences


def explain(
    fn: Function, x: Any, u: Any, vs: list[Any], c: Any, *, trusted: bool, error: float = 1e-9
) -> tuple[str, float]:
    """What is wrong with c, given as the cotangent of x for the cotangents `vs` of fn([x]), in words.

    With max |a - b| / max |b| where the whole gradient was taken (0 where not: then halving finds an element that
    differs, and a factor is one that three directions share). `error`: what the reference knows a derivative to.
    """

    def slope(direction: Any) -> float:
        found: Slope = jvp(fn, [x], [direction], trusted)
        return sum(float(np.sum(v * w)) for v, w in zip(vs, found.value, strict=True))

    def unit(i: int) -> Any:
        e = np.zeros(x.size)
        e[i] = 1.0
        return e.reshape(x.shape)

    x, c = np.asarray(x), np.asarray(c, np.float64)
    if x.size <= (DIAGNOSED if trusted else OPAQUE):
        true = np.array([slope(unit(i)) for i in range(x.size)])
        top = float(np.max(np.abs(true), initial=0.0))
        got = c.reshape(-1)
        return compare(got, true, x.shape, error), float(np.max(np.abs(got - true), initial=0.0)) / top if top else 0.0
    directions = [u, *(signed(np.random.default_rng(k), x.shape) for k in range(2))]
    right = np.array([slope(d) for d in directions])
    got = np.array([float(np.sum(c * d)) for d in directions])
    factor = float(got @ right / (right @ right)) if np.any(right) else 0.0
    if np.any(right) and np.allclose(got, factor * right, rtol=1e3 * error, atol=0):
        return _times(factor, 1e3 * error), 0.0
    low, high = 0, x.size  # one of these elements differs
    while high - low > 1:
        middle = (low + high) // 2
        halves = []
        for start, stop in ((low, middle), (middle, high)):
            part = np.zeros(x.size)
            part[start:stop] = u.reshape(-1)[start:stop]
            halves.append(abs(float(c.reshape(-1) @ part) - slope(part.reshape(x.shape))))
        low, high = (low, middle) if halves[0] >= halves[1] else (middle, high)
    return _at(low, x.shape, c.reshape(-1)[low], slope(unit(low))), 0.0


def compare(got: Any, true: Any, shape: tuple[int, ...], error: float = 1e-9) -> str:
    """What is the matter with `got`, which should be `true` (both flat), and is known to a relative `error`."""
    top = float(np.max(np.abs(true), initial=0.0))
    tol = error * max(top, float(np.max(np.abs(got), initial=0.0)))
    if not np.any(np.abs(got) > tol):
        return "it gives 0, the derivative is not"
    if top <= 1e-300:
        return f"the derivative is 0, it gives up to {np.max(np.abs(got)):.3g}"
    factor = float(got @ true / (true @ true))
    if np.allclose(got, factor * true, rtol=0, atol=tol):
        return _times(factor, error)
    if np.allclose(np.sort(got), np.sort(true), rtol=0, atol=tol):
        swapped = _swap(got, true, shape, tol)
        return f"the right numbers in the wrong places{swapped}"
    bad = np.abs(got - true) > tol
    at_ = int(np.argmax(np.abs(got - true)))
    some = f"{int(bad.sum())} of {got.size} elements differ" if not bad.all() else "every element differs"
    return f"{some}; {_at(at_, shape, got[at_], true[at_])}"


def _times(factor: float, error: float) -> str:
    if abs(factor + 1) < error:
        return "the sign is wrong"
    if not factor:
        return "it gives 0, the derivative is not"
    return f"it gives {apart(factor, 1)[0]} times the derivative"


def _at(i: int, shape: tuple[int, ...], got: float, true: float) -> str:
    place = f"[{', '.join(map(str, np.unravel_index(i, shape)))}]" if shape else "its one element"
    gives, should = apart(got, true)
    return f"at {place} it gives {gives}, the derivative is {should}"


def apart(a: float, b: float) -> tuple[str, str]:
    """Two numbers with as many digits, six at least, as show that they differ."""
    for digits in (6, 9, 12):
        texts = f"{a:.{digits}g}", f"{b:.{digits}g}"
        if texts[0] != texts[1]:
            return texts
    return f"{a:.17g}", f"{b:.17g}"


def _swap(got: Any, true: Any, shape: tuple[int, ...], tol: float) -> str:
    for a in range(len(shape)):
        for b in range(a + 1, len(shape)):
            other = list(shape)
            other[a], other[b] = other[b], other[a]
            if np.allclose(np.swapaxes(got.reshape(other), a, b).reshape(-1), true, rtol=0, atol=tol):
                return f": axes {a} and {b} are swapped"
    return ""


__all__ = ["apart", "compare", "explain"]
