"""Gradients written outside our graphs: NumPy functions, torch.autograd.Function, JAX functions."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import numpy as np

from ..complex_numpy import guarded
from ..errors import GradError
from ..ops.random import generator
from .explain import explain
from .nodes import value_range
from .reference import (
    EXACT,
    ROUGH,
    adjoint_residual,
    agrees,
    distance,
    extrapolated,
    jvp,
    remainder_order,
    signed,
    unsteady,
)
from .report import KINK, NO_PATH, NONDETERMINISTIC, NONFINITE, PASS, PRECISION, WRONG_VJP, Entry, Report

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

    Returns a Report with an entry per floating argument (numbers whose gradient is None are held as they are). Raises
    GradError[TG414] where the kind is not clear, f returns what is not a float array, or no argument is floating.
    """
    arrays = [np.asarray(a, np.float64) if _is_float(a) else a for a in args]
    numbers = [j for j, a in enumerate(args) if isinstance(a, float)]
    return _check(f, vjp_or_grad, kind, arrays, _names(f, len(args)), name or _called(f), seed, directions, numbers)


def _check(
    f: Any,
    given: Any,
    kind: str | None,
    args: Arrays,
    names: list[str],
    label: str,
    seed: int,
    directions: int,
    numbers: Sequence[int] = (),
) -> Report:
    start = time.perf_counter()
    if not any(map(_is_float, args)):
        raise GradError("TG414", f"{label} is given no floating argument: there is no gradient to check")
    subject = _Subject(f, given, kind, args, names, label, generator(seed))
    entries = subject.misbehaves()
    if not entries:
        wanted = [j for j, a in enumerate(args) if _is_float(a) and not (j in numbers and subject.given[j] is None)]
        entries = [subject.check(j, directions) for j in wanted]
    return Report(entries, [], directions, seed, name=label, seconds=time.perf_counter() - start)


