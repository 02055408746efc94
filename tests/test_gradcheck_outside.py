"""Gradients of NumPy functions: right ones pass, others get the right verdict and words."""

from __future__ import annotations

import numpy as np
import pytest

import tensorgraph as tg

X = np.random.default_rng(0).normal(size=(4, 3))
Y = np.random.default_rng(1).normal(size=(4, 3))
noise = np.random.default_rng(2)


def doubled(x):
    x *= 2.0
    return x.sum()


def scaled_in_place(g, x):
    g *= 2.0
    return g


PASSES = {
    "complex step": (np.sin, lambda g, x: g * np.cos(x), (X,), "complex step"),
    "a list": (np.sin, lambda g, x: g * np.cos(x), ([1.0, 2.0],), "complex step"),
    "a number": (np.sin, lambda g, x: g * np.cos(x), (1.0,), "complex step"),
    "a number held as it is": (lambda x, k: x * k, lambda g, x, k: (g * k, None), (X, 2.0), "complex step"),
    "integers": (lambda x, i: x[i], lambda g, x, i: np.bincount(i, g, 3), (X[0], np.array([0, 1, 1])), "complex step"),
    "complex-unsafe": (np.linalg.norm, lambda g, x: g * x / np.linalg.norm(x), (X,), "Richardson"),
    "loops over floats": (lambda x: sum(float(v) ** 3 for v in x), lambda g, x: 3 * g * x * x, (X[0],), "Richardson"),
    "rounded to float32": (lambda x: np.sin(x.astype("f")), lambda g, x: g * np.cos(x), (X,), "Richardson"),
    "a gradient in float32": (np.sin, lambda g, x: (g * np.cos(x)).astype("f"), (X,), "complex step"),
    "large values": (np.sin, lambda g, x: g * np.cos(x), (X * 1e8,), "complex step"),
    "small values": (np.log, lambda g, x: g / x, (np.abs(X) * 1e-8,), "complex step"),
    "small, unsafe": (lambda x: np.log(np.abs(x)), lambda g, x: g / x, (X * 1e-8,), "Richardson"),
    "steep": (lambda x: np.exp(1e8 * x), lambda g, x: 1e8 * g * np.exp(1e8 * x), (X * 1e-8,), "complex step"),
    "a step": (np.floor, lambda g, x: g * 0.0, (X,), "Richardson"),
    "of no elements": (lambda x: x.sum(), lambda g, x: g * np.ones_like(x), (np.zeros((0, 3)),), "Richardson"),
}  # fmt: skip


@pytest.mark.parametrize("name", PASSES)
def test_right_gradients_pass(name):
    f, vjp, args, method = PASSES[name]
    report = tg.check_function(f, vjp, *args, kind="vjp")
    assert report and np.isfinite(report.worst_residual), str(report)
    assert {e.verdict for e in report.entries} == {"PASS"} and {e.method for e in report.entries} == {method}


