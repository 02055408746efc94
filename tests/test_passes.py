"""Passes and the scheduled program: whatever the graph, compiling changes no value, and no two live buffers overlap."""

from __future__ import annotations

import cProfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tensorgraph as tg
from tensorgraph import interpret
from tensorgraph.backends import cpu
from tensorgraph.dims import evaluate
from tensorgraph.passes import memory, rewrite
from tensorgraph.passes.memory import nbytes
from tensorgraph.passes.program import lower
from tensorgraph.tensor import Tensor, topological

WITH_C = pytest.mark.skipif(cpu.compiler() is None, reason="no C compiler")
B, T, d = tg.dims("B T d")
SIZES = {"B": 2, "T": 3, "d": 4}
fast = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))

# ------------------------------------------------------------------------------- random graphs of all kinds

UNARY = [
    tg.neg,
    tg.abs,
    tg.tanh,
    tg.sin,
    tg.square,
    tg.sigmoid,
    tg.relu,
    tg.gelu,
    lambda x: tg.softmax(x) if x.ndim else x,
    lambda x: tg.log_softmax(x) if x.ndim else x,
    tg.softplus,
    tg.stop_gradient,
    lambda x: tg.exp(tg.tanh(x)),
    lambda x: x * 1.0,
    lambda x: x + 0.0,
    lambda x: x - 0.5,
]
BINARY = [tg.add, tg.sub, tg.mul, tg.maximum, tg.minimum, lambda x, y: tg.where(x > y, x, y * 0.5)]


def moves(x: Tensor) -> list[Tensor]:
    """Views and moves of x that keep its number of elements or its shape."""
    n = x.ndim
    out = [tg.reshape(x, (-1,)), tg.reshape(x, (1, *x.shape))]
    if n >= 2:
        out += [tg.permute(x, (*range(1, n), 0)), tg.flip(x, 0), x.T, x.T.reshape(-1)]
    if n:
        out += [
            x.sum(-1, keepdims=True),
            x.mean(0),
            tg.cumsum(x),
            tg.logsumexp(x, 0, True),
            x[:1],
            x[..., :-1][..., :0],
        ]
        out += [tg.concat(x, x * 2.0, axis=n - 1), tg.pad(x, ((1, 0),) * n), tg.expand(x, (2, *x.shape))]
    return out


@st.composite
def graphs(draw: st.DrawFn) -> tuple[dict[str, Tensor], dict[Tensor, np.ndarray]]:
    """A random graph over elementwise ops, reductions, movement and products, with values for its inputs."""
    symbolic = draw(st.booleans())
    sizes = (B, T, d) if symbolic else (2, 3, 4)
    leaves = [
        tg.input("x", sizes, "float64"),
        tg.input("y", sizes[1:], "float64"),
        tg.input("w", (sizes[2], 5), "float64"),
    ]
    pool = list(leaves)
    for _ in range(draw(st.integers(1, 14))):
        x = draw(st.sampled_from(pool))
        kind = draw(st.integers(0, 3))
        if kind == 0:
            pool.append(draw(st.sampled_from(UNARY))(x))
        elif kind == 1:
            fits = [y for y in pool if y.shape == x.shape or not y.shape or x.shape[x.ndim - y.ndim :] == y.shape]
            pool.append(draw(st.sampled_from(BINARY))(x, draw(st.sampled_from(fits))))
        elif kind == 2:
            pool.append(draw(st.sampled_from(moves(x))))
        else:
            fits = [y for y in pool if x.ndim and y.ndim == 2 and x.shape[-1] is y.shape[0]]
            pool.append(x @ draw(st.sampled_from(fits)) if fits else tg.sin(x))
    made = pool[len(leaves) :]
    outputs = {f"o{i}": t for i, t in enumerate(draw(st.lists(st.sampled_from(made), min_size=1, max_size=4)))}
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    values = {t: rng.normal(size=interpret.shape_of(t, SIZES)) for t in leaves}
    return outputs, values


def with_gradients(outputs: dict[str, Tensor], leaves: list[Tensor]) -> dict[str, Tensor]:
    loss = None
    for t in outputs.values():
        loss = t.square().sum() if loss is None else loss + t.square().sum()
    grads = tg.grad(loss, leaves, unused="zero")
    return {**outputs, **{f"g{i}": g for i, g in enumerate(grads)}}


def run(outputs: dict[str, Tensor], values: dict[Tensor, np.ndarray], **options: object) -> tuple[tg.compile, dict]:
    f = tg.compile(outputs, binding=SIZES, **options)
    return f, f(**{t.label: a for t, a in values.items() if t.label in f.graph.inputs})


