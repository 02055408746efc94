"""Multi-head latent attention: keys and values of all heads are made from one small vector per position.

The cache holds that vector and the rotated part of the key, which all heads share.
"""

from __future__ import annotations

from dataclasses import dataclass

from tensorgraph.dims import Dim, add, div, mul
from tensorgraph.nn import Linear, Module, RMSNorm
from tensorgraph.ops.movement import concat, expand, reshape, split, squeeze, swapaxes, unsqueeze
from tensorgraph.ops.nn import attention
from tensorgraph.tensor import Tensor

from .parts import Context, rotate


@dataclass(frozen=True, kw_only=True)
class Latent:
    """Sizes and flags of latent attention.

    q_rank: size of the vector from which queries are made (None: from x itself); kv_rank: of that for keys and values;
    plain and rotated: the parts of a head of q and k; v: a head of values. `interleaved`: rotation pairs neighbours.
    `scale`: what multiplies 1/sqrt(plain + rotated).
    """

    q_rank: Dim | None
    kv_rank: Dim
    plain: Dim
    rotated: Dim
    v: Dim
    interleaved: bool = True
    bias: bool = False
    scale: float = 1.0


class LatentAttention(Module):
    """Causal attention of x [B, T, d] on itself, H heads. Source: DeepSeek-AI 2024 (DeepSeek-V2)."""

    component = "attention"

    def __init__(self, d: Dim, H: Dim, sizes: Latent, rope: str) -> None:
        super().__init__()
        self.heads, self.sizes, self.rope = H, sizes, rope
        q_size = mul(H, add(sizes.plain, sizes.rotated))
        if sizes.q_rank is None:
            self.q = Linear(d, q_size, False)
        else:
            self.q_a = Linear(d, sizes.q_rank, sizes.bias)
            self.q_norm = RMSNorm(sizes.q_rank)
            self.q_b = Linear(sizes.q_rank, q_size, False)
        self.kv_a = Linear(d, add(sizes.kv_rank, sizes.rotated), sizes.bias)
        self.kv_norm = RMSNorm(sizes.kv_rank)
        self.kv_b = Linear(sizes.kv_rank, mul(H, add(sizes.plain, sizes.v)), False)
        self.out = Linear(mul(H, sizes.v), d, sizes.bias)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        z, table, offset = self.sizes, context.rope[self.rope], None
        q = self.q(x) if z.q_rank is None else self.q_b(self.q_norm(self.q_a(x)))
        q_plain, q_rotated = split(self._heads(q), (z.plain, z.rotated), -1)
        q_rotated = rotate(self._paired(q_rotated), table)
        latent, k_rotated = split(self.kv_a(x), (z.kv_rank, z.rotated), -1)
        latent = unsqueeze(self.kv_norm(latent), 1).named("cached.latent")
        k_rotated = rotate(self._paired(unsqueeze(k_rotated, 1)), table).named("cached.key")
        if context.cache is not None:
            latent, k_rotated = context.cache.extend(latent=latent, key=k_rotated)
            offset = context.cache.position
        k_plain, v = split(self._heads(self.kv_b(squeeze(latent, 1))), (z.plain, z.v), -1)
        k = concat([k_plain, expand(k_rotated, (*k_plain.shape[:-1], z.rotated))], axis=-1)
        q = concat([q_plain, q_rotated], axis=-1)
        y = attention(q if z.scale == 1.0 else q * z.scale, k, v, context.mask, offset, causal=True)
        return self.out(reshape(swapaxes(y, 1, 2), (*x.shape[:2], mul(self.heads, z.v))))

    def _heads(self, x: Tensor) -> Tensor:
        return swapaxes(reshape(x, (*x.shape[:2], self.heads, div(x.shape[-1], self.heads))), 1, 2)

    def _paired(self, x: Tensor) -> Tensor:
        """x with neighbours (2i, 2i + 1) moved to (i, i + k/2), which rotation pairs; the same in q and k."""
        if not self.sizes.interleaved:
            return x
        size = x.shape[-1]
        return reshape(swapaxes(reshape(x, (*x.shape[:-1], div(size, 2), 2)), -1, -2), (*x.shape[:-1], size))


__all__ = ["Latent", "LatentAttention"]
