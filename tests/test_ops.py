"""Every op against every law: the registry's records and their samples are the cases."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import sympy as sp

import tensorgraph as tg
from tensorgraph import autodiff, interpret, testing
from tensorgraph.complex_numpy import complex_numpy, guarded
from tensorgraph.dims import canon, evaluate
from tensorgraph.errors import TensorgraphError
from tensorgraph.gradcheck.sampling import small_sizes
from tensorgraph.op import REGISTRY, broadcast_shapes
from tensorgraph.ops.leaf import INPUT
from tensorgraph.ops.random import philox
from tensorgraph.tensor import LOOP_OPS, ROOT, Tensor, picks, topological

LEAVES = {"input", "param", "const", "dimension"}  # made by functions of their own, not by calling a record
LOOPS = LOOP_OPS  # frame a repeated block; tests of symbolic depth cover them
NO_BAD_SAMPLE = {  # take any tensor of any dtype: there is no ill-formed call but a wrong number of arguments
    "neg", "abs", "sign", "square", "stop_gradient", "cast", "pick",
}  # fmt: skip
OPS = {name: op for name, op in REGISTRY.items() if name not in LEAVES | LOOPS}
SAMPLES = [pytest.param(op, s, id=f"{name}-{i}") for name, op in OPS.items() for i, s in enumerate(op.samples)]
BAD = [pytest.param(op, s, id=f"{name}-{i}") for name, op in OPS.items() for i, s in enumerate(op.bad_samples)]
every_sample = pytest.mark.parametrize(("op", "sample"), SAMPLES)


def samples_where(fits):
    return pytest.mark.parametrize(("op", "sample"), [p for p in SAMPLES if fits(*p.values)])


def has_batch_axis(op, sample):
    first = sample.inputs[0] if sample.inputs else None
    return first is not None and bool(first.shape) and not first.shape.split()[0].isdigit()


def sizes_of(case):
    return small_sizes(case.graph)


def one_node(case):
    y = case.results[0]
    return y.inputs[0] if y.op.name == "pick" else y


def tuple_of(x):
    return x if isinstance(x, tuple) else (x,)


def forward(case, values, sizes):
    with guarded():
        return interpret.evaluate(case.results, values, sizes)


def rounding(case, dtype):
    """A bound on rounding: each of the nodes an op is made of rounds once per element it sums up, in `dtype`."""
    leaves = [x for x in case.inputs if x is not None]
    steps = 8 + 4 * len(topological(case.results))
    for y in case.results:
        node = y.inputs[0] if y.op.name == "pick" else y
        if node.op.body is not None:
            inner = autodiff.expanded(node)
            steps += 4 * len(topological(inner if isinstance(inner, tuple) else [inner]))
    longest = max([max(interpret.shape_of(x, small_sizes(case.graph)), default=1) for x in leaves] or [1])
    return float(np.finfo(np.float32).eps if dtype == "float32" else 2.0**-8) * steps * longest


# ------------------------------------------------------------------------------------------ the records


@pytest.mark.parametrize("op", REGISTRY.values(), ids=list(REGISTRY))
def test_record_is_complete(op):
    assert op.doc and op.doc[0] != " ", "a record has a docstring"
    if op.name == "pick":
        return
    assert op.flops is not None, "a record says what it costs"
    if op.name in LEAVES | LOOPS:
        return
    assert op.samples, "a record has samples"
    assert op.bad_samples or op.name in NO_BAD_SAMPLE, "a record has bad samples"
    assert op.forward_fn or op.body, "a record has a forward or a definition"
    assert op.nodiff or op.vjp_fn or op.body or not op.inputs, "a record has a gradient, or says why not"
    if op.forward_out:
        assert op.inplace or not op.vectorised or op.nodiff, "an elementwise op says whose storage it may take"


def test_there_is_something_to_test():
    assert len(OPS) > 60
    assert len(SAMPLES) > 150 and len(BAD) > 40


@pytest.mark.parametrize(("op", "sample"), BAD)
def test_bad_sample_says_what_is_wrong(op, sample):
    with pytest.raises(TensorgraphError, match=sample.match):
        testing.build(op, sample)


# --------------------------------------------------------------------------------------------- forward


@every_sample
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_symbolic_type_is_the_real_type(op, sample, dtype):
    case = testing.build(op, sample, dtype=dtype)
    sizes = sizes_of(case)
    values = {t: a.astype(t.dtype.np) for t, a in case.values(sizes).items()}
    for y, a in zip(case.results, forward(case, values, sizes), strict=True):
        assert a.shape == interpret.shape_of(y, sizes)
        assert a.dtype == y.dtype.np


@samples_where(lambda op, sample: op.forward_fn is not None and op.body is not None)
def test_forward_is_the_definition(op, sample):
    case = testing.build(op, sample)
    sizes = sizes_of(case)
    values = case.values(sizes)
    with guarded():
        by_body = interpret.evaluate(tuple_of(autodiff.expanded(one_node(case))), values, sizes)
    for a, b in zip(forward(case, values, sizes), by_body, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-14, atol=1e-14)


@every_sample
def test_complex_namespace_means_numpy_on_reals(op, sample):
    case = testing.build(op, sample)
    sizes = sizes_of(case)
    values = case.values(sizes)
    with guarded():
        checked = interpret.evaluate(case.results, values, sizes, complex_numpy)
    for a, b in zip(forward(case, values, sizes), checked, strict=True):
        np.testing.assert_array_equal(a, b)


@samples_where(lambda op, sample: not op.effect)  # two random nodes are two streams of numbers
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_low_precision_is_close(op, sample, dtype):
    """In float32 and bfloat16 an op is what it is in float64 of the same inputs, but for rounding."""
    case = testing.build(op, sample, dtype=dtype)
    wide = testing.build(op, sample)
    sizes = sizes_of(case)
    values = {t: a.astype(t.dtype.np) for t, a in case.values(sizes).items()}
    named = {t.label: a for t, a in values.items()}
    same = {t: named[t.label].astype(t.dtype.np) for t in wide.inputs if t is not None}
    if op.name == "argsort":
        same = {t: a + 0.0 for t, a in same.items()}  # ties of rounded values keep their order in both
    for y, a, b in zip(case.results, forward(case, values, sizes), forward(wide, same, sizes), strict=True):
        if not y.dtype.is_float:
            np.testing.assert_array_equal(a, b)
            continue
        bound = rounding(case, y.dtype.name if y.dtype.name != "float64" else dtype)
        np.testing.assert_allclose(
            a.astype(np.float64), b, rtol=bound, atol=bound * max(1.0, np.max(np.abs(b), initial=0))
        )


@samples_where(lambda op, sample: op.forward_out)
def test_in_place_gives_the_same(op, sample):
    case = testing.build(op, sample)
    sizes = sizes_of(case)
    values = case.values(sizes)
    node = one_node(case)
    arrays = [np.asarray(values[x]) for x in node.inputs]
    kwargs = {k: interpret.bound(v, sizes) for k, v in node.kwargs.items()}
    several = bool(op.outputs)

    def compute(args, out):
        given = out if several or out is None else out[0]
        return tuple_of(op.forward_fn(interpret.namespaces.numpy, *node.args(args), **kwargs, out=given))

    want = compute(arrays, None)
    out = tuple(np.full_like(w, 77) for w in want)
    for given, got, true in zip(out, compute(arrays, out), want, strict=True):
        assert got is given, "with out= the result is out"
        np.testing.assert_array_equal(got, true)
    aliases = [op.inplace] if several else [(i,) for i in op.inplace]
    for inputs in aliases:
        fits = all(
            i < len(arrays) and arrays[i].shape == w.shape and arrays[i].dtype == w.dtype
            for i, w in zip(inputs, want, strict=True)
        )
        if fits:
            own = [a.copy() for a in arrays]
            for got, true in zip(compute(own, tuple(own[i] for i in inputs)), want, strict=True):
                np.testing.assert_array_equal(got, true)


@samples_where(lambda op, sample: op.style == "elementwise" and len(sample.inputs) > 1)
def test_broadcasting_is_expanding(op, sample):
    case = testing.build(op, sample)
    sizes = sizes_of(case)
    values = case.values(sizes)
    whole = broadcast_shapes(op.name, *case.inputs)
    wide = op(*[tg.ops.movement.expand(x, whole) for x in case.inputs], **case.sample.attrs)
    with guarded():
        np.testing.assert_array_equal(interpret.evaluate([wide], values, sizes)[0], forward(case, values, sizes)[0])


@every_sample
def test_flops_are_a_size(op, sample):
    case = testing.build(op, sample)
    node = one_node(case)
    cost = canon(op.flops(picks(node), *node.args(), **node.kwargs))
    assert evaluate(cost, sizes_of(case)) >= 0


def small_variants(op, sample, value):
    """The sample with one size, then with all, set to a number; those that the op refuses in words are left out."""
    names = {w for s in sample.inputs if s is not None for w in s.shape.split() if not w.isdigit()}
    for chosen in [{n} for n in sorted(names)] + ([names] if len(names) > 1 else []):
        try:
            yield testing.build(op, sample, dict.fromkeys(chosen, value))
        except TensorgraphError:
            continue


@every_sample
def test_sizes_of_one(op, sample):
    for case in small_variants(op, sample, 1):
        sizes = sizes_of(case)
        for y, a in zip(case.results, forward(case, case.values(sizes), sizes), strict=True):
            assert a.shape == interpret.shape_of(y, sizes)
        case.check().raise_if_failed()


NO_CHOICE = {"argmax", "packed_rows", "take", "take_along", "segment_sum", "sum_along"}  # no index lies in none


@samples_where(has_batch_axis)
def test_sizes_of_zero(op, sample):
    """An empty batch (the first axis of the first input) is computed like any other, unless the op chooses from it."""
    first = sample.inputs[0].shape.split()[0]
    try:
        case = testing.build(op, sample, {first: 0})
    except TensorgraphError:
        pytest.skip("the op refuses it in words")
    sizes = sizes_of(case)
    try:
        results = forward(case, case.values(sizes), sizes)
    except (ValueError, IndexError):
        assert op.name in NO_CHOICE
        return
    for y, a in zip(case.results, results, strict=True):
        assert a.shape == interpret.shape_of(y, sizes)


# ------------------------------------------------------------------------------------------- gradients


@every_sample
@pytest.mark.parametrize("order", [1, 2])
def test_gradient_is_the_derivative(op, sample, order):
    report = testing.build(op, sample).check(order=order).raise_if_failed()
    assert report.worst_residual <= 1e-12
    floats = any(s is not None and s.dtype == "float" for s in sample.inputs)
    if (
        order == 1
        and floats
        and not op.nodiff
        and not (op.name == "cast" and not sample.attrs["dtype"].endswith(("16", "float32")))
    ):
        assert any(op.name in (e.op, *e.inside) for e in report.entries), "the op itself was checked"


@pytest.mark.parametrize("op", [op for op in OPS.values() if op.nodiff], ids=lambda op: op.name)
def test_no_gradient_passes(op):
    for case in testing.cases(op):
        for y in case.results:
            floats = [x for x in case.inputs if x is not None and x.dtype.is_float]
            assert not autodiff.backward([y], floats, [y])


SYMBOLS = sp.symbols("x y", positive=True)


def as_sympy(out, known):
    """A graph of scalars as a sympy expression, through the records' formulas; floats become exact fractions."""
    value = dict(known)
    for t in topological([out], stop=known):
        if t.op.name == "const":
            value[t] = sp.Rational(
                Fraction(t.attrs["value"]).limit_denominator(1)
                if type(t.attrs["value"]) is int
                else Fraction(t.attrs["value"])
            )
        elif t.op.name == "sign":
            value[t] = sp.sign(value[t.inputs[0]])
        elif t.op.formula is not None:
            value[t] = t.op.formula(sp, *[value[x] for x in t.inputs])
        elif t.op.body is not None:
            inner = autodiff.expanded(t)
            value[t] = as_sympy(inner, {x: value[x] for x in t.inputs})
        else:
            raise NotImplementedError(t.op.name)
    return value[out]