def close(got: dict, want: list, outputs: dict[str, Tensor]) -> None:
    for (name, t), b in zip(outputs.items(), want, strict=True):
        scale = max(1.0, float(np.max(np.abs(b), initial=0)))
        np.testing.assert_allclose(got[name], b, rtol=1e-12, atol=1e-12 * scale, err_msg=f"{name}: {t!r}")
        assert got[name].shape == b.shape and got[name].dtype == b.dtype


@fast
@given(graphs())
def test_compiled_is_interpreted(case):
    outputs, values = case
    close(run(outputs, values)[1], interpret.evaluate(outputs.values(), values, SIZES), outputs)


@fast
@given(graphs())
def test_compiled_gradients_are_interpreted(case):
    outputs, values = case
    outputs = with_gradients(outputs, list(values))
    close(run(outputs, values)[1], interpret.evaluate(outputs.values(), values, SIZES), outputs)


PASSES = {
    "inline": lambda o: rewrite.inline(o, lambda t: False),
    "cse": rewrite.cse,
    "simplify": rewrite.simplify,
    "flatten_matmul": rewrite.flatten_matmul,
}


@fast
@given(graphs(), st.permutations(list(PASSES)))
def test_every_pass_preserves_values(case, order):
    outputs, values = case
    outputs = with_gradients(outputs, list(values))
    want = interpret.evaluate(outputs.values(), values, SIZES)
    now = outputs
    for name in order:
        now = PASSES[name](now)
        assert list(now) == list(outputs)
        for a, b in zip(now.values(), outputs.values(), strict=True):
            assert tg.Graph(a).nodes and a.dtype == b.dtype
        close(dict(zip(now, interpret.evaluate(now.values(), values, SIZES), strict=True)), want, outputs)


# ------------------------------------------------------------------------------------------- the arena


def live_bytes(program, plan, binding):
    for i, a in enumerate(program.buffers):
        for b in program.buffers[i + 1 :]:
            if a.first <= b.last and b.first <= a.last:
                yield (a, plan.offsets[a.index]), (b, plan.offsets[b.index])


@fast
@given(graphs())
def test_no_two_live_buffers_overlap(case):
    outputs, values = case
    outputs = with_gradients(outputs, list(values))
    f = tg.compile(outputs, binding=SIZES)
    plan = memory.plan(f.program, SIZES)
    for (a, at), (b, bt) in live_bytes(f.program, plan, SIZES):
        assert at + nbytes(a, SIZES) <= bt or bt + nbytes(b, SIZES) <= at, (a, b)
    assert all(at + nbytes(b, SIZES) <= plan.arena for b, at in zip(f.program.buffers, plan.offsets, strict=True))
    assert plan.peak <= plan.arena


@fast
@given(graphs())
def test_in_place_never_clobbers_what_is_still_read(case):
    """Replaying the schedule: whoever reads a buffer finds there the value it asked for."""
    outputs, values = case
    program = tg.compile(with_gradients(outputs, list(values)), binding=SIZES).program
    holds: dict[object, object] = {}  # storage -> the value whose bits lie there
    for k in program.kernels:
        for v in k.inputs:
            if v.root.kind == "arena":
                assert holds[v.root.buffer] is v.root
        for i, v in enumerate(k.outputs):
            if v.kind == "arena":
                holds[v.buffer] = v
                assert v.buffer.first <= program.kernels.index(k) <= v.buffer.last
                took = k.alias[i]
                assert took is None or k.inputs[took].root.kind in ("arena", "leaf")
    for v in program.outputs.values():
        if v.root.kind == "arena":
            assert holds[v.root.buffer] is v.root


@fast
@given(graphs())
def test_results_are_nobodys_views(case):
    outputs, values = case
    given_ = {t.label: a for t, a in values.items()}
    before = {k: a.copy() for k, a in given_.items()}
    f, first = run(outputs, values)
    arrays = list(first.values())
    for i, a in enumerate(arrays):
        assert a.flags.owndata or a.base is None or a.base.flags.owndata
        for other in [*arrays[i + 1 :], *given_.values()]:
            assert not np.shares_memory(a, other)
    kept = {k: a.copy() for k, a in first.items()}
    for a in (a for a in arrays if isinstance(a, np.ndarray)):  # a NumPy scalar cannot be written to
        a.setflags(write=True)
        a[...] = 7.0  # scribbling over results disturbs neither the next call nor the inputs
    second = f(**{k: a for k, a in given_.items() if k in f.graph.inputs})
    for k in kept:
        np.testing.assert_array_equal(second[k], kept[k])
    for k, a in before.items():
        np.testing.assert_array_equal(given_[k], a)


