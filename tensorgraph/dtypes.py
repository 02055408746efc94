"""Dtypes and their promotion: one short table. Python scalars are weak (NEP 50)."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from .errors import DTypeError


class DType(NamedTuple):
    """A dtype: its name (`float32`), its short form in printed graphs (`f32`), kind ('b', 'i', 'f') and bytes."""

    name: str
    short: str
    kind: str
    size: int

    @property
    def np(self) -> Any:
        """The NumPy dtype (bfloat16 through ml_dtypes)."""
        return _numpy(self.name)

    @property
    def is_float(self) -> bool:
        return self.kind == "f"

    def __repr__(self) -> str:
        return self.name

    def __str__(self) -> str:
        return self.name


bool_ = DType("bool", "bool", "b", 1)
int8 = DType("int8", "i8", "i", 1)
uint8 = DType("uint8", "u8", "i", 1)
int32 = DType("int32", "i32", "i", 4)
int64 = DType("int64", "i64", "i", 8)
float16 = DType("float16", "f16", "f", 2)
bfloat16 = DType("bfloat16", "bf16", "f", 2)
float32 = DType("float32", "f32", "f", 4)
float64 = DType("float64", "f64", "f", 8)

ALL = {d.name: d for d in (bool_, int8, uint8, int32, int64, float16, bfloat16, float32, float64)}
_SHORT = {d.short: d for d in ALL.values()}
_ORDER = [bool_, uint8, int8, int32, int64, float16, bfloat16, float32, float64]


@functools.cache
def _numpy(name: str) -> Any:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


@functools.cache
def dtype(x: Any) -> DType:
    """The DType named by a string, a NumPy dtype or a DType. Raises DTypeError[TG200] for an unknown one."""
    if isinstance(x, DType):
        return x
    name = x if isinstance(x, str) else getattr(x, "name", None) or getattr(x, "__name__", str(x))
    found = ALL.get(str(name)) or _SHORT.get(str(name))
    if found is None and not isinstance(x, str):
        try:
            found = ALL.get(np.dtype(x).name)
        except TypeError:
            found = None
    if found is None:
        raise DTypeError("TG200", f"unknown dtype {x!r}", hint="one of " + ", ".join(ALL))
    return found


def of_array(a: Any) -> DType:
    """The DType of an array."""
    return dtype(a.dtype.name)


def promote(a: DType, b: DType) -> DType:
    """The dtype of a result of `a` and `b`: the wider; an integer never widens a float; f16 with bf16 gives f32."""
    if a is b or a == b:
        return a
    if a.is_float and b.is_float and a.size == b.size:
        return float32
    if not a.is_float and not b.is_float and a.size == b.size == 1 and "b" not in (a.kind, b.kind):
        return int32
    return max(a, b, key=_ORDER.index)


def weak(value: bool | int | float, like: DType | None) -> DType:
    """The dtype that a Python scalar takes beside a tensor of dtype `like` (None: on its own)."""
    if isinstance(value, bool):
        return like if like is not None else bool_
    if isinstance(value, int):
        return like if like is not None and like.kind != "b" else int32
    return like if like is not None and like.is_float else float32