class _Subject:
    """A function with its gradient, at its arguments; both are called on copies."""

    def __init__(
        self, f: Any, given: Any, kind: str | None, args: Arrays, names: list[str], label: str, rng: np.random.Generator
    ) -> None:
        self.f, self.args, self.names, self.label, self.rng = f, args, names, label, rng
        y = f(*deepcopy(args))
        self.several = isinstance(y, (tuple, list))
        self.ys = [np.asarray(v) for v in (y if self.several else (y,))]
        for i, v in enumerate(self.ys):
            if v.dtype.kind != "f":
                kind_ = v.dtype if v.dtype.kind in "iubc" else type(y[i] if self.several else y).__name__
                what = f"{kind_} as result {i}" if self.several else kind_
                raise GradError("TG414", f"{label} returns {what}, not floats")
        self.vs = [signed(rng, np.shape(y)) for y in self.ys]
        self.rule = self._rule(given, kind)
        self.given: list[Any] = []

    def run(self, xs: Sequence[Any]) -> Arrays:
        y = self.f(*deepcopy(list(xs)))
        return [np.asarray(v) for v in (y if isinstance(y, (tuple, list)) else (y,))]

    def only(self, j: int) -> Callable[[Arrays], Arrays]:
        return lambda xs: self.run([*self.args[:j], xs[0], *self.args[j + 1 :]])

    def _rule(self, given: Any, kind: str | None) -> Callable[[Arrays, Arrays], Any]:
        """The given gradient as a function of the cotangents and arguments, as it comes."""
        count, f = len(self.args), self.label
        if not callable(given):
            kind, values = "grad", given
            given = lambda *_: values  # noqa: E731
        if kind is None:
            vjp, grad = _fits(given, count + 1), _fits(given, count)
            if vjp == grad:
                text = f"{_called(given)} may be a vjp(g, *args) or a grad(*args) of {f}"
                text = text if vjp else f"{_called(given)} takes neither (g, *args) nor (*args)"
                raise GradError("TG414", text, hint='kind="vjp"')
            kind = "vjp" if vjp else "grad"
        if kind == "vjp":
            return lambda vs, xs: given(tuple(vs) if self.several else vs[0], *xs)
        if len(self.ys) != 1 or self.ys[0].size != 1:
            shapes = [list(y.shape) for y in self.ys]
            text = f"a gradient needs a function with one number as result, {f} gives {shapes}"
            raise GradError("TG414", text, hint="give a vjp(g, *args)")

        def scaled(vs: Arrays, xs: Arrays) -> Any:
            out = given(*xs)
            v = vs[0].reshape(())
            several = isinstance(out, (tuple, list))
            return [None if c is None else np.asarray(c) * v for c in (out if several else (out,))]

        return scaled

    def cotangents(self, args: Arrays | None = None) -> list[Any]:
        """One per argument, None where none is given."""
        out = self.rule(deepcopy(self.vs), deepcopy(self.args if args is None else args))
        out = list(out) if isinstance(out, (tuple, list)) else [out]
        return [None if c is None else np.asarray(c) for c in out] + [None] * (len(self.args) - len(out))

    def misbehaves(self) -> list[Entry]:
        """Why no derivative can be compared: what is not finite, not the same twice, or written into."""
        label, args = self.label, self.args
        if not all(np.all(np.isfinite(y)) for y in self.ys):
            given = ", ".join(f"{n} in {value_range(a)}" for n, a in zip(self.names, args, strict=True) if _is_float(a))
            return [Entry(NONFINITE, label, np.inf, note=f"the function itself gives nan or inf: {given}")]
        copies, vs = deepcopy(args), deepcopy(self.vs)
        self.f(*copies)
        if written := _written(self.names, args, copies):
            return [Entry(NONDETERMINISTIC, label, np.inf, written, note="the function writes into this argument")]
        if (spread := distance(self.run(args), self.ys)) > EXACT:
            return [Entry(NONDETERMINISTIC, label, spread, note=f"called twice the function differs by {spread:.1e}")]
        try:
            out = self.rule(vs, copies)
            self.given = self.cotangents()
            again = self.cotangents()
        except Exception as why:  # the gradient is the user's code
            return [Entry(WRONG_VJP, label, np.inf, note=f"the gradient fails: {type(why).__name__}: {why}")]
        if written := _written((*self.names, "g"), (*args, self.vs), (*copies, vs)):
            return [Entry(NONDETERMINISTIC, label, np.inf, written, note="the gradient writes into what it is given")]
        count = len(out) if isinstance(out, (tuple, list)) else 1
        missing = [n for n, a in list(zip(self.names, args, strict=True))[count:] if _is_float(a)]
        if count > len(args) or missing:
            note = f"the gradient has {count} part{'s' * (count != 1)} for {len(args)} argument{'s' * (len(args) != 1)}"
            return [Entry(WRONG_VJP, label, np.inf, ", ".join(missing), note=note)]
        for c, d, n in zip(self.given, again, self.names, strict=True):
            fine = c is not None and c.dtype.kind == "f" and bool(np.all(np.isfinite(c))) and c.shape == d.shape
            if fine and (spread := distance([d], [c])) > EXACT:
                return [Entry(NONDETERMINISTIC, label, spread, n, note=f"called twice it differs by {spread:.1e}")]
        return []

    def check(self, j: int, directions: int) -> Entry:
        """The verdict on the gradient by argument j."""
        x, name, label = self.args[j], self.names[j], self.label
        given, fn = self.given[j], self.only(j)
        c = np.zeros(np.shape(x)) if given is None else given
        if c.dtype.kind not in "fiu":
            return Entry(WRONG_VJP, label, np.inf, name, note=f"the gradient holds {c.dtype}, not floats")
        if c.shape != np.shape(x):
            note = f"the gradient has the shape {list(c.shape)}, the argument {list(np.shape(x))}"
            return Entry(WRONG_VJP, label, np.inf, name, note=note)
        if not np.all(np.isfinite(c)):
            return Entry(NONFINITE, label, np.inf, name, note=f"the gradient holds {value_range(c)}")
        rounding = 8 * float(np.finfo(c.dtype).eps) if c.dtype.kind == "f" and c.dtype.itemsize < 8 else 0.0
        worst, method = 0.0, "complex step"
        for _ in range(directions):
            u = signed(self.rng, np.shape(x))
            slope = jvp(fn, [x], [u], trusted=False)
            method = slope.method
            residual = adjoint_residual(c, u, self.vs, slope.value)
            if not agrees(residual, slope) and residual > rounding:
                order = self._remainder(fn, x, u, c) if slope.error > 1e-7 else None
                if order is None or order < 1.7:
                    if note := unsteady(residual, slope):
                        return Entry(PRECISION, label, residual, name, note=note, method=method)
                    return self._wrong(fn, j, u, c, residual, method, given is None)
                method = "order of the remainder"
            worst = max(worst, residual)
        return Entry(PASS, label, worst, inputs={name: worst}, method=method)

    def _remainder(self, fn: Any, x: Any, u: Any, c: Any) -> float | None:
        def value(h: float) -> float:
            return float(sum(np.sum(v * y) for v, y in zip(self.vs, fn([x + h * u]), strict=True)))

        return remainder_order(value, float(np.sum(c * u)))

    def _wrong(self, fn: Any, j: int, u: Any, c: Any, residual: float, method: str, absent: bool) -> Entry:
        name, label = self.names[j], self.label
        if absent:
            note = "no gradient is given for it, and the result depends on it"
            return Entry(NO_PATH, label, residual, name, note=note, method=method)
        if self._kinked(fn, j, c):
            note = "next to a kink; the gradient is one of its subgradients there"
            return Entry(KINK, label, 0.0, name, note=note, method=method)
        error = 1e-9 if method == "complex step" else 1e-6
        note, size = explain(fn, self.args[j], u, self.vs, c, trusted=method == "complex step", error=error)
        return Entry(WRONG_VJP, label, size or residual, name, note=note, method=method)

    def _kinked(self, fn: Any, j: int, c: Any) -> bool:
        """Whether the gradient is right everywhere nearby, here lies among those nearby, and jumps between them."""
        x, near, nearer = self.args[j], [], []
        for _ in range(12):
            reach = self.rng.uniform(0.5, 1, x.shape) * self.rng.choice((-1, 1), x.shape) * np.maximum(1, np.abs(x))
            moved = [x + reach * 1e-4, x + reach * 1e-7]
            try:
                there, closer = (self.cotangents([*self.args[:j], m, *self.args[j + 1 :]])[j] for m in moved)
            except Exception:
                return False
            u = signed(self.rng, x.shape)
            slope = extrapolated(fn, [moved[0]], [u], reach=2e-5)
            if slope.error > ROUGH or adjoint_residual(there, u, self.vs, slope.value) > max(1e-6, 10 * slope.error):
                return False
            near.append(there)
            nearer.append(closer)
        slack = 1e-3 * max(1e-300, float(np.max(np.abs(near))))
        low, high = np.min(near, axis=0), np.max(near, axis=0)
        jump = np.max(np.ptp(nearer, axis=0)) > 0.5 * np.max(high - low)  # of a smooth function it shrinks
        return bool(np.all(c >= low - slack) and np.all(c <= high + slack) and jump and np.max(high - low) > 0)


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