@pytest.mark.parametrize(
    "sizes", [{"B": 0, "T": 3, "d": 4}, {"B": 2, "T": 0, "d": 4}, {"B": 1, "T": 1, "d": 1}, {"B": 5, "T": 2, "d": 7}]
)
def test_other_sizes_replan(sizes):
    n, m, k = tg.dim("N_or_0", min=0), tg.dim("M_or_0", min=0), tg.dim("k0")
    x, w = tg.input("x", (n, m, k), "float64"), tg.input("w", (k, k), "float64")
    y = tg.softmax(x @ w)
    outputs = {
        "y": y,
        "s": y.sum(),
        "t": y.T.reshape(-1),
        **dict(zip("gh", tg.grad((y * y).sum(), [x, w]), strict=True)),
    }
    f = tg.compile(outputs)
    source = f.source
    rng = np.random.default_rng(0)
    for B_, T_, d_ in [(2, 3, 4), tuple(sizes.values()), (2, 3, 4)]:
        X, W = rng.normal(size=(B_, T_, d_)), rng.normal(size=(d_, d_))
        got = f(x=X, w=W)
        want = interpret.evaluate(outputs.values(), {x: X, w: W}, {"N_or_0": B_, "M_or_0": T_, "k0": d_})
        close(got, want, outputs)
    assert f.source is source, "new sizes re-plan and never rebuild"


# ------------------------------------------------------------------------------------- what passes must do


def count(t: Tensor | dict, op: str) -> int:
    outputs = t if isinstance(t, dict) else {"y": t}
    return sum(n.op.name == op for n in topological(outputs.values()))


def test_cse_merges_across_scopes_but_never_effects():
    x, seed = tg.input("x", (3,)), tg.input("seed", (), "int32")
    with tg.scope("a"):
        u, r = tg.exp(x), tg.random.uniform(seed, (3,))
    with tg.scope("b"):
        v, s = tg.exp(x), tg.random.uniform(seed, (3,))
    assert u is not v
    y = {"y": u * r + v * s}
    merged = rewrite.cse(y)
    assert count(y, "exp") == 2 and count(merged, "exp") == 1
    assert count(merged, "uniform") == 2


def test_cse_tells_numbers_of_different_types_apart():
    x = tg.input("x", (2,))
    a, b = tg.cumsum(x, reverse=False), tg.cumsum(x, reverse=True)
    zero, minus = tg.const(0.0, "float32"), tg.const(-0.0, "float32")
    outputs = {"y": a + b, "z": x / zero, "w": x / minus}
    merged = rewrite.cse(outputs)
    assert count(merged, "cumsum") == 2 and merged["z"] is not merged["w"]


def test_gradient_of_a_split_is_one_concatenation():
    x = tg.input("x", (B, T, 3 * d))
    q, k, v = tg.split(x, 3)
    g = tg.grad((q * tg.sin(k) + tg.cos(v)).sum(), x)
    simple = rewrite.simplify({"g": g})
    assert count({"g": g}, "pad") == 3 and count(simple, "pad") == 0 and count(simple, "concat") == 1


@pytest.mark.parametrize("backend", ["numpy", pytest.param("c", marks=WITH_C)])
def test_rows_of_a_tied_gradient_are_added_to_the_rest(backend):
    """The gradients of lookups (here two, of ids that repeat) and of the head: one array, rows added in its place."""
    w = tg.param("w", (7, 5), "float64")
    ids, more = tg.input("ids", (2, 3), "int32"), tg.input("more", (4,), "int32")
    loss = (tg.sin(tg.take(w, ids)) @ w.T).sum() + tg.square(tg.take(w, more)).sum()
    outputs = {"g": tg.grad(loss, w)}
    f = tg.compile(outputs, backend=backend)
    program = [k for k in f.program.kernels if k.node.op.name in ("index_add", "segment_sum")]
    assert sorted(k.node.op.name for k in program) == ["index_add", "index_add"]
    assert program[-1].alias == (0,), "in place"
    r = np.random.default_rng(0)
    given = {"w": r.standard_normal((7, 5)), "ids": r.integers(0, 7, (2, 3)), "more": np.array([6, 0, 6, 6])}
    given = {n: a.astype("i4") if a.dtype.kind == "i" else a for n, a in given.items()}
    (want,) = interpret.evaluate([outputs["g"]], {w: given["w"], ids: given["ids"], more: given["more"]}, {})
    np.testing.assert_allclose(f(**given)["g"], want, rtol=1e-12)


