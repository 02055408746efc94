"""The array namespaces that an op's forward runs with: NumPy and CuPy, with the few functions they lack."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np


class Namespace:
    """An array module, plus `erf`, `cast` and `stop_gradient`; attributes are looked up once."""

    def __init__(self, module: Any, special: str) -> None:
        self._module, self._special = module, special

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        setattr(self, name, value)
        return value

    @functools.cached_property
    def erf(self) -> Any:
        import importlib

        return importlib.import_module(self._special).erf

    def cast(self, x: Any, dtype: Any) -> Any:
        return x.astype(dtype.np)

    def stop_gradient(self, x: Any) -> Any:
        return x


numpy = Namespace(np, "scipy.special")


@functools.cache
def cupy() -> Namespace:
    """CuPy's namespace. Raises ImportError where it is not installed."""
    import cupy as cp

    return Namespace(cp, "cupyx.scipy.special")
