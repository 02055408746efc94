"""Optimisers: the graph's update against a plain double-precision reference, written from the papers."""

from __future__ import annotations

import math

import numpy as np
import pytest

import tensorgraph as tg
from tensorgraph import optim
from tensorgraph.errors import GraphError, ModelError
from tensorgraph.passes import together

SHAPES = {"a.weight": (3, 4), "b.bias": (4,), "c.weight": (2, 3, 2)}


def problem(dtype="float64", frozen=()):
    """A loss whose gradients change from step to step, and its parameters' first values."""
    rng = np.random.default_rng(0)
    values = {n: rng.normal(size=s) for n, s in SHAPES.items()}
    leaves = {n: tg.ops.leaf.param(n, s, dtype, trained=n not in frozen) for n, s in SHAPES.items()}
    t = tg.input("t", (), dtype)
    loss = sum((tg.sin(p * 2.0 + t) + p * p * t).sum() for p in leaves.values())
    return loss, leaves, values


def gradient(p: np.ndarray, t: float) -> np.ndarray:
    return 2 * np.cos(2 * p + t) + 2 * p * t


def run(update, dtype="float64", frozen=(), steps=7):
    loss, leaves, values = problem(dtype, frozen)
    step = tg.compile(loss, update=update)
    state = step.init(values)
    for i in range(steps):
        _, state = step(state, t=np.asarray(0.1 * i, leaves["a.weight"].dtype.np))
    return state, values


def clipped(grads: dict, limit: float | None) -> dict:
    """As torch.nn.utils.clip_grad_norm_: the factor is limit / (norm + 1e-6), at most 1."""
    if limit is None:
        return grads
    norm = math.sqrt(sum(float((g * g).sum()) for g in grads.values()))
    return {n: g * min(1.0, limit / (norm + 1e-6)) for n, g in grads.items()}


def adamw_reference(values, rate, b1, b2, eps, decay, clip=None, steps=7):
    """Loshchilov and Hutter 2019, algorithm 2, as PyTorch has it (decay scaled by the rate)."""
    p = {n: v.copy() for n, v in values.items()}
    m = {n: np.zeros_like(v) for n, v in p.items()}
    v = {n: np.zeros_like(x) for n, x in p.items()}
    for t in range(1, steps + 1):
        grads = clipped({n: gradient(x, 0.1 * (t - 1)) for n, x in p.items()}, clip)
        for n, g in grads.items():
            p[n] *= 1 - rate(t) * decay
            m[n] = b1 * m[n] + (1 - b1) * g
            v[n] = b2 * v[n] + (1 - b2) * g * g
            p[n] -= rate(t) * (m[n] / (1 - b1**t)) / (np.sqrt(v[n] / (1 - b2**t)) + eps)
    return p


def same(state, want, rtol):
    for n, p in want.items():
        np.testing.assert_allclose(np.asarray(state[f"params/{n}"], np.float64), p, rtol=rtol, atol=rtol, err_msg=n)


# The rate and the bias corrections are float32 scalars by design: 2^-24 per step each, whatever the parameters' dtype.
STEPWISE = 7 * 4 * 2.0**-24


@pytest.mark.parametrize("clip", [None, 0.5, 1e6])
@pytest.mark.parametrize(("betas", "decay"), [((0.9, 0.999), 0.01), ((0.8, 0.95), 0.3), ((0.0, 0.9), 0.0)])
def test_adamw(betas, decay, clip):
    state, values = run(tg.optim.AdamW(lr=0.05, betas=betas, weight_decay=decay, clip=clip))
    same(state, adamw_reference(values, lambda t: 0.05, *betas, 1e-8, decay, clip), STEPWISE)
    assert int(state["step"]) == 7


def test_weight_decay_is_decoupled():
    """With zero gradient a parameter shrinks by rate times decay each step, however large its moments."""
    p = tg.ops.leaf.param("p", (3,), "float64")
    t = tg.input("t", (), "float64")
    step = tg.compile((p * t).sum(), update=tg.optim.AdamW(lr=0.5, weight_decay=0.5, betas=(0.0, 0.0)))
    state = step.init({"p": np.ones(3)})
    for _ in range(3):
        _, state = step(state, t=0.0)
    np.testing.assert_array_equal(state["params/p"], np.full(3, 0.75**3))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_sgd(momentum, clip):
    state, values = run(tg.optim.SGD(lr=0.05, momentum=momentum, clip=clip))
    p, m = {n: v.copy() for n, v in values.items()}, dict.fromkeys(values, 0.0)
    for i in range(7):
        for n, g in clipped({n: gradient(x, 0.1 * i) for n, x in p.items()}, clip).items():
            m[n] = momentum * m[n] + g
            p[n] = p[n] - 0.05 * m[n]
    same(state, p, STEPWISE)


