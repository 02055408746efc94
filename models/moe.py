"""Mixture of experts: a router sends every token to a few feed-forward networks of many; shared ones see all tokens.

Shapes stay static: tokens are repeated once per choice and sorted by expert, and how many each expert gets is data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tensorgraph.dims import Dim, div, mul
from tensorgraph.nn import Buffer, Module, Parameter
from tensorgraph.ops.elementwise import cast, greater, sigmoid, upcast, where
from tensorgraph.ops.indexing import argsort, segment_sum, sum_along, take, take_along, top_k
from tensorgraph.ops.leaf import arange, const, dimension, full
from tensorgraph.ops.linalg import grouped_matmul
from tensorgraph.ops.movement import expand, reshape, unsqueeze
from tensorgraph.ops.nn import linear, softmax
from tensorgraph.ops.reduce import max
from tensorgraph.tensor import Tensor

from .activations import ACTIVATIONS
from .parts import Context, FeedForward, Routed, choose, retyped

LEAST = -1e30  # below any score


@dataclass(frozen=True, kw_only=True)
class Routing:
    """What the experts of a model are, and how tokens choose among them.

    E experts of size f, of which a token uses `top_k`; `shared`: the size of the part that all tokens use.
    `scores`: "softmax" or "sigmoid" of the router's logits. `normalised`: the weights of the chosen sum to 1.
    `groups`: only experts of the `kept` best groups can be chosen; a group is as good as the sum of its `judges` best.
    `biased`: a stored bias is added to the scores for the choice alone. `dense`: how many first layers have no experts.
    """

    E: Dim
    top_k: int
    f: Dim
    shared: Dim | None = None
    scores: str = "softmax"
    normalised: bool = True
    scale: float = 1.0
    groups: int = 1
    kept: int = 1
    judges: int = 1
    zeroed: bool = False  # experts of other groups score 0, not less than any
    biased: bool = False
    dense: int = 0
    balance: float | None = None  # how much the loss that balances experts counts, where there is one
    reported: bool = False  # that loss is an output without being asked for


class Router(Module):
    """The weights [N, K] and indices [N, K] of the K experts of each row of x [N, d].

    Sources: Jiang et al. 2024 (Mixtral); DeepSeek-AI 2024 (V2: groups; V3: sigmoid, bias for the choice).
    """

    component = "router"

    def __init__(self, d: Dim, r: Routing) -> None:
        super().__init__()
        self.routing = r
        self.weight = Parameter((r.E, d))
        self.bias = Buffer((r.E,)) if r.biased else None

    def forward(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        r = self.routing
        logits = linear(upcast(x), upcast(self.weight.__tensor__()), None)
        scores = choose("scores", r.scores, {"softmax": softmax, "sigmoid": sigmoid})(logits)
        ranks = scores if self.bias is None else scores + retyped(self.bias.__tensor__(), scores.dtype)
        if r.groups > 1:
            ranks = where(self._open(ranks), ranks, 0.0 if r.zeroed else LEAST)
        _, chosen = top_k(ranks, r.top_k)
        weights = take_along(ranks if r.zeroed else scores, chosen)
        if r.normalised:
            total = weights.sum(-1, keepdims=True)
            weights = weights / (total + 1e-20 if r.scores == "sigmoid" else total)
        if context.routed is not None:
            context.routed.append(Routed(scores, chosen))
        return weights if r.scale == 1.0 else weights * r.scale, chosen

    def _open(self, ranks: Tensor) -> Tensor:
        """Which experts [N, E] lie in the groups that a row may choose from."""
        r, (N, E) = self.routing, ranks.shape
        members = reshape(ranks, (N, r.groups, div(E, r.groups)))
        worth = max(members, -1) if r.judges == 1 else top_k(members, r.judges)[0].sum(-1)
        _, best = top_k(worth, r.kept)
        kept = greater(sum_along(full(best.shape, 1, "int32"), best, r.groups), 0)
        return reshape(expand(unsqueeze(kept, 2), members.shape), (N, E))


class Experts(Module):
    """Gated feed-forward networks side by side, each weight [E, out, in]; in files they are E tensors."""

    def __init__(self, d: Dim, r: Routing, activation: str) -> None:
        super().__init__()
        self.activation = choose("activation", activation, ACTIVATIONS)
        self.gate = Parameter((r.E, r.f, d), used=r.top_k)
        self.up = Parameter((r.E, r.f, d), used=r.top_k)
        self.down = Parameter((r.E, d, r.f), used=r.top_k)

    def forward(self, x: Tensor, sizes: Tensor) -> Tensor:
        """Rows x [N, d] sorted by expert, of which expert e has sizes[e]."""
        gate, up = grouped_matmul(x, self.gate.T, sizes), grouped_matmul(x, self.up.T, sizes)
        return grouped_matmul(self.activation(gate) * up, self.down.T, sizes)


class MixtureOfExperts(Module):
    """The weighted sum of what the chosen experts make of each token of x [B, T, d], and of what the shared one does.

    Source: Shazeer et al. 2017; Dai et al. 2024 (shared experts).
    """

    component = "mlp"

    def __init__(self, d: Dim, r: Routing, activation: str, *, bias: bool = False) -> None:
        super().__init__()
        self.router = Router(d, r)
        self.experts = Experts(d, r, activation)
        self.shared = FeedForward(d, r.shared, activation, gated=True, bias=bias) if r.shared is not None else None

    def forward(self, x: Tensor, context: Context) -> Tensor:
        r, d = self.router.routing, x.shape[-1]
        N, K = mul(x.shape[0], x.shape[1]), r.top_k
        rows = reshape(x, (N, d))
        weights, chosen = self.router(rows, context)
        choices = reshape(chosen, (mul(N, K),))
        order = argsort(choices)
        sizes = segment_sum(full((mul(N, K),), 1, "int32"), choices, r.E)
        tokens = reshape(expand(unsqueeze(arange(size=N), 1), (N, K)), (mul(N, K),))
        made = self.experts(take(rows, take(tokens, order)), sizes)
        made = reshape(take(made, argsort(order)), (N, K, d))
        y = reshape((made * unsqueeze(retyped(weights, x.dtype), 2)).sum(1), x.shape)
        return y if self.shared is None else y + self.shared(x)


def balance_loss(routed: list[Routed], r: Routing, attention_mask: Tensor | None) -> Tensor:
    """E · Σ over experts of the share of choices that fall on it · the mean score it gets, over all layers and tokens.

    `attention_mask` [B, T] is 0 at tokens that do not count. Source: Fedus et al. 2021 (Switch Transformer).
    """
    choices, scores, count = [], [], const(0.0, routed[0].scores.dtype)
    for layer in routed:
        N, K = layer.chosen.shape
        dtype = layer.scores.dtype
        if attention_mask is None:
            seen, count = full((N, 1), 1.0, dtype), count + dimension(N, dtype)
        else:
            seen = cast(reshape(attention_mask, (N, 1)), dtype)
            count = count + seen.sum()
        ones = reshape(expand(seen, (N, K)), (mul(N, K),))
        choices.append(segment_sum(ones, reshape(layer.chosen, (mul(N, K),)), r.E))
        scores.append((layer.scores * seen).sum(0))
    return (_sum(choices) / count * (_sum(scores) / count)).sum() * dimension(r.E, count.dtype)


def _sum(xs: list[Tensor]) -> Any:
    total = xs[0]
    for x in xs[1:]:
        total = total + x
    return total


__all__ = ["Experts", "MixtureOfExperts", "Router", "Routing", "balance_loss"]