@pytest.mark.parametrize("backend", ["numpy", pytest.param("c", marks=WITH_C)])
def test_rows_are_added_to_a_copy_of_what_is_still_read(backend):
    x, ids, rows = tg.input("x", (5, 3)), tg.input("ids", (4,), "int32"), tg.input("rows", (4, 3))
    y = tg.sin(x)
    f = tg.compile({"y": y, "z": tg.index_add(y, ids, rows), "of x": tg.index_add(x, ids, rows)}, backend=backend)
    r = np.random.default_rng(0)
    a, b, i = (
        r.standard_normal((5, 3)).astype("f4"),
        r.standard_normal((4, 3)).astype("f4"),
        np.array([1, 4, 1, 1], "i4"),
    )
    kept, added = a.copy(), np.zeros_like(a)
    np.add.at(added, i, b)
    found = f(x=a, ids=i, rows=b)
    np.testing.assert_allclose(found["y"], np.sin(a), rtol=1e-6)
    np.testing.assert_allclose(found["z"], np.sin(a) + added, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["of x"], a + added, rtol=1e-5, atol=1e-6)
    assert (a == kept).all()


@pytest.mark.parametrize("backend", ["numpy", pytest.param("c", marks=WITH_C)])
def test_nothing_is_overwritten_that_is_read_later_or_by_the_same_step(backend):
    """What is read late because it is fused with what comes late; rows added to themselves; a leaf moved within."""
    r = np.random.default_rng(0)
    a, b, new, at = tg.input("a", (4, 3)), tg.input("b", (3, 5)), tg.input("new", (1, 5)), tg.input("at", (), "int32")
    y = a @ b
    f = tg.compile(tg.exp(y) * tg.update_slice(y, new, at), backend=backend)
    given = {"a": r.standard_normal((4, 3)), "b": r.standard_normal((3, 5)), "new": r.standard_normal((1, 5))}
    want = given["a"] @ given["b"]
    moved = want.copy()
    moved[2] = given["new"]
    found = f(**{n: v.astype("f4") for n, v in given.items()}, at=np.array(2, "i4"))
    np.testing.assert_allclose(found, np.exp(want) * moved, rtol=1e-4)

    w, ids = tg.input("w", (4, 3), "float64"), tg.input("ids", (4,), "int32")
    g = tg.grad(tg.sin(w + tg.take(w, ids)).sum(), w)
    i, v = np.array([1, 1, 3, 0], "i4"), r.standard_normal((4, 3))
    slope = np.cos(v + v[i])
    np.add.at(want := slope.copy(), i, slope)
    np.testing.assert_allclose(tg.compile(g, backend=backend)(w=v, ids=i), want, rtol=1e-12)

    c = tg.input("c", (6,))
    f = tg.compile({"c": tg.update_slice(c, c[:5], at)}, donate={"c": "c"}, backend=backend)
    held = np.arange(6, dtype="f4")
    f(c=held, at=np.array(1, "i4"))
    np.testing.assert_array_equal(held, [0, 0, 1, 2, 3, 4])


@pytest.mark.parametrize("backend", ["numpy", pytest.param("c", marks=WITH_C)])
def test_sums_of_nothing_are_written(backend):
    x, y = tg.input("x", (3, 0)), tg.input("y", (2, 3, 0))
    f = tg.compile({"s": tg.sum(x, 1), "e": tg.exp(tg.sum(y, -1)), "t": tg.sum(y)}, backend=backend)
    f(x=np.zeros((3, 0), "f4"), y=np.zeros((2, 3, 0), "f4"))
    for bound, *_ in f._bound.values():
        getattr(bound, "frame", bound).arena.fill(255)
    found = f(x=np.zeros((3, 0), "f4"), y=np.zeros((2, 3, 0), "f4"))
    assert (found["s"] == 0).all() and (found["e"] == 1).all() and found["t"] == 0


def test_sum_of_overlapping_pads_stays_a_sum():
    x = tg.input("x", (5,), "float64")
    g = tg.grad((x[:3].square().sum() + x[2:].square().sum()), x)
    f = tg.compile(g)
    np.testing.assert_allclose(f(x=np.arange(5.0)), [0, 2, 8, 6, 8])


def test_size_only_values_are_tables():
    """Masks and ranges depend on sizes alone: computed once per binding, not in the step."""
    q = tg.input("q", (B, 2, T, d))
    f = tg.compile(tg.attention(q, q, q, None, None, causal=True))
    names = {k.node.op.name for k in f.program.kernels}
    assert not names & {"arange", "less_equal"}
    assert any(v.kind == "table" for v in f.program.values)