@pytest.mark.parametrize("update", [tg.optim.AdamW(lr=0.05, weight_decay=0.1), tg.optim.SGD(lr=0.05, momentum=0.9)])
def test_frozen_parameters_keep_every_bit(update):
    state, values = run(update, frozen=("b.bias",))
    np.testing.assert_array_equal(state["params/b.bias"], values["b.bias"])
    assert not any(k.endswith("b.bias") and not k.startswith("params/") for k in state)
    assert (state["params/a.weight"] != values["a.weight"]).all()


def test_half_precision_keeps_its_moments_in_float32():
    state, values = run(tg.optim.AdamW(lr=0.05), "bfloat16")
    assert state["params/a.weight"].dtype == tg.bfloat16.np
    assert state["m/a.weight"].dtype == np.float32 and state["v/a.weight"].dtype == np.float32
    want = adamw_reference(values, lambda t: 0.05, 0.9, 0.999, 1e-8, 0.01)
    # every step rounds the parameter once (2^-9) and the gradient's few operations likewise
    same(state, want, 7 * 2.0**-8)


SCHEDULES = {
    "cosine": (
        optim.cosine(0.3, 20, warmup=5, floor=0.03),
        lambda t: (
            0.0 + min(t / 5, 1) * (0.03 + (0.3 - 0.03) * 0.5 * (1 + math.cos(math.pi * min(max((t - 5) / 15, 0), 1))))
        ),
    ),
    "linear": (
        optim.linear(0.3, 20, warmup=5, floor=0.03),
        lambda t: min(t / 5, 1) * (0.3 - 0.27 * min(max((t - 5) / 15, 0), 1)),
    ),
    "exponential": (optim.exponential(0.3, 0.9), lambda t: 0.3 * 0.9**t),
    "cosine without warm-up": (optim.cosine(1.0, 10), lambda t: 0.5 * (1 + math.cos(math.pi * min(t / 10, 1)))),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name):
    rate, formula = SCHEDULES[name]
    t = tg.input("t", (), "float32")
    f = tg.compile(rate(t))
    for i in range(1, 31):
        assert float(f(t=np.float32(i))) == pytest.approx(formula(i), rel=2.0**-20, abs=2.0**-22)


def test_a_schedule_drives_the_step():
    rate, formula = SCHEDULES["cosine"]
    state, values = run(tg.optim.AdamW(lr=rate))
    same(state, adamw_reference(values, formula, 0.9, 0.999, 1e-8, 0.01), STEPWISE * 4)


def test_clipping_leaves_small_gradients_alone():
    g = {"a": tg.input("a", (3,), "float64"), "b": tg.input("b", (2,), "float64")}
    f = tg.compile(optim.clip_by_global_norm(g, 1.0))
    small = {"a": np.full(3, 1e-3), "b": np.full(2, 1e-3)}
    for n, v in f(**small).items():
        np.testing.assert_array_equal(v, small[n])
    out = f(a=np.array([3.0, 0, 0]), b=np.array([4.0, 0]))
    norm = math.sqrt(sum(float((v * v).sum()) for v in out.values()))
    assert norm == pytest.approx(1.0, rel=1e-6)
    zero = f(a=np.zeros(3), b=np.zeros(2))
    assert all((v == 0).all() for v in zero.values()), "no gradient, no nan"


def test_state_is_updated_in_place():
    loss, _, values = problem()
    step = tg.compile(loss, update=tg.optim.AdamW(lr=0.1))
    state = step.init(values)
    where = {k: state.arrays[k].ctypes.data for k in state}
    for _ in range(3):
        _, state = step(state, t=0.5)
    assert {k: state.arrays[k].ctypes.data for k in state} == where
    assert "copyto(P[" not in step.source, "every update is written straight into the state"
    np.testing.assert_array_equal(values["a.weight"], np.random.default_rng(0).normal(size=(3, 4)))


