"""Central differences of every entry agree with the gradients, and find a wrong rule, on both backends."""

from __future__ import annotations

import numpy as np
import pytest

import tensorgraph as tg
from tensorgraph.backends import cpu
from tensorgraph.errors import GradError
from tensorgraph.gradcheck.differences import Differences

BACKENDS = ["numpy", pytest.param("c", marks=pytest.mark.skipif(cpu.compiler() is None, reason="no compiler"))]
RNG = np.random.default_rng(0)
ARRAYS = {"x": RNG.standard_normal((3, 5)), "w": RNG.standard_normal((5, 4)), "ids": np.array([0, 2, 2], np.int32)}


def loss() -> tg.Tensor:
    x, w, ids = tg.input("x", (3, 5)), tg.param("w", (5, 4)), tg.input("ids", (3,), "int32")
    return tg.cross_entropy(tg.tanh(x @ w), ids)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_entry_agrees(backend: str) -> None:
    made = Differences(loss(), backend=backend)
    assert max(made.check(ARRAYS).values()) < 1e-9
    numeric = made.numeric(ARRAYS)
    z = np.tanh(ARRAYS["x"] @ ARRAYS["w"])
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    g = (p - np.eye(4)[ARRAYS["ids"]]) / 3 * (1 - z**2)
    np.testing.assert_allclose(numeric["w"], ARRAYS["x"].T @ g, atol=1e-9)
    np.testing.assert_allclose(numeric["x"], g @ ARRAYS["w"].T, atol=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_wrong_rule_is_found(backend: str) -> None:
    with tg.testing.override("tanh", vjp=lambda g, y, x: (g * y,)):
        wrong = Differences(loss(), backend=backend)
    assert min(wrong.check(ARRAYS).values()) > 0.01


def test_both_backends_find_the_same() -> None:
    if cpu.compiler() is None:
        pytest.skip("no compiler")
    plain, native = (Differences(loss(), ["w"], backend=b).numeric(ARRAYS) for b in ("numpy", "c"))
    assert list(plain) == ["w"]
    np.testing.assert_allclose(plain["w"], native["w"], rtol=1e-6, atol=1e-10)


def test_what_is_no_scalar_is_refused() -> None:
    x = tg.input("x", (3,))
    with pytest.raises(GradError, match="central differences are of a scalar"):
        Differences(tg.tanh(x))