FAILS = {
    "off": (np.sin, lambda g, x: g * np.cos(x) * 1.01, (X,), "WRONG VJP", "x", "it gives 1.01 times the derivative"),
    "for negative values": (
        lambda x: np.maximum(x, 0), lambda g, x: g, (X,), "WRONG VJP", "x", "elements differ; at ["
    ),
    "rounded and off": (
        lambda x: np.sin(x.astype("f")), lambda g, x: g * np.cos(x) * 1.01, (X,), "WRONG VJP", "x",
        "every element differs; at [",
    ),
    "steep and off": (
        lambda x: np.log(np.abs(x)), lambda g, x: 1.01 * g / x, (X * 1e-8,), "WRONG VJP", "x", "1.01 times",
    ),
    "one of many elements": (
        np.tanh, lambda g, x: g * (1 - np.tanh(x) ** 2) * (1 + 0.01 * np.eye(90)), (np.ones((90, 90)),), "WRONG VJP",
        "x", "it gives",
    ),
    "a factor for many elements": (
        np.tanh, lambda g, x: -g * (1 - np.tanh(x) ** 2), (np.ones((90, 90)),), "WRONG VJP", "x", "the sign is wrong",
    ),
    "too few": (lambda x, y: x * y, lambda g, x, y: g * y, (X, Y), "WRONG VJP", "y", "has 1 part for 2 arguments"),
    "too many": (np.sin, lambda g, x: (g, g), (X,), "WRONG VJP", "", "the gradient has 2 parts for 1 argument"),
    "another shape": (
        np.sin, lambda g, x: g[:1], (X,), "WRONG VJP", "x", "has the shape [1, 3], the argument [4, 3]"
    ),
    "complex": (np.sin, lambda g, x: g * (1 + 1j), (X,), "WRONG VJP", "x", "the gradient holds complex128, not floats"),
    "raises": (np.sin, lambda g, x: 1 / 0, (X,), "WRONG VJP", "", "the gradient fails: ZeroDivisionError: division by"),
    "too rough to tell": (
        lambda x: np.sin(x).astype("float16"), lambda g, x: g * np.cos(x) * 1.001, (X,), "PRECISION", "x",
        "its values are too unsteady to tell: differences settle to ",
    ),
    "none": (np.sin, lambda g, x: None, (X,), "NO PATH", "x", "no gradient is given for it, and the result depends"),
    "nan": (np.sin, lambda g, x: g * np.nan, (X,), "NONFINITE", "x", "the gradient holds [] and 12 nan"),
    "nan at once": (np.log, lambda g, x: g / x, (X,), "NONFINITE", "", "gives nan or inf: x in [-1.265, 1.304]"),
    "a second result": (
        lambda x: (np.sin(x), np.cos(x)), lambda g, x: g[0] * np.cos(x) + g[1] * np.sin(x), (X,), "WRONG VJP", "x",
        "every element differs",
    ),
    "noise": (
        lambda x: x * noise.normal(), lambda g, x: g, (X,), "NONDETERMINISTIC", "", "called twice the function differs"
    ),
    "noise in the gradient": (
        lambda x: x, lambda g, x: g * noise.normal(), (X,), "NONDETERMINISTIC", "x", "called twice it differs by"
    ),
    "in place": (doubled, lambda g, x: np.full((4, 3), 2 * g), (X,), "NONDETERMINISTIC", "x", "the function writes"),
    "gradient in place": (lambda x: x * 2, scaled_in_place, (X,), "NONDETERMINISTIC", "g", "the gradient writes into"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", FAILS)
def test_wrong_gradients_get_their_verdict_and_words(name):
    f, vjp, args, verdict, argument, words = FAILS[name]
    before = [np.copy(a) for a in args]
    report = tg.check_function(f, vjp, *args, kind="vjp")
    (entry,) = report.wrong
    assert (entry.verdict, entry.input) == (verdict, argument), str(report)
    assert words in entry.note
    assert all(np.array_equal(a, b) for a, b in zip(args, before, strict=True)), "the caller's arrays are left alone"


@pytest.mark.parametrize(
    ("f", "args", "words"),
    [
        (lambda x: None, (X,), "<lambda> returns NoneType, not floats"),
        (lambda x: (x, "no"), (X,), "<lambda> returns str as result 1, not floats"),
        (lambda x: x.astype(int), (X,), "<lambda> returns int64, not floats"),
        (lambda i: i * 1.0, (np.arange(3),), "<lambda> is given no floating argument: there is no gradient to check"),
        (lambda: 1.0, (), "<lambda> is given no floating argument: there is no gradient to check"),
    ],
)
def test_what_has_no_gradient_is_said(f, args, words):
    with pytest.raises(tg.errors.GradError) as caught:
        tg.check_function(f, lambda g, *xs: g, *args, kind="vjp")
    assert str(caught.value) == f"[TG414] {words}"


def test_smooth_functions_have_no_kinks():
    """A gradient that is nearly right, everywhere, is no subgradient."""
    for factor in (1 + 1e-6, 1 + 1e-4):
        report = tg.check_function(np.sin, lambda g, x, k=factor: g * np.cos(x) * k, X, kind="vjp")
        assert [e.verdict for e in report.entries] == ["WRONG VJP"]
