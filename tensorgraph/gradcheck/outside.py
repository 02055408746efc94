"""Gradients written outside our graphs: NumPy functions, torch.autograd.Function, JAX functions."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import GradError
from .nodes import compare
from .reference import EXACT, adjoint_residual, jvp, remainder_order, richardson, signed
from .report import KINK, NONFINITE, PASS, WRONG_VJP, Entry, Report

Arrays = list[Any]


def check_function(
    f: Callable[..., Any],
    vjp_or_grad: Any,
    *args: Any,
    kind: str | None = None,
    seed: int = 0,
    directions: int = 2,
    name: str = "",
) -> Report:
    """Check a gradient written by hand for a NumPy function `f(*args)`, at these arguments.

    `vjp_or_grad`: `vjp(g, *args)` gives one cotangent per argument (None: no gradient) for the cotangent g of f's
    result (a tuple of them if f returns several); `grad(*args)` gives the gradients of a scalar f; or these gradients
    themselves. Which it is is read off the signature; `kind="vjp"` or `"grad"` says it. The reference is a complex step
    where f takes complex arrays and Richardson extrapolation confirms it, else Richardson extrapolation alone.

    Returns a Report with an entry per floating argument. Raises GradError[TG414] where the kind is not clear, or f
    returns what is not a float array.
    """
    start = time.perf_counter()
    arrays = [np.asarray(a, np.float64) if np.asarray(a).dtype.kind == "f" else a for a in args]
    run = _runner(f)
    ys = run(arrays)
    if any(np.asarray(y).dtype.kind != "f" for y in ys):
        raise GradError("TG414", f"{_called(f)} returns {ys[0].dtype if ys else 'nothing'}, not floats")
    rng = np.random.default_rng(seed)
    vs = [signed(rng, np.shape(y)) for y in ys]
    several = isinstance(f(*arrays), (tuple, list))
    rule = _rule(vjp_or_grad, kind, f, arrays, several, ys)
    names = _names(f, len(arrays))
    label = name or _called(f)
    if not all(np.all(np.isfinite(y)) for y in ys):
        return Report(
            [Entry(NONFINITE, label, np.inf, note="the function itself gives nan or inf")],
            [],
            directions,
            seed,
            name=label,
        )
    entries = []
    for j, a in enumerate(arrays):
        if np.asarray(a).dtype.kind == "f":
            entries.append(_check_argument(run, rule, arrays, j, names[j], label, vs, rng, directions))
    return Report(entries, [], directions, seed, name=label, seconds=time.perf_counter() - start)


def _called(f: Any) -> str:
    return str(getattr(f, "__name__", type(f).__name__))


def _names(f: Callable[..., Any], count: int) -> list[str]:
    try:
        found = [
            p.name
            for p in inspect.signature(f).parameters.values()
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
    except (TypeError, ValueError):
        found = []
    return (found + [f"argument {i}" for i in range(len(found), count)])[:count]


def _runner(f: Callable[..., Any]) -> Callable[[Sequence[Any]], Arrays]:
    def run(xs: Sequence[Any]) -> Arrays:
        y = f(*xs)
        return [np.asarray(v) for v in (y if isinstance(y, (tuple, list)) else (y,))]

    return run


def _fits(fn: Any, count: int) -> bool:
    try:
        inspect.signature(fn).bind(*[None] * count)
    except (TypeError, ValueError):
        return False
    return True


def _rule(given: Any, kind: str | None, f: Any, args: Arrays, several: bool, ys: Arrays) -> Callable[[Arrays], Arrays]:
    """The given gradient as a function from cotangents to one cotangent per argument."""
    if not callable(given):
        kind, values = "grad", given
        given = lambda *_: values  # noqa: E731
    if kind is None:
        vjp, grad = _fits(given, len(args) + 1), _fits(given, len(args))
        if vjp == grad:
            text = f"{_called(given)} may be a vjp(g, *args) or a grad(*args) of {_called(f)}"
            raise GradError(
                "TG414", text if vjp else f"{_called(given)} takes neither (g, *args) nor (*args)", hint='kind="vjp"'
            )
        kind = "vjp" if vjp else "grad"
    if kind == "grad" and (len(ys) != 1 or ys[0].size != 1):
        text = (
            f"a gradient needs a function with one number as result, {_called(f)} gives {[list(y.shape) for y in ys]}"
        )
        raise GradError("TG414", text, hint="give a vjp(g, *args)")

    def rule(vs: Arrays, xs: Arrays | None = None) -> Arrays:
        at = args if xs is None else xs
        out = given(tuple(vs) if several else vs[0], *at) if kind == "vjp" else given(*at)
        out = list(out) if isinstance(out, (tuple, list)) else [out]
        out += [None] * (len(at) - len(out))
        found = [np.zeros(np.shape(a)) if c is None else np.asarray(c) for c, a in zip(out, at, strict=False)]
        return found if kind == "vjp" else [c * vs[0].reshape(()) for c in found]

    return rule


def _check_argument(
    run: Any,
    rule: Any,
    args: Arrays,
    j: int,
    name: str,
    label: str,
    vs: Arrays,
    rng: np.random.Generator,
    directions: int,
) -> Entry:
    def only(xs: Arrays) -> Arrays:
        return run([*args[:j], xs[0], *args[j + 1 :]])

    x = args[j]
    worst, method = 0.0, "complex step"
    for _ in range(directions):
        u = signed(rng, np.shape(x))
        try:
            c = np.asarray(rule(vs)[j])
        except Exception as why:  # the gradient is the user's code
            return Entry(WRONG_VJP, label, np.inf, name, note=f"the gradient fails: {type(why).__name__}: {why}")
        if c.shape != np.shape(x):
            note = f"the gradient has the shape {list(c.shape)}, the argument {list(np.shape(x))}"
            return Entry(WRONG_VJP, label, np.inf, name, note=note)
        if not np.all(np.isfinite(c)):
            return Entry(NONFINITE, label, np.inf, name, note="the gradient holds nan or inf")
        slope = jvp(only, [x], [u], trusted=False)
        method = slope.method
        residual = adjoint_residual(c, u, vs, slope.value)
        if residual > max(EXACT, 10 * slope.error):
            order = _remainder(only, x, u, vs, c) if slope.error > 1e-7 else None
            if order is None or order < 1.7:
                return _wrong(only, rule, args, j, name, label, vs, c, residual, method, rng)
            method = "order of the remainder"
        worst = max(worst, residual)
    return Entry(PASS, label, worst, inputs={name: worst}, method=method)


def _remainder(only: Any, x: Any, u: Any, vs: Arrays, c: Any) -> float | None:
    def value(h: float) -> float:
        return float(sum(np.sum(v * y) for v, y in zip(vs, only([x + h * u]), strict=True)))

    return remainder_order(value, float(np.sum(c * u)))


def _wrong(
    only: Any,
    rule: Any,
    args: Arrays,
    j: int,
    name: str,
    label: str,
    vs: Arrays,
    c: Any,
    residual: float,
    method: str,
    rng: np.random.Generator,
) -> Entry:
    x = args[j]
    if _kinked(only, rule, args, j, vs, c, rng):
        return Entry(
            KINK, label, 0.0, name, note="next to a kink; the gradient is one of its subgradients there", method=method
        )
    note = ""
    if x.size <= 400:
        true = np.zeros(x.size)
        for i in range(x.size):
            e = np.zeros(x.size)
            e[i] = 1.0
            slope = jvp(only, [x], [e.reshape(x.shape)], trusted=False)
            true[i] = sum(float(np.sum(v * w)) for v, w in zip(vs, slope.value, strict=True))
        note = compare(np.asarray(c, np.float64).reshape(-1), true, x.shape, 1e-9 if method == "complex step" else 1e-6)
    return Entry(WRONG_VJP, label, residual, name, note=note, method=method)


def _kinked(only: Any, rule: Any, args: Arrays, j: int, vs: Arrays, c: Any, rng: np.random.Generator) -> bool:
    """Whether the gradient is right everywhere nearby, and here lies among those nearby."""
    x, near = args[j], []
    for _ in range(12):
        move = rng.uniform(0.5, 1, x.shape) * rng.choice((-1, 1), x.shape) * 1e-4 * np.maximum(1, np.abs(x))
        other = [*args[:j], x + move, *args[j + 1 :]]
        try:
            there = np.asarray(rule(vs, other)[j])
        except Exception:
            return False
        u = signed(rng, x.shape)
        slope = richardson(only, [x + move], [u], reach=2e-5)
        if adjoint_residual(there, u, vs, slope.value) > max(1e-6, 10 * slope.error):
            return False
        near.append(there)
    slack = 1e-3 * max(1e-300, float(np.max(np.abs(near))))
    low, high = np.min(near, axis=0), np.max(near, axis=0)
    return bool(np.all(c >= low - slack) and np.all(c <= high + slack) and np.max(high - low) > 2 * slack)


# ------------------------------------------------------------------------------------------ other frameworks


def check_torch(function: Any, *args: Any, seed: int = 0, directions: int = 2) -> Report:
    """Check the backward of a `torch.autograd.Function` class (or of any function of tensors), in float64.

    `args`: tensors and whatever else the function takes; floating tensors are differentiated.
    """
    import torch

    call: Callable[..., Any] = getattr(function, "apply", function) if isinstance(function, type) else function
    arrays = [a.detach().double().numpy() if torch.is_tensor(a) and a.is_floating_point() else a for a in args]

    def tensors(xs: Sequence[Any], grad: bool) -> list[Any]:
        return [torch.tensor(np.asarray(x, np.float64), requires_grad=grad) if _is_float(x) else x for x in xs]

    def f(*xs: Any) -> Any:
        with torch.no_grad():
            y = call(*tensors(xs, False))
        return tuple(v.numpy() for v in y) if isinstance(y, (tuple, list)) else y.numpy()

    def vjp(g: Any, *xs: Any) -> Any:
        given = tensors(xs, True)
        y = call(*given)
        floats = [t for t in given if torch.is_tensor(t) and t.requires_grad]
        gs = [torch.tensor(v) for v in (g if isinstance(g, tuple) else (g,))]
        ys = list(y) if isinstance(y, (tuple, list)) else [y]
        found = iter(torch.autograd.grad(ys, floats, gs, allow_unused=True))
        grads = [next(found) if torch.is_tensor(t) and t.requires_grad else None for t in given]
        return tuple(None if c is None else c.numpy() for c in grads)

    _named_like(f, getattr(function, "forward", function))
    return check_function(f, vjp, *arrays, kind="vjp", seed=seed, directions=directions, name=_called(function))


def check_jax(function: Callable[..., Any], *args: Any, seed: int = 0, directions: int = 2) -> Report:
    """Check the derivative JAX takes of a function, its `custom_vjp` rules included, in float64."""
    import jax

    def f(*xs: Any) -> Any:
        with jax.enable_x64(True):
            y = function(*[jax.numpy.asarray(x) for x in xs])
            return tuple(np.asarray(v) for v in y) if isinstance(y, (tuple, list)) else np.asarray(y)

    def vjp(g: Any, *xs: Any) -> Any:
        with jax.enable_x64(True):
            given = [jax.numpy.asarray(x) for x in xs]
            places = [i for i, x in enumerate(xs) if _is_float(x)]

            def floats(*moved: Any) -> Any:
                whole = list(given)
                for i, m in zip(places, moved, strict=True):
                    whole[i] = m
                return function(*whole)

            _, back = jax.vjp(floats, *[given[i] for i in places])
            found = dict(
                zip(
                    places,
                    back(tuple(map(jax.numpy.asarray, g)) if isinstance(g, tuple) else jax.numpy.asarray(g)),
                    strict=True,
                )
            )
            return tuple(np.asarray(found[i]) if i in found else None for i in range(len(xs)))

    _named_like(f, function)
    arrays = [np.asarray(a, np.float64) if _is_float(a) else a for a in args]
    return check_function(f, vjp, *arrays, kind="vjp", seed=seed, directions=directions, name=_called(function))


def _named_like(f: Any, source: Any) -> None:
    """Let f's arguments be called as those of `source`, where that tells; `ctx` of a torch forward is none."""
    try:
        found = inspect.signature(source)
    except (TypeError, ValueError):
        return
    f.__signature__ = found.replace(parameters=[p for n, p in found.parameters.items() if n not in ("ctx", "self")])


def _is_float(x: Any) -> bool:
    return np.asarray(x).dtype.kind == "f"
