"""Random numbers of a graph, counter-based: the same bits for (seed, the node's place in the model), on every backend.

And the generator of what is drawn outside graphs: first values, and the values that checks take.
"""

from __future__ import annotations

import hashlib
from typing import Any, cast

import numpy as np

from .. import dims, dtypes
from ..errors import DataError
from ..op import Bad, InputSpec, S, need_dtype, op
from ..tensor import Tensor
from .elementwise import cast as cast_
from .elementwise import cos, less, log, sqrt, where
from .leaf import const


def generator(seed: Any, name: str | None = None) -> np.random.Generator:
    """NumPy's generator for a seed, and a name if one is given. Raises DataError[TG525] for a seed that is none."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise DataError("TG525", f"a seed is a whole number, 0 or more, not {seed!r}")
    if name is None:
        return np.random.default_rng(seed)
    return np.random.default_rng(
        [int(seed), int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")]
    )


M0, M1 = 0xD2511F53, 0xCD9E8D57  # Philox 4x32-10 (Salmon et al. 2011)
W0, W1 = 0x9E3779B9, 0xBB67AE85
LOW = 0xFFFFFFFF


def _shape(seed: Tensor, shape: Any, **_: Any) -> Any:
    need_dtype("random_bits", seed, "i", "seed")
    return shape


def philox(xp: Any, counter: Any, stream: int, key: int, step: int) -> Any:
    """32 random bits per counter (uint64 array below 2^32), for a 64-bit stream, a key and a step."""
    c0, c1 = counter, xp.full_like(counter, step & LOW)
    c2, c3 = xp.full_like(counter, stream & LOW), xp.full_like(counter, stream >> 32)
    k0, k1 = key & LOW, (key >> 32) & LOW
    for _ in range(10):
        p0, p1 = c0 * M0, c2 * M1
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & LOW, (p0 >> 32) ^ c3 ^ k1, p0 & LOW
        k0, k1 = (k0 + W0) & LOW, (k1 + W1) & LOW
    return c0


@op(
    builtin=True,
    primitive=True,
    shape=_shape,
    dtype=lambda *_, **__: dtypes.float32,
    effect=True,
    style="random",
    nodiff="random",
    prepare=lambda xs, a: {"shape": dims.shape(a["shape"])},
    flops=lambda y, *_, **__: dims.mul(10, y.size),
    samples=[
        S(InputSpec("", "int32", "9"), shape=("B", "T")),
        S(InputSpec("2", "int32", "9"), shape=(3,)),
        Bad("", shape=(3,), match="must be integer"),
    ],
)
def uniform(seed: Tensor, shape: Any) -> Tensor:
    """Uniform float32 numbers in [0, 1), multiples of 2^-24. `seed` is an integer, or [seed, step]."""


@uniform.forward
def _(xp: Any, seed: Any, shape: Any, identity: Any = ("", 0, 0)) -> Any:
    stream = int.from_bytes(hashlib.blake2b(repr(tuple(identity)).encode(), digest_size=8).digest(), "little")
    words = [int(w.real) for w in seed.reshape(-1)[:2]] + [0]
    n = 1
    for d in shape:
        n *= d
    bits = philox(xp, xp.arange(n, dtype="uint64"), stream, words[0] & (2**64 - 1), words[1])
    return ((bits >> 8).astype("float32") * xp.float32(2.0**-24)).reshape(shape)


def normal(seed: Tensor, shape: Any) -> Tensor:
    """Standard normal float32 numbers (Box and Muller 1958)."""
    u, v = uniform(seed, shape), uniform(seed, shape)
    return sqrt(log(1.0 - u) * -2.0) * cos(v * 6.283185307179586)


def dropout(x: Tensor, rate: float, seed: Tensor) -> Tensor:
    """x with a share `rate` of its elements zeroed and the rest scaled by 1 / (1 - rate)."""
    keep = less(cast_(uniform(seed, x.shape), x.dtype), 1.0 - rate)
    return cast("Tensor", where(keep, x * (1.0 / (1.0 - rate)), const(0.0, x.dtype)))


__all__ = ["dropout", "generator", "normal", "uniform"]
