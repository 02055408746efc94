"""The namespace a forward runs with while it is checked: NumPy, made safe for complex-step derivatives.

A derivative by complex step is Im f(x + ih) / h (Squire and Trapp 1998): exact to rounding, without a step size to
choose, as long as f is analytic in its argument. NumPy's own functions are not: `abs` returns the modulus, ties of
`maximum` are broken by the imaginary part, `sqrt` of a negative is imaginary. Here whatever *decides* (comparisons,
extremes, order, rounding) looks at the real part alone; functions outside their real domain give NaN; functions
that are not analytic are refused. Real arguments, long double included, mean what they mean in NumPy.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

from .dtypes import DType
from .errors import GradError
from .xp import Namespace

REFUSED = (
    *("conj", "conjugate", "vdot", "vecdot", "std", "var", "nanstd", "nanvar", "angle"),
    *("iscomplexobj", "isrealobj", "linalg"),
)
BY_REAL_PART = (  # results that are constant but at jumps: of the real part, with no derivative
    *("greater", "greater_equal", "less", "less_equal", "equal", "not_equal", "sign", "signbit", "heaviside"),
    *("floor", "ceil", "rint", "round", "trunc", "fix", "floor_divide", "argsort", "argmax", "argmin"),
    *("argpartition", "lexsort", "searchsorted", "digitize", "isfinite", "isnan", "isinf", "logical_and"),
    *("logical_or", "logical_not", "logical_xor", "nonzero", "argwhere", "count_nonzero", "any", "all"),
)


class NotAnalytic(GradError):
    """A forward called a function through which no complex step passes."""

    __module__ = "tensorgraph"


def _into(fn: Callable[..., Any]) -> Any:
    """`fn` with NumPy's `out=`, into which the result is copied."""

    def function(*args: Any, out: Any = None, **kwargs: Any) -> Any:
        y = fn(*args, **kwargs)
        if out is None:
            return y
        np.copyto(out, y, casting="same_kind")
        return out

    return staticmethod(function)


def is_complex(*xs: Any) -> bool:
    return any((isinstance(x, (np.ndarray, np.generic)) and x.dtype.kind == "c") or type(x) is complex for x in xs)


def real(x: Any) -> Any:
    """The real part of an array; anything else as it is."""
    return x.real if is_complex(x) else x


def _inside(value: Any, fine: Any) -> Any:
    """`value` where `fine`, else NaN (in both parts, so that nothing downstream takes it for a number)."""
    if np.all(fine):
        return value
    return np.where(fine, value, complex(np.nan, np.nan) if is_complex(value) else np.nan)


def _domain(name: str, fine: Callable[[Any], Any]) -> Any:
    def function(x: Any) -> Any:
        return _inside(getattr(np, name)(x), fine(x.real)) if is_complex(x) else getattr(np, name)(x)

    return function


def _power(x: Any, y: Any) -> Any:
    if not is_complex(x, y):
        return np.power(x, y)
    whole = not is_complex(y) and bool(np.all(np.asarray(y) == np.rint(y)))
    return np.power(x, y) if whole else _inside(np.power(x, y), real(x) >= 0)


def _pairwise(name: str) -> Any:
    """maximum or minimum: the first argument where real parts tie, NaN if either is."""
    wins = {"maximum": np.greater_equal, "minimum": np.less_equal, "fmax": np.greater_equal, "fmin": np.less_equal}[
        name
    ]

    def function(x: Any, y: Any) -> Any:
        if not is_complex(x, y):
            return getattr(np, name)(x, y)
        first, second = real(x), real(y)
        if name.startswith("f"):
            return np.where(wins(first, second) | np.isnan(second), x, y)
        return np.where(wins(first, second) | np.isnan(first), x, y)

    return function


def _flat_axes(x: Any, axis: Any) -> tuple[Any, tuple[int, ...]]:
    """x with the reduced axes flattened into a last one, and which they were."""
    axes = (
        tuple(range(x.ndim))
        if axis is None
        else tuple(a % x.ndim for a in (axis if isinstance(axis, tuple) else (axis,)))
    )
    kept = [i for i in range(x.ndim) if i not in axes]
    return np.transpose(x, (*kept, *axes)).reshape(*(x.shape[i] for i in kept), -1), axes


def _extreme(name: str, arg: str) -> Any:
    def function(x: Any, axis: Any = None, keepdims: bool = False, **initial: Any) -> Any:
        if not is_complex(x) or not x.size:
            return getattr(np, name)(x, axis=axis, keepdims=keepdims, **initial)
        if initial:
            raise NotAnalytic("TG410", f"{name} with `initial` is not checked by complex step")
        flat, axes = _flat_axes(x, axis)
        place = getattr(np, arg)(flat.real, axis=-1, keepdims=True)
        y = np.take_along_axis(flat, place, -1)[..., 0]
        return y.reshape(tuple(1 if i in axes else n for i, n in enumerate(x.shape))) if keepdims else y

    return function