def scalar_ops():
    for op in OPS.values():
        if op.nodiff or op.variadic or any(p.kind != "input" for p in op.params):
            continue
        if op.formula is not None or op.style == "activation":
            yield op


@pytest.mark.parametrize("op", list(scalar_ops()), ids=lambda op: op.name)
def test_rule_is_the_symbolic_derivative(op):
    """For functions of single elements the rule equals sympy.diff of the definition, as an expression."""
    xs = [Tensor(INPUT, (), {}, (), tg.float64, ROOT, ("", 0), p.name) for p in op.inputs]
    symbols = dict(zip(xs, SYMBOLS, strict=False))
    y, g = op(*xs), Tensor(INPUT, (), {}, (), tg.float64, ROOT, ("", 0), "g")
    try:
        f = op.formula(sp, *symbols.values()) if op.formula is not None else as_sympy(autodiff.expanded(y), symbols)
        found = autodiff.backward([y], xs, [g])
        rules = [as_sympy(found[x], {**symbols, g: sp.Integer(1), y: f}) for x in xs]
    except NotImplementedError as piecewise:
        pytest.skip(f"defined piecewise, by {piecewise}")
    for x, rule in zip(SYMBOLS, rules, strict=False):
        gap = sp.simplify(sp.nsimplify(rule, rational=True) - sp.diff(f, x))
        if gap != 0:  # constants such as 2/sqrt(pi) are rounded to float64 in the rule
            for at in itertools.product((Fraction(3, 7), Fraction(5, 4)), (Fraction(2, 3),)):
                point = {s: sp.Rational(v) for s, v in zip(SYMBOLS, at, strict=True)}
                true = sp.diff(f, x).subs(point).evalf(40)
                assert abs(gap.subs(point).evalf(40)) <= abs(true) * sp.Float("4e-16"), op.name


