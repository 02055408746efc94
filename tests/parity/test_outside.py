"""check_torch and check_jax on code as people have it: custom backward rules, several outputs, integer arguments."""

from __future__ import annotations

import numpy as np
import pytest

from tensorgraph.gradcheck import check_jax, check_torch

X = np.random.default_rng(0).normal(size=(4, 3))
W = np.random.default_rng(1).normal(size=(3, 2))
IDS = np.array([2, 0, 2])


def torch_op(factor, cotangent_of_w=True):
    """tanh(x @ w), with its backward by hand; that of w is `factor` times too large."""
    torch = pytest.importorskip("torch", reason="checks torch.autograd.Function")

    class Layer(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            y = torch.tanh(x @ w)
            ctx.save_for_backward(x, w, y)
            return y

        @staticmethod
        def backward(ctx, g):
            x, w, y = ctx.saved_tensors
            g = g * (1 - y * y)
            return g @ w.T, factor * (x.T @ g) if cotangent_of_w else None

    return torch, Layer


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_torch_function_right_and_wrong(dtype):
    torch, layer = torch_op(1.0)
    x, w = (torch.tensor(a, dtype=getattr(torch, dtype), requires_grad=True) for a in (X, W))
    report = check_torch(layer, x, w)
    assert report and report.worst_residual <= 1e-9 and x.grad is None
    (entry,) = check_torch(torch_op(1.01)[1], x, w).wrong
    assert (entry.op, entry.input, entry.note) == ("Layer", "w", "it gives 1.01 times the derivative")
    (entry,) = check_torch(torch_op(1.0, False)[1], x, w).wrong
    assert (entry.verdict, entry.input) == ("NO PATH", "w")
    assert entry.note == "no gradient is given for it, and the result depends on it"


def test_torch_functions_of_tensors():
    torch, _ = torch_op(1.0)
    x, ids = torch.tensor(X), torch.tensor(IDS)
    assert check_torch(torch.sin, x)
    assert check_torch(lambda x, ids: x[ids] ** 2, x, ids), "integers are not differentiated"
    assert check_torch(lambda x: (torch.sin(x), x.sum(0)), x), "several outputs"
    assert check_torch(lambda x, axis: torch.softmax(x, axis), x, -1), "an argument that is no tensor"
    assert check_torch(torch.nn.functional.gelu, x)
    assert check_torch(torch.nn.Linear(3, 2).double(), x), "a module"
    (entry,) = check_torch(lambda x: x * x.detach(), x).wrong
    assert entry.note == "it gives 0.5 times the derivative"


def test_torch_at_a_kink():
    torch, _ = torch_op(1.0)
    report = check_torch(torch.relu, torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64))
    assert report and [e.verdict for e in report.entries] == ["KINK"]


def jax_op(factor):
    jax = pytest.importorskip("jax", reason="checks jax.custom_vjp")

    @jax.custom_vjp
    def layer(x, w):
        return jax.numpy.tanh(x @ w)

    def forward(x, w):
        y = layer(x, w)
        return y, (x, w, y)

    def backward(kept, g):
        x, w, y = kept
        g = g * (1 - y * y)
        return g @ w.T, factor * (x.T @ g)

    layer.defvjp(forward, backward)
    return jax, layer


def test_jax_function_right_and_wrong():
    jax, layer = jax_op(1.0)
    report = check_jax(layer, X, W)
    assert report and report.worst_residual <= 1e-9
    assert check_jax(jax.jit(layer), X.astype("float32"), jax.numpy.asarray(W))
    (entry,) = check_jax(jax_op(1.01)[1], X, W).wrong
    assert (entry.op, entry.input, entry.note) == ("layer", "w", "it gives 1.01 times the derivative")
    assert not jax.config.jax_enable_x64, "the setting is as it was"


def test_jax_functions_of_arrays():
    jax, _ = jax_op(1.0)
    assert check_jax(jax.numpy.sin, X)
    assert check_jax(lambda x, ids: x[ids] ** 2, X, IDS), "integers are not differentiated"
    assert check_jax(lambda x: (jax.numpy.sin(x), x.sum(0)), X), "several outputs"
    report = check_jax(jax.nn.relu, np.array([-1.0, 0.0, 2.0]))
    assert report and [e.verdict for e in report.entries] == ["KINK"]
    (entry,) = check_jax(lambda x: x * jax.lax.stop_gradient(x), X).wrong
    assert entry.note == "it gives 0.5 times the derivative"


def test_torch_function_with_a_number():
    """A float that is no tensor is held as it is, results that are no floating tensors are left out."""
    torch = pytest.importorskip("torch")

    class Exp(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, k):
            ctx.save_for_backward(x)
            ctx.k = k
            return torch.exp(x) * k

        @staticmethod
        def backward(ctx, g):
            return g * torch.exp(ctx.saved_tensors[0]) * ctx.k, None

    x = torch.tensor(X)
    assert check_torch(Exp, x, 2.0)
    assert check_torch(lambda w: (w.sin(), w.argmax()), x)
    (entry,) = check_torch(lambda w: w.detach() * 2, x).wrong
    assert (entry.verdict, entry.input) == ("NO PATH", "w")
    (entry,) = check_torch(lambda w: torch.dropout(w, 0.5, True), x).wrong
    assert entry.verdict == "NONDETERMINISTIC"


def test_jax_pytrees():
    jax = pytest.importorskip("jax")
    report = check_jax(lambda p, k: (jax.numpy.tanh(p["a"]) * k, p["b"].argmax()), {"a": X, "b": X + 1}, 2.0)
    assert report and [list(e.inputs) for e in report.entries] == [["p['a']"], ["p['b']"]]