class ComplexNumpy(Namespace):
    """NumPy for the checker. Functions it refuses raise NotAnalytic[TG410]; use it inside `guarded()`."""

    def __init__(self) -> None:
        super().__init__(np, "scipy.special")

    def __getattr__(self, name: str) -> Any:
        if name in REFUSED:
            return _refuse(name)
        if name in BY_REAL_PART:
            fn = getattr(np, name)
            return lambda *args, **kwargs: fn(*map(real, args), **kwargs)
        return super().__getattr__(name)

    maximum, minimum = _into(_pairwise("maximum")), _into(_pairwise("minimum"))
    fmax, fmin = _into(_pairwise("fmax")), _into(_pairwise("fmin"))
    max = amax = _into(_extreme("max", "argmax"))
    min = amin = _into(_extreme("min", "argmin"))
    sqrt = _into(_domain("sqrt", lambda r: r >= 0))
    log, log2, log10 = (_into(_domain(n, lambda r: r >= 0)) for n in ("log", "log2", "log10"))
    log1p = _into(_domain("log1p", lambda r: r >= -1))
    arcsin, arccos = (_into(_domain(n, lambda r: np.abs(r) <= 1)) for n in ("arcsin", "arccos"))
    arctanh = _into(_domain("arctanh", lambda r: np.abs(r) < 1))
    arccosh = _into(_domain("arccosh", lambda r: r >= 1))
    power = float_power = _into(_power)

    @_into
    def absolute(x: Any) -> Any:
        """The analytic |x|: sign(Re x) x."""
        return np.sign(x.real) * x if is_complex(x) else np.absolute(x)

    abs = fabs = absolute

    @staticmethod
    def where(condition: Any, *branches: Any) -> Any:
        return np.where(np.asarray(real(condition)) != 0 if is_complex(condition) else condition, *branches)

    @_into
    def clip(x: Any, a_min: Any = None, a_max: Any = None) -> Any:
        x = x if a_min is None else ComplexNumpy.maximum(x, a_min)
        return x if a_max is None else ComplexNumpy.minimum(x, a_max)

    @staticmethod
    def sort(x: Any, axis: int = -1, **kwargs: Any) -> Any:
        return np.take_along_axis(x, np.argsort(real(x), axis=axis, kind="stable"), axis)

    @_into
    def mod(x: Any, y: Any) -> Any:
        return x - np.floor_divide(real(x), real(y)) * y if is_complex(x, y) else np.mod(x, y)

    remainder = mod

    @_into
    def hypot(x: Any, y: Any) -> Any:
        return np.sqrt(x * x + y * y) if is_complex(x, y) else np.hypot(x, y)

    @_into
    def logaddexp(x: Any, y: Any) -> Any:
        if not is_complex(x, y):
            return np.logaddexp(x, y)
        top = np.maximum(real(x), real(y))
        return top + np.log(np.exp(x - top) + np.exp(y - top))

    @_into
    def erf(x: Any) -> Any:
        import scipy.special

        if x.dtype.itemsize > (16 if is_complex(x) else 8):  # scipy has no long double
            return scipy.special.erf(x.astype("complex128" if is_complex(x) else "float64")).astype(x.dtype)
        return scipy.special.erf(x)

    def cast(self, x: Any, dtype: DType) -> Any:
        """To an integer or bool: of the real part. To a float: rounded to it, in the precision of the check."""
        kind = x.dtype.kind
        if not dtype.is_float:
            return real(x).astype(dtype.np)
        if kind == "c" or (kind == "f" and x.dtype.itemsize > 8):
            if dtype.size >= 8:
                return x
            rounded = real(x).astype(dtype.np).astype(real(x).dtype)
            return rounded + 1j * x.imag if kind == "c" else rounded
        return x.astype(dtype.np)

    def stop_gradient(self, x: Any) -> Any:
        return real(x)


def _refuse(name: str) -> Callable[..., Any]:
    if name == "linalg":
        raise NotAnalytic(
            "TG410", "xp.linalg is not analytic as NumPy computes it", hint="write the norm as sqrt(sum(x * x))"
        )

    def refused(*args: Any, **kwargs: Any) -> Any:
        if not is_complex(*args):
            return getattr(np, name)(*args, **kwargs)
        raise NotAnalytic(
            "TG410", f"xp.{name} is not analytic: no derivative passes through it", hint="write it in sums and products"
        )

    return refused


_guarding: ContextVar[bool] = ContextVar("tensorgraph_guarding", default=False)


@contextmanager
def guarded() -> Iterator[None]:
    """Silence about NaN and overflow, which are looked for afterwards; dropping an imaginary part is an error."""
    if _guarding.get():
        yield
        return
    token = _guarding.set(True)
    try:
        with _guard():
            yield
    finally:
        _guarding.reset(token)


@contextmanager
def _guard() -> Iterator[None]:
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        warnings.simplefilter("error", np.exceptions.ComplexWarning)
        yield


complex_numpy = ComplexNumpy()