def test_no_false_alarm_in_a_few_seeds():
    """The slow test of a thousand seeds, in small."""
    false_alarms(range(3))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 1000, 125))  # in parts, for as many processes
def test_no_false_alarm_in_a_thousand_seeds(first):
    false_alarms(range(first, first + 125))


def false_alarms(seeds):
    """Every differentiable op for every seed, its samples in turn."""
    differentiable = [op for op in OPS.values() if not op.nodiff and op.inputs]
    built = [list(testing.cases(op)) for op in differentiable]
    for seed in seeds:
        for samples in built:
            case = samples[seed % len(samples)]
            assert case.check(seed).raise_if_failed().worst_residual <= 1e-12, case


# --------------------------------------------------------------------------------- values from elsewhere

mp = mpmath.mp.clone()
mp.dps = 40
POINTS = [-3.25, -1.0, -0.4, 0.0, 1e-5, 0.3, 0.75, 1.0, 2.5, 6.0]
MP = {
    "exp": mp.exp, "log": mp.log, "sqrt": mp.sqrt, "sin": mp.sin, "cos": mp.cos, "tanh": mp.tanh, "erf": mp.erf,
    "expm1": mp.expm1, "log1p": mp.log1p, "rsqrt": lambda x: 1 / mp.sqrt(x), "reciprocal": lambda x: 1 / x,
    "square": lambda x: x * x, "neg": lambda x: -x, "abs": abs, "floor": mp.floor, "sign": mp.sign,
    "sigmoid": lambda x: 1 / (1 + mp.exp(-x)), "silu": lambda x: x / (1 + mp.exp(-x)), "gelu": lambda x: x * mp.ncdf(x),
    "gelu_tanh": lambda x: x / 2 * (1 + mp.tanh(mp.sqrt(2 / mp.pi) * (x + mp.mpf("0.044715") * x**3))),
    "quick_gelu": lambda x: x / (1 + mp.exp(-mp.mpf("1.702") * x)), "softplus": lambda x: mp.log(1 + mp.exp(x)),
    "relu": lambda x: max(x, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", MP)
def test_function_of_one_element_agrees_with_mpmath(name):
    op = OPS[name]
    points = [p for p in POINTS if op.domain == (-2.0, 2.0) or p > max(0, op.domain[0] - 0.1)]
    x = tg.input("x", (len(points),), "float64")
    (got,) = interpret.evaluate([op(x)], {x: np.array(points)}, {})
    want = [float(MP[name](mp.mpf(p))) for p in points]
    np.testing.assert_allclose(got, want, rtol=4e-15, atol=2e-16)


def test_every_function_of_one_element_is_compared():
    unary = {n for n, op in OPS.items() if op.style in ("elementwise", "activation") and len(op.params) == 1}
    assert unary - set(MP) <= {"logical_not"}


def rows(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def run(fn, *arrays, **attrs):
    xs = [None if a is None else tg.input(f"x{i}", a.shape, a.dtype.name) for i, a in enumerate(arrays)]
    given = {x: a for x, a in zip(xs, arrays, strict=True) if x is not None}
    y = fn(*xs, **attrs)
    return interpret.evaluate([y], given, {})[0]


def test_softmax_family_agrees_with_scipy():
    import scipy.special as special

    x = rows((3, 5)) * 30
    np.testing.assert_allclose(run(tg.softmax, x), special.softmax(x, axis=-1), rtol=1e-14)
    np.testing.assert_allclose(run(tg.softmax, x, axis=0), special.softmax(x, axis=0), rtol=1e-14)
    np.testing.assert_allclose(run(tg.log_softmax, x), special.log_softmax(x, axis=-1), rtol=1e-13)
    np.testing.assert_allclose(run(tg.logsumexp, x, axis=1), special.logsumexp(x, axis=1), rtol=1e-14)
    assert np.isfinite(run(tg.softmax, np.array([1e4, -1e4, 0.0]))).all()


def test_reductions_agree_with_exact_sums():
    x = rows((3, 4))
    np.testing.assert_allclose(run(tg.sum, x, axis=1), [math.fsum(r) for r in x.tolist()], rtol=1e-15)
    np.testing.assert_allclose(run(tg.mean, x), math.fsum(x.ravel().tolist()) / 12, rtol=1e-15)
    np.testing.assert_array_equal(run(tg.max, x, axis=0), [max(c) for c in x.T.tolist()])
    np.testing.assert_array_equal(run(tg.argmax, x, axis=1), [r.index(max(r)) for r in x.tolist()])
    want = [list(itertools.accumulate(r)) for r in x.tolist()]
    np.testing.assert_allclose(run(tg.cumsum, x), want, rtol=1e-14)


def test_products_agree_with_sums_over_indices():
    a, b = rows((2, 3, 4)), rows((4, 5), 1)
    want = [[[math.fsum(a[i, j, k] * b[k, m] for k in range(4)) for m in range(5)] for j in range(3)] for i in range(2)]
    np.testing.assert_allclose(run(tg.matmul, a, b), want, rtol=1e-13)
    np.testing.assert_allclose(run(tg.einsum, a, b, spec="ijk,km->ijm"), want, rtol=1e-13)


def test_norms_agree_with_mpmath():
    x, w, b = rows((2, 6)), rows(6, 1), rows(6, 2)
    for got, centred in ((run(tg.layer_norm, x, w, b, eps=1e-5), True), (run(tg.rms_norm, x, w, eps=1e-5), False)):
        for row, out in zip(x.tolist(), got.tolist(), strict=True):
            v = [mp.mpf(e) for e in row]
            mean = mp.fsum(v) / 6 if centred else 0
            scale = mp.sqrt(mp.fsum((e - mean) ** 2 for e in v) / 6 + mp.mpf(1e-5))
            want = [
                float((e - mean) / scale * mp.mpf(w[i]) + (mp.mpf(b[i]) if centred else 0)) for i, e in enumerate(v)
            ]
            np.testing.assert_allclose(out, want, rtol=1e-13, atol=1e-15)


def test_rope_is_a_rotation_of_complex_numbers():
    x, angle = rows((2, 3, 5, 8)), rows((5, 4), 1)
    turn = np.exp(1j * angle)
    halves = (x[..., :4] + 1j * x[..., 4:]) * turn
    pairs = (x[..., ::2] + 1j * x[..., 1::2]) * turn
    got = run(tg.rope, x, np.cos(angle), np.sin(angle))
    np.testing.assert_allclose(got, np.concatenate([halves.real, halves.imag], -1), rtol=1e-13, atol=1e-14)
    got = run(tg.rope, x, np.cos(angle), np.sin(angle), interleaved=True)
    np.testing.assert_allclose(got, np.stack([pairs.real, pairs.imag], -1).reshape(x.shape), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_attention_agrees_with_sums_over_positions(causal, window, softcap):
    q, k, v = rows((2, 4, 3, 5)), rows((2, 2, 6, 5), 1), rows((2, 2, 6, 7), 2)
    offset = np.array(3, np.int32)
    got = run(tg.attention, q, k, v, None, offset, causal=causal, window=window, softcap=softcap)
    want = np.zeros((2, 4, 3, 7))
    for b, h, i in itertools.product(range(2), range(4), range(3)):
        seen = [j for j in range(6) if (not causal or j <= i + 3) and (window is None or j > i + 3 - window)]
        scores = [mp.fdot(q[b, h, i].tolist(), k[b, h // 2, j].tolist()) / mp.sqrt(5) for j in seen]
        if softcap is not None:
            scores = [softcap * mp.tanh(s / softcap) for s in scores]
        top = mp.fsum(mp.exp(s) for s in scores)
        for c in range(7):
            want[b, h, i, c] = float(
                mp.fsum(mp.exp(s) / top * mp.mpf(v[b, h // 2, j, c]) for s, j in zip(scores, seen, strict=True))
            )
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-14)


def test_fully_masked_row_weighs_all_keys_alike():
    q, v = rows((1, 1, 2, 3)), rows((1, 1, 4, 3), 1)
    hidden = np.zeros((1, 1, 2, 4), bool)
    hidden[..., 1, :2] = True
    y = run(tg.attention, q, v, v, hidden, None)
    np.testing.assert_allclose(y[0, 0, 0], v[0, 0].mean(0), rtol=1e-14)


def test_cross_entropy_agrees_with_mpmath():
    logits, labels = rows((4, 5)) * 3, np.array([1, -100, 4, 0], np.int32)
    each = []
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        if label >= 0:
            each.append(mp.log(mp.fsum(mp.exp(e) for e in row)) - mp.mpf(row[label]))
    np.testing.assert_allclose(run(tg.cross_entropy, logits, labels), float(mp.fsum(each) / 3), rtol=1e-14)
    np.testing.assert_allclose(run(tg.cross_entropy, logits, labels, reduction="sum"), float(mp.fsum(each)), rtol=1e-14)


@pytest.mark.parametrize(
    ("counter", "key", "word"),
    [  # known answers of Random123 (Salmon et al. 2011), philox4x32-10
        ((0, 0, 0, 0), (0, 0), 0x6627E8D5),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, 0x408F276D),
        ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0), 0xD16CFE09),
    ],
)
def test_random_bits_are_philox(counter, key, word):
    c = np.array([counter[0]], np.uint64)
    got = philox(np, c, counter[2] | counter[3] << 32, key[0] | key[1] << 32, counter[1])
    assert int(got[0]) == word


def test_ties_share_the_gradient():
    x = tg.input("x", (3,), "float64")
    y = tg.input("y", (3,), "float64")
    given = {x: np.array([1.0, 2.0, 2.0]), y: np.array([1.0, 0.0, 5.0])}
    gx, gy, gm = (*tg.grad(tg.maximum(x, y).sum(), [x, y]), tg.grad(tg.max(x), x))
    a, b, c = interpret.evaluate([gx, gy, gm], given, {})
    assert a.tolist() == [0.5, 1.0, 0.0] and b.tolist() == [0.5, 0.0, 1.0] and c.tolist() == [0.0, 0.5, 0.5]
