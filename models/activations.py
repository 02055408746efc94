"""Activations by transformers' names: the ops, other names of theirs, and those that few models use, made of ops."""

from __future__ import annotations

import math
from collections.abc import Callable

from tensorgraph.ops import nn
from tensorgraph.ops.elementwise import erf, greater, maximum, minimum, tanh, where
from tensorgraph.tensor import Tensor


def gelu_10(x: Tensor) -> Tensor:
    """gelu, at most 10."""
    return maximum(minimum(nn.gelu(x), 10.0), -10.0)


def hardswish(x: Tensor) -> Tensor:
    """x relu6(x + 3) / 6 (Howard et al. 2019)."""
    return x * relu6(x + 3.0) / 6.0


def laplace(x: Tensor) -> Tensor:
    """(1 + erf((x - sqrt(1/2)) / (sqrt(2) sigma))) / 2 with sigma = sqrt(1/(4 pi)) (Ma et al. 2022)."""
    return 0.5 * (erf((x - 0.707107) / (0.282095 * math.sqrt(2.0))) + 1.0)


def leaky_relu(x: Tensor) -> Tensor:
    """x, or x/100 where it is negative."""
    return where(greater(x, 0.0), x, x * 0.01)


def linear(x: Tensor) -> Tensor:
    """x."""
    return x


def mish(x: Tensor) -> Tensor:
    """x tanh(softplus(x)) (Misra 2019)."""
    return x * tanh(nn.softplus(x))


def relu2(x: Tensor) -> Tensor:
    """max(x, 0) squared (So et al. 2021)."""
    return nn.relu(x).square()


def relu6(x: Tensor) -> Tensor:
    """min(max(x, 0), 6)."""
    return minimum(nn.relu(x), 6.0)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **nn.ACTIVATIONS,
    "gelu_python": nn.gelu,
    "gelu_accurate": nn.gelu_tanh,
    "gelu_python_tanh": nn.gelu_tanh,
    **{f.__name__: f for f in (gelu_10, hardswish, laplace, leaky_relu, linear, mish, relu2, relu6)},
}

__all__ = ["ACTIVATIONS"]
