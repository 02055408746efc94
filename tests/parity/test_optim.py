"""Optimisers against PyTorch's own, in float64, step by step."""

from __future__ import annotations

import numpy as np
import pytest

import tensorgraph as tg

torch = pytest.importorskip("torch")

SHAPES = {"a.weight": (3, 4), "b.bias": (4,)}
STEPS = 12
# Rate and bias corrections are float32 scalars here, doubles in PyTorch: 2^-24 each, per step.
TOLERANCE = STEPS * 4 * 2.0**-24


def ours(update):
    rng = np.random.default_rng(1)
    values = {n: rng.normal(size=s) for n, s in SHAPES.items()}
    leaves = {n: tg.ops.leaf.param(n, s, "float64") for n, s in SHAPES.items()}
    t = tg.input("t", (), "float64")
    step = tg.compile(sum((tg.sin(p * 2.0 + t) + p * p * t).sum() for p in leaves.values()), update=update)
    state = step.init(values)
    for i in range(STEPS):
        _, state = step(state, t=0.1 * i)
    return values, {n: state[f"params/{n}"] for n in SHAPES}


def theirs(values, make, clip):
    params = {n: torch.nn.Parameter(torch.tensor(v)) for n, v in values.items()}
    optimizer = make(list(params.values()))
    for i in range(STEPS):
        optimizer.zero_grad()
        sum((torch.sin(p * 2 + 0.1 * i) + p * p * 0.1 * i).sum() for p in params.values()).backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(list(params.values()), clip)
        optimizer.step()
    return {n: p.detach().numpy() for n, p in params.items()}


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize(("betas", "decay", "eps"), [((0.9, 0.999), 0.01, 1e-8), ((0.8, 0.95), 0.1, 1e-6)])
def test_adamw(betas, decay, eps, clip):
    values, got = ours(tg.optim.AdamW(lr=0.02, betas=betas, weight_decay=decay, eps=eps, clip=clip))
    want = theirs(values, lambda p: torch.optim.AdamW(p, lr=0.02, betas=betas, weight_decay=decay, eps=eps), clip)
    for n in SHAPES:
        np.testing.assert_allclose(got[n], want[n], rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd(momentum, clip):
    values, got = ours(tg.optim.SGD(lr=0.02, momentum=momentum, clip=clip))
    want = theirs(values, lambda p: torch.optim.SGD(p, lr=0.02, momentum=momentum), clip)
    for n in SHAPES:
        np.testing.assert_allclose(got[n], want[n], rtol=TOLERANCE, atol=TOLERANCE)