def trained_on_numpy(monkeypatch, small, given):
    """A few steps of parameters of many shapes, small up to `small` elements: the losses, and the state."""
    monkeypatch.setattr(together, "SMALL", small)
    rng = np.random.default_rng(3)
    shapes = {"a": (3, 4), "b": (4,), "c": (4, 70), "d": (70,), "s": (), "e": (70, 90), "f": (1, 1, 5)}
    values = {n: rng.normal(size=s).astype("f4") for n, s in shapes.items()}
    p = {n: tg.ops.leaf.param(n, s) for n, s in shapes.items()}
    x = tg.input("x", (5, 3))
    y = tg.tanh(x @ p["a"] + p["b"]) @ p["c"] + p["d"] * p["s"] + p["d"].reshape(7, 10).T.reshape(70)
    loss = ((y @ p["e"]) * p["f"].sum()).square().sum() + (p["c"].T * 0.1).sum()
    outputs = {"loss": loss, "old": p["b"] * 1.0, "itself": p["f"]}
    step = tg.compile(outputs, update=tg.optim.AdamW(lr=0.1, weight_decay=0.1), backend="numpy")
    state, seen = step.init(values), []
    for i in range(5):
        value, state = step(state, x=given(rng.normal(size=(5, 3)).astype("f4") + np.float32(i)))
        seen.append(value)
    updates = sum(k.node.op.name == "adamw" for k in step.compiled.program.kernels)
    return seen, dict(state), updates


def test_small_parameters_are_updated_as_one_to_the_same_bits(monkeypatch):
    alone, want, many = trained_on_numpy(monkeypatch, 0, np.asarray)
    for given in np.asarray, np.ndarray.tolist:  # the short way of calling again, and the long one
        seen, got, few = trained_on_numpy(monkeypatch, 300, given)
        assert (many, few) == (7, 2)
        assert got.keys() == want.keys()
        for k, a in want.items():
            np.testing.assert_array_equal(got[k], a, err_msg=k)
        for one, other in zip(seen, alone, strict=True):
            for k in "loss", "old", "itself":
                np.testing.assert_array_equal(one[k], other[k], err_msg=k)


def updates_by_hand(chained):
    """Two updates by the op itself, the second by the gradient of a loss of the first's result if `chained`."""
    roles = "pgmv"
    x, y = ({r: tg.input(f"{r}{i}", (6,)) for r in roles} for i in range(2))
    rate, c1, c2 = (tg.input(n, ()) for n in ("rate", "c1", "c2"))
    first = tg.adamw(*x.values(), rate, c1, c2)
    second = tg.adamw(y["p"], first[0] * y["g"] if chained else y["g"], y["m"], y["v"], rate, c1, c2)
    outputs = {f"{r}{i}": t for i, us in enumerate((first, second)) for r, t in zip("pmv", us, strict=True)}
    rng = np.random.default_rng(0)
    arrays = {f"{r}{i}": rng.random(6).astype("f4") for i in range(2) for r in roles}
    return outputs, arrays, {"rate": np.float32(0.1), "c1": np.float32(0.5), "c2": np.float32(0.3)}


@pytest.mark.parametrize("chained", [False, True])
def test_arrays_that_lie_apart_are_updated_in_place_too(chained):
    outputs, arrays, scalars = updates_by_hand(chained)
    want = tg.compile(outputs, backend="numpy")(**arrays, **scalars)
    f = tg.compile(outputs, donate={n: n for n in outputs}, backend="numpy")
    assert sum(k.node.op.name == "adamw" for k in f.program.kernels) == (2 if chained else 1)
    stretch = np.zeros(36, "f4")  # those of one role after another, as a step lays them out
    for i, k in enumerate(k for r in "pmv" for k in (f"{r}0", f"{r}1")):
        stretch[6 * i : 6 * i + 6] = arrays[k]
    beside = {k: stretch[6 * i : 6 * i + 6] for i, k in enumerate(k for r in "pmv" for k in (f"{r}0", f"{r}1"))}
    for given in arrays, {**arrays, **beside}:
        own = {k: a if k in beside and given is not arrays else a.copy() for k, a in given.items()}
        got = f(**own, **scalars)
        for k, a in want.items():
            assert got[k] is own[k]
            np.testing.assert_array_equal(got[k], a, err_msg=k)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: tg.optim.AdamW(lr=-1.0), "[TG901] the learning rate must not be negative: -1.0"),
        (lambda: tg.optim.AdamW(lr=float("nan")), "[TG901] the learning rate must not be negative: nan"),
        (lambda: tg.optim.AdamW(betas=(0.9, 1.0)), "[TG901] betas must lie in [0, 1): (0.9, 1.0)"),
        (lambda: tg.optim.SGD(lr=0.1, clip=0.0), "[TG901] the clipping norm must be positive: 0.0"),
    ],
)
def test_senseless_settings(make, text):
    with pytest.raises(ModelError) as info:
        make()
    assert str(info.value) == text


def test_nothing_to_train():
    loss, _, _ = problem(frozen=tuple(SHAPES))
    with pytest.raises(GraphError) as info:
        tg.compile(loss, update=tg.optim.SGD(lr=0.1))
    assert str(info.value) == (
        "[TG312] nothing to train: the loss depends on no trained parameter\n  hint: unfreeze some, or mark the loss"
    )