def _fits(fn: Any, count: int) -> bool:
    try:
        inspect.signature(fn).bind(*[None] * count)
    except (TypeError, ValueError):
        return False
    return True


def _written(names: Sequence[str], before: Sequence[Any], after: Sequence[Any]) -> str:
    """The first of the arrays (or lists of them) that are not what they were."""
    for n, a, b in zip(names, before, after, strict=True):
        pairs = zip(a, b, strict=True) if isinstance(a, list) else [(a, b)]
        if not all(np.array_equal(x, y) for x, y in pairs if isinstance(x, np.ndarray)):
            return n
    return ""


def _is_float(x: Any) -> bool:
    return np.asarray(x).dtype.kind == "f"


# ------------------------------------------------------------------------------------------ other frameworks


def check_torch(function: Any, *args: Any, seed: int = 0, directions: int = 2) -> Report:
    """Check the backward of a `torch.autograd.Function` class (or of any function of tensors), in float64.

    `args`: tensors and whatever else the function takes; floating tensors are differentiated. Results that are no
    floating tensors are left out.
    """
    import torch

    call: Callable[..., Any] = getattr(function, "apply", function) if isinstance(function, type) else function
    places = [i for i, a in enumerate(args) if torch.is_tensor(a) and a.is_floating_point()]
    arrays = [args[i].detach().double().cpu().numpy() for i in places]

    def floats(xs: Sequence[Any], grad: bool) -> tuple[list[Any], list[Any]]:
        """The arguments that are differentiated, and the results that are floating."""
        whole, moved = list(args), [torch.tensor(np.asarray(x, np.float64), requires_grad=grad) for x in xs]
        for i, t in zip(places, moved, strict=True):
            whole[i] = t
        y = call(*whole)
        ys = y if isinstance(y, (tuple, list)) else [y]
        return moved, [v for v in ys if torch.is_tensor(v) and v.is_floating_point()]

    def f(*xs: Any) -> Any:
        with torch.no_grad():
            return tuple(v.numpy() for v in floats(xs, False)[1])

    def vjp(gs: Any, *xs: Any) -> Any:
        moved, ys = floats(xs, True)
        used = [(y, torch.tensor(g, dtype=y.dtype)) for y, g in zip(ys, gs, strict=True) if y.requires_grad]
        if not used:
            return [None] * len(xs)
        outs, cotangents = zip(*used, strict=True)
        found = torch.autograd.grad(outs, moved, cotangents, allow_unused=True)
        return tuple(None if c is None else c.numpy() for c in found)

    names = _names(getattr(function, "forward", function), len(args) + 1)
    names = names[1:] if names[0] in ("ctx", "self") else names
    return _check(f, vjp, "vjp", arrays, [names[i] for i in places], _called(function), seed, directions)