def test_batched_product_with_a_matrix_is_one_gemm():
    x, w = tg.input("x", (B, T, d)), tg.input("w", (d, 7))
    f = tg.compile(x @ w)
    (k,) = [k for k in f.program.kernels if k.node.op.name == "matmul"]
    assert [len(v.shape) for v in k.inputs] == [2, 2]


# ---------------------------------------------------------------------------------------------- donation


def test_update_runs_after_the_last_reader_of_the_old_value():
    p, g = tg.input("p", (4,), "float64"), tg.input("g", (4,), "float64")
    with tg.scope("", kind="update"):
        new = p - g
    late = tg.exp(p * 3.0)  # made after the update, reads the old value
    f = tg.compile({"new": new, "late": late}, donate={"new": "p"})
    P, G = np.arange(4.0), np.ones(4)
    out = f(p=P, g=G)
    np.testing.assert_array_equal(out["late"], np.exp(np.arange(4.0) * 3))
    np.testing.assert_array_equal(P, np.arange(4.0) - 1)
    assert out["new"] is P
    assert "np.copyto" not in f.source, "written straight into the donated array"


def test_update_that_cannot_be_in_place_is_copied_at_the_end():
    p, q = tg.input("p", (3,), "float64"), tg.input("q", (3,), "float64")
    f = tg.compile({"a": q * 2.0 + p, "b": p * 3.0 - q}, donate={"a": "p", "b": "q"})
    P, Q = np.array([1.0, 2, 3]), np.array([5.0, 7, 9])
    f(p=P, q=Q)
    np.testing.assert_array_equal(P, [11, 16, 21])
    np.testing.assert_array_equal(Q, [-2, -1, 0])


def test_swap_of_two_states():
    p, q = tg.input("p", (3,), "float64"), tg.input("q", (3,), "float64")
    f = tg.compile({"a": q, "b": p}, donate={"a": "p", "b": "q"})
    P, Q = np.array([1.0, 2, 3]), np.array([5.0, 7, 9])
    f(p=P, q=Q)
    assert P.tolist() == [5, 7, 9] and Q.tolist() == [1, 2, 3]


def test_state_and_a_view_of_it():
    p = tg.input("p", (3, 2), "float64")
    f = tg.compile({"new": p + 1.0, "old": p.T, "row": p[1]}, donate={"new": "p"})
    P = np.arange(6.0).reshape(3, 2)
    out = f(p=P)
    np.testing.assert_array_equal(out["old"], np.arange(6.0).reshape(3, 2).T)
    np.testing.assert_array_equal(out["row"], [2, 3])
    np.testing.assert_array_equal(P, np.arange(6.0).reshape(3, 2) + 1)


@fast
@given(graphs(), st.integers(0, 3))
def test_donation_means_what_a_copy_means(case, seed):
    """Inputs overwritten with functions of everything: as if the new values were computed first, then stored."""
    outputs, values = case
    x, y, _ = leaves = list(values)
    everything = sum(t.sum() for t in outputs.values())
    new = {"nx": x * 0.5 + everything, "ny": y + x.sum(0) * 0.1}
    f = tg.compile({**outputs, **new}, binding=SIZES, donate={"nx": "x", "ny": "y"})
    want = interpret.evaluate([*outputs.values(), *new.values()], values, SIZES)
    arrays = {t.label: values[t].copy() for t in leaves if t.label in f.graph.inputs}
    got = f(**arrays)
    close(got, want, {**outputs, **new})
    np.testing.assert_array_equal(arrays["x"], got["nx"])


def test_lowering_names_leaves_by_key():
    x = tg.input("x", (3,))
    program = lower({"y": tg.exp(x)}, {x: "state/x"})
    assert list(program.leaves) == ["state/x"]
    assert evaluate(program.buffers[0].size, {}) == 3


def test_compiling_a_chain_is_linear_in_its_length():
    # Counted, not timed: four times the nodes may take no more than four times the calls.
    def calls(n: int) -> int:
        y = x = tg.input("x", (3,))
        for i in range(n):
            y = tg.tanh(y) if i % 2 else y * 1.01
        profile = cProfile.Profile()
        profile.enable()
        step = tg.compile(tg.grad(y.sum(), x))
        step(x=np.ones(3, np.float32))
        profile.disable()
        return sum(entry.callcount for entry in profile.getstats())

    calls(10)
    few, many = calls(250), calls(1000)
    assert many < 4.1 * few