def check_jax(function: Callable[..., Any], *args: Any, seed: int = 0, directions: int = 2) -> Report:
    """Check the derivative JAX takes of a function, its `custom_vjp` rules included, in float64.

    `args`: pytrees; their floating arrays are differentiated, Python's numbers and all else is held as it is. Results
    that are no floating arrays are left out.
    """
    import jax

    paths, tree = jax.tree_util.tree_flatten_with_path(args)
    places = [i for i, (_, a) in enumerate(paths) if hasattr(a, "dtype") and _is_float(a)]
    arrays = [np.asarray(paths[i][1], np.float64) for i in places]

    def floats(*moved: Any) -> Any:
        whole = [a for _, a in paths]
        for i, m in zip(places, moved, strict=True):
            whole[i] = m
        ys = jax.tree_util.tree_leaves(function(*jax.tree_util.tree_unflatten(tree, whole)))
        return tuple(y for y in map(jax.numpy.asarray, ys) if jax.numpy.issubdtype(y.dtype, jax.numpy.inexact))

    def f(*xs: Any) -> Any:
        with jax.enable_x64(True), guarded():
            return tuple(np.asarray(v) for v in floats(*map(jax.numpy.asarray, xs)))

    def vjp(gs: Any, *xs: Any) -> Any:
        with jax.enable_x64(True):
            _, back = jax.vjp(floats, *map(jax.numpy.asarray, xs))
            return tuple(map(np.asarray, back(tuple(map(jax.numpy.asarray, gs)))))

    own = _names(function, len(args))
    names = [own[paths[i][0][0].idx] + jax.tree_util.keystr(paths[i][0][1:]) for i in places]
    return _check(f, vjp, "vjp", arrays, names, _called(function), seed, directions)
