"""Generated C against the reference: every op, training, state in place, threads, and machines without a compiler."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import scipy.special

import tensorgraph as tg
from tensorgraph import interpret, testing
from tensorgraph.backends import cpu
from tensorgraph.complex_numpy import guarded
from tensorgraph.errors import TensorgraphError
from tensorgraph.gradcheck.sampling import small_sizes
from tensorgraph.graph import Graph
from tests.test_ops import OPS, every_sample, rounding, small_variants

pytestmark = pytest.mark.skipif(cpu.compiler() is None, reason="no C compiler")


def all_cases(dtype, ones):
    """Every sample as a graph, or every variant of it with sizes of 1, by (op, number of the sample)."""
    for name, op in OPS.items():
        for i, sample in enumerate(op.samples):
            if op.effect:
                continue
            try:
                found = small_variants(op, sample, 1) if ones else [testing.build(op, sample, dtype=dtype)]
            except TensorgraphError:
                assert "float" not in dtype, "every op takes floats"
                continue
            for n, case in enumerate(found):
                for t in case.inputs:
                    if t is not None:
                        t.label = f"{name}.{i}.{n}.{t.label}"
                yield (name, i), case


def computable(case, dtype):
    """Whether NumPy computes it in this dtype (some ops take integers, and their definitions do not)."""
    if "float" in dtype:
        return True
    sizes = small_sizes(case.graph)
    try:
        with guarded():
            interpret.evaluate(case.results, {t: a.astype(t.dtype.np) for t, a in case.values(sizes).items()}, sizes)
    except (TypeError, TensorgraphError):
        return False
    return True


@functools.cache
def ran(dtype, strict, ones=False):
    """All of them compiled as one unit: (case, result, reference) by (op, number of the sample)."""
    cases = [x for x in all_cases(dtype, ones) if computable(x[1], dtype)]
    outputs = {f"{n}/{j}": y for n, (_, case) in enumerate(cases) for j, y in enumerate(case.results)}
    graph = Graph(outputs)
    sizes = small_sizes(graph)
    values = {}
    for _, case in cases:
        values |= {t: np.asarray(a).astype(t.dtype.np) for t, a in case.values(sizes).items()}
    got = tg.compile(graph, backend="c", strict=strict, binding=sizes)(**{t.label: a for t, a in values.items()})
    out = {}
    with guarded():
        for n, (key, case) in enumerate(cases):
            want = interpret.evaluate(case.results, values, sizes)
            out.setdefault(key, []).append((case, [got[f"{n}/{j}"] for j in range(len(want))], want))
    return out


def agree(found, dtype):
    for case, got, want in found:
        for y, a, b in zip(case.results, got, want, strict=True):
            assert a.shape == b.shape and a.dtype == y.dtype.np
            if not y.dtype.is_float:
                np.testing.assert_array_equal(a, b)
                continue
            bound = rounding(case, dtype) * (2.0**-29 if dtype == "float64" else 1.0)
            a, b = a.astype("float64"), np.asarray(b).astype("float64")
            np.testing.assert_allclose(a, b, rtol=bound, atol=bound * max(1.0, np.max(np.abs(b), initial=0)))


@every_sample
@pytest.mark.parametrize(
    ("dtype", "strict"),
    [("float32", False), ("float32", True), ("float64", False),
     *((name, False) for name in ("bfloat16", "float16", "int64", "int32", "int8", "uint8", "bool"))],
)  # fmt: skip
def test_every_op_agrees_with_the_reference(op, sample, dtype, strict):
    found = ran(dtype, strict).get((op.name, op.samples.index(sample)))
    if found is None:
        pytest.skip("two nodes give two streams" if op.effect else f"not an op on {dtype}")
    agree(found, dtype)


@every_sample
def test_sizes_of_one(op, sample):
    agree(ran("float64", False, True).get((op.name, op.samples.index(sample)), []), "float64")


# ------------------------------------------------------------------------------------- whole training steps


def mini(B="B", T="T"):
    """A small decoder's loss with all that fusion meets: norms, attention, an activation, tied embeddings."""
    B, T = tg.dims(f"{B} {T}")
    V, d, H = 11, 8, 2
    ids, labels = tg.input("ids", (B, T), "int32"), tg.input("labels", (B, T), "int32")
    norms, heads = {"g": (d,), "b": (d,), "qkv": (d, 3 * d), "o": (d, d)}, {"up": (d, 20), "ub": (20,), "down": (20, d)}
    p = {n: tg.param(n, s) for n, s in {"wte": (V, d), **norms, **heads}.items()}
    x = tg.take(p["wte"], ids)
    h = tg.layer_norm(x, p["g"], p["b"])
    q, k, v = ((h @ p["qkv"]).reshape(B, T, 3, H, d // H)[:, :, i].permute(0, 2, 1, 3) for i in range(3))
    x = x + tg.attention(q, k, v, causal=True).permute(0, 2, 1, 3).reshape(B, T, d) @ p["o"]
    x = x + tg.gelu_tanh(tg.rms_norm(x, p["g"]) @ p["up"] + p["ub"]) @ p["down"]
    return tg.cross_entropy(tg.layer_norm(x, None, None) @ p["wte"].T, labels)


def arrays(step, seed=0, B=2, T=7):
    rng = np.random.default_rng(seed)
    params = {
        n: (rng.standard_normal(interpret.shape_of(p, {})) * 0.3).astype("float32") for n, p in step.params.items()
    }
    ids, labels = (rng.integers(0, 11, (B, T)).astype("int32") for _ in range(2))
    labels[0, 0] = -100
    return params, {"ids": ids, "labels": labels}


def trained(backend, steps=4, sizes=({"B": 2, "T": 7},), strict=False, optimiser=None):
    step = tg.compile(mini(), update=optimiser or tg.optim.AdamW(1e-2), backend=backend, strict=strict)
    params, _ = arrays(step)
    state, losses = step.init(params), []
    for i in range(steps):
        for s in sizes:
            value, state = step(state, **arrays(step, i, **s)[1])
            losses.append(value)
    return np.array(losses), dict(state)


def same_run(a, b, rtol=2e-5):
    np.testing.assert_allclose(a[0], b[0], rtol=rtol)
    assert a[1].keys() == b[1].keys()
    for n in a[1]:
        np.testing.assert_allclose(a[1][n], b[1][n], rtol=1e-3, atol=1e-4, err_msg=n)


@pytest.mark.parametrize("strict", [False, True])
def test_training_is_what_numpy_trains(strict):
    same_run(trained("c", strict=strict), trained("numpy"))


def test_new_sizes_rebuild_nothing():
    sizes = [{"B": 2, "T": 7}, {"B": 3, "T": 5}, {"B": 1, "T": 2}]
    same_run(trained("c", 2, sizes), trained("numpy", 2, sizes))


@pytest.mark.parametrize(
    "optimiser", [tg.optim.SGD(0.1, momentum=0.9), tg.optim.AdamW(1e-2, clip=0.5), tg.optim.SGD(0.1)]
)
def test_other_optimisers(optimiser):
    same_run(trained("c", optimiser=optimiser), trained("numpy", optimiser=optimiser))


@pytest.mark.parametrize("strict", [False, True])
def test_every_run_gives_the_same_bits(strict):
    a, b = trained("c", strict=strict), trained("c", strict=strict)
    np.testing.assert_array_equal(a[0], b[0])
    for n in a[1]:
        np.testing.assert_array_equal(a[1][n], b[1][n])


# --------------------------------------------------------------------------------------------- functions


def test_polynomials_are_as_close_as_they_say():
    x = tg.input("x", (tg.dim("n"),))
    f = tg.compile({"exp": tg.exp(x), "tanh": tg.tanh(x), "erf": tg.erf(x)}, backend="c")
    small = np.geomspace(1e-30, 1, 20_001)
    grid = np.concatenate([np.linspace(-105, 90, 400_001), np.linspace(-5, 5, 400_001), small, -small]).astype(
        "float32"
    )
    got = f(x=grid)
    for name, exact, ulps in (("exp", np.exp, 2), ("tanh", np.tanh, 3), ("erf", scipy.special.erf, 2)):
        with np.errstate(over="ignore", under="ignore"):
            want = exact(grid.astype("float64"))
            top = np.isinf(want.astype("float32"))
            unit = np.maximum(np.spacing(np.abs(want.astype("float32"))), np.float32(1e-45)).astype("float64")
        assert np.isinf(got[name][top]).all()
        assert np.max(np.abs(got[name].astype("float64") - want)[~top] / unit[~top]) <= ulps, name


SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 0.5, 88.0, -88.0, 89.0, -104.0, 1e-40, 3e38, -3e38, 1e-30]


def same_specials(got, want, rtol, what):
    """Equal in where they are nan, where infinite, and elsewhere close."""
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want), err_msg=what)
    infinite = np.isinf(want)
    np.testing.assert_array_equal(np.isinf(got), infinite, err_msg=what)
    np.testing.assert_array_equal(np.asarray(got)[infinite], np.asarray(want)[infinite], err_msg=what)
    fine = np.isfinite(want)
    np.testing.assert_allclose(np.asarray(got)[fine], np.asarray(want)[fine], rtol=rtol, atol=1e-35, err_msg=what)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nan_and_infinity_of_elementwise_ops(strict, dtype):
    a, b = (v.ravel() for v in np.meshgrid(np.array(SPECIAL, dtype), np.array(SPECIAL, dtype)))
    x, y = tg.input("x", a.shape, dtype), tg.input("y", a.shape, dtype)
    ys = {}
    for name, op in OPS.items():
        if op.style in ("elementwise", "activation") and not op.attrs and len(op.inputs) < 3 and name[:7] != "logical":
            ys[name] = op(*[x, y][: len(op.inputs)])
    assert len(ys) > 25, sorted(ys)
    sizes = {"x": a, "y": b}
    want = tg.compile(ys, backend="numpy")(**sizes)
    got = tg.compile(ys, backend="c", strict=strict)(**sizes)
    for n in ys:
        same_specials(got[n], want[n], 1e-6 if dtype == "float32" else 1e-14, n)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_wherever_they_stand_in_a_row(strict, special):
    """Also where a row ends in less than a vector, and where a region has many parts."""
    n = 37
    x = tg.input("x", (tg.dim("rows"), n))
    ys = {"sum": tg.sum(x, 1), "max": tg.max(x, 1), "min": tg.min(x, 1), "columns": tg.max(x, 0), "sums": tg.sum(x, 0),
          "softmax": tg.softmax(x), "logsumexp": tg.logsumexp(x, axis=1), "norm": tg.layer_norm(x, None, None),
          "argmax": tg.argmax(x, axis=1), "total": tg.sum(x), "most": tg.max(x), "least": tg.min(x)}  # fmt: skip
    f, plain = tg.compile(ys, backend="c", strict=strict), tg.compile(ys, backend="numpy")
    given = np.random.default_rng(0).standard_normal((2 * n, n)).astype("float32")
    given[np.arange(n), np.arange(n)] = special
    for a in (given, given[n:]):
        want, got = plain(x=a), f(x=a)
        for name in ys:
            same_specials(got[name], want[name], 1e-4, name)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "uint8", "bool"])
@pytest.mark.parametrize("axis", [0, 1])
def test_order_is_stable_and_nan_is_last(axis, dtype):
    """Of many ties, at lengths beside powers of two, through views of either order."""
    rows, columns = tg.dim("rows"), tg.dim("columns")
    x = tg.input("x", (rows, columns), dtype)
    ys = {f"{down} {turned}": tg.argsort(x.T if turned else x, axis=axis, descending=down)
          for down in (False, True) for turned in (False, True)}  # fmt: skip
    f, plain = tg.compile(ys, backend="c"), tg.compile(ys, backend="numpy")
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (2, 3), (17, 64), (65, 7), (1000, 33)):
        a = rng.integers(0, 5, shape).astype(dtype)
        if dtype.startswith("float"):
            a[rng.random(shape) < 0.1] = np.nan
            a[rng.random(shape) < 0.1] = -np.inf
        for name, order in (*f(x=a).items(), *plain(x=a).items()):
            down, turned = (word == "True" for word in name.split())
            lies = a.T if turned else a
            key = -lies.astype("f8") if down else lies
            want = np.argsort(key, axis=axis, kind="stable")
            np.testing.assert_array_equal(order, want, name)


@pytest.mark.parametrize("sizes", [[2, 0, 5, 3], [0, 0, 0, 0], [10, 0, 0, 0], [1, 1, 1, 1], [0, 300, 0, 4]])
@pytest.mark.parametrize("strict", [False, True])
def test_products_of_rows_in_groups(sizes, strict):
    """Empty groups, rows that belong to none, one group of nearly all rows; and both gradients."""
    N, d, f, E = max(11, sum(sizes)), 33, 20, len(sizes)
    x, w = tg.input("x", (tg.dim("N"), d)), tg.input("w", (E, f, d))
    y = tg.grouped_matmul(x, w.T, tg.input("sizes", (E,), "int32"))
    outputs = {"y": y, **tg.grad(tg.sum(tg.sin(y)), {"x": x, "w": w})}
    made, plain = (tg.compile(outputs, backend=b, strict=s) for b, s in (("c", strict), ("numpy", False)))
    assert all(k.region or k.pieces[0].kind == "special" for k in made.program.kernels)
    r = np.random.default_rng(0)
    given = {"x": r.standard_normal((N, d)).astype("f4"), "w": r.standard_normal((E, f, d)).astype("f4"),
             "sizes": np.array(sizes, "i4")}  # fmt: skip
    got, want = made(**given), plain(**given)
    for n in outputs:
        np.testing.assert_allclose(got[n], want[n], rtol=1e-4, atol=1e-4, err_msg=n)


def test_sums_of_truths_are_truths():
    x, ids = tg.input("x", (256, 2), "bool"), tg.input("ids", (256,), "int32")
    f = tg.compile(tg.segment_sum(x, ids, 3), backend="c")
    found = f(x=np.ones((256, 2), bool), ids=np.zeros(256, "i4"))
    assert found.tolist() == [[True] * 2, [False] * 2, [False] * 2]


def test_a_step_after_a_sum_of_segments_in_numpy_comes_after_it():
    x, ids = tg.input("x", (4, 3), "float16"), tg.input("ids", (4,), "int32")
    y = tg.segment_sum(x, ids, 5).astype("float32")
    f = tg.compile(tg.sum(tg.tanh(y) * 2.0), backend="c")
    want = 2 * 3 * np.tanh([1.0, 2.0, 0.0, 1.0, 0.0]).sum()
    for _ in range(2):  # the second call has nothing left over from the first
        found = f(x=np.ones((4, 3), "f2"), ids=np.array([0, 1, 1, 3], "i4"))
        np.testing.assert_allclose(found, want, rtol=1e-6)


def test_tables_have_the_dtype_that_the_graph_says():
    B = tg.dim("B")
    x, k = tg.input("x", (B,)), tg.input("k", (B,), "int32")
    cases = {
        "float32 of int32": x * (tg.arange(size=B) * 0.5),
        "a gradient over a size": tg.grad(tg.sum(x * x) / tg.dimension(B), x),
        "int32 of int8 and uint8": k + (tg.cast(tg.arange(size=B), "int8") + tg.cast(tg.arange(size=B), "uint8")),
    }
    X, K = np.array([1.0, 2.0, 3.0, 4.0], "f4"), np.zeros(4, "i4")
    want = {"float32 of int32": X * [0.0, 0.5, 1.0, 1.5], "a gradient over a size": X / 2,
            "int32 of int8 and uint8": 2 * np.arange(4)}  # fmt: skip
    for backend in ("numpy", "c"):
        found = tg.compile(cases, backend=backend)(x=X, k=K)
        for name in cases:
            np.testing.assert_allclose(found[name], want[name], err_msg=f"{name} on {backend}")


def test_a_number_of_threads_that_is_none_is_said_once(monkeypatch, caplog):
    monkeypatch.setenv("TENSORGRAPH_THREADS", "many")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert [cpu.threads(), cpu.threads()] == [3, 3]
    assert [r.message for r in caplog.records] == [
        "$TENSORGRAPH_THREADS is 'many', which is no number of threads: it is left aside"
    ]


@pytest.mark.parametrize(("what", "why"), [
    ("file", "Not a directory|File exists"), ("group", "others can write there"), ("proc", "No such file|be made"),
])  # fmt: skip
def test_a_cache_that_cannot_be_used_is_said_and_nothing_stays(tmp_path, what, why):
    folder = {"file": tmp_path / "file", "group": tmp_path, "proc": Path("/proc/nothing")}[what]
    if what == "file":
        folder.write_text("")
    elif what == "group":
        (folder / "c").mkdir()
        (folder / "c").chmod(0o770)
    code = "from tensorgraph.backends import cpu; print(cpu.cache()); print(cpu.cache())"
    env = {**os.environ, "TENSORGRAPH_CACHE": str(folder)}
    ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert re.search(rf"the cache {folder}/c is not used: ({why})", ran.stderr) and ran.stderr.count("is not used") == 1
    first, second = ran.stdout.split()
    assert first == second and not Path(first).exists()


def test_what_killed_builds_left_behind_is_removed(monkeypatch, tmp_path):
    monkeypatch.setenv("TENSORGRAPH_CACHE", str(tmp_path))
    cpu.cache.cache_clear()
    cpu._tidy.cache_clear()
    try:
        old, new = (cpu.cache() / name for name in ("tmpold", "tmpnew"))
        for folder in (old, new):
            folder.mkdir()
        os.utime(old, (0, 0))
        cpu.build("int f(void) { return 1; }", cpu.flags(False))
        assert not old.exists() and new.exists()
    finally:
        cpu.cache.cache_clear()


def test_a_cache_that_is_deleted_or_damaged_is_made_again(monkeypatch, tmp_path):
    monkeypatch.setenv("TENSORGRAPH_CACHE", str(tmp_path))
    cpu.cache.cache_clear()
    try:
        source = "int f(void) { return 41; }"
        assert cpu.load(source, cpu.flags(False)).f() == 41
        (built,) = (tmp_path / "c").glob("*.so")
        whole = built.read_bytes()
        for damage in (b"junk", whole[:5000], b""):  # what is cut short loads, and ends the process where it is touched
            built.unlink()
            built.write_bytes(damage)
            assert cpu.load(source, cpu.flags(False)).f() == 41
            assert len(built.read_bytes()) == len(whole)
        shutil.rmtree(tmp_path)
        assert cpu.load(source + " ", cpu.flags(False)).f() == 41
    finally:
        cpu.cache.cache_clear()


def test_flags_of_the_environment_come_last(monkeypatch):
    monkeypatch.setenv("TENSORGRAPH_CFLAGS", "-O1 -DNAME='a b'")
    assert cpu.flags(True)[-3:] == ["-DTG_STRICT", "-O1", "-DNAME=a b"]
    built = cpu.build("int f(void) { return 1; }", cpu.flags(False))
    monkeypatch.delenv("TENSORGRAPH_CFLAGS")
    assert cpu.build("int f(void) { return 1; }", cpu.flags(False)) != built


def test_arrays_that_are_not_contiguous():
    x, y = tg.input("x", (5, 4)), tg.input("y", (5, 4))
    f = tg.compile({"y": y + x}, donate={"y": "y"}, backend="c")
    a, b = np.arange(20, dtype="float32").reshape(4, 5).T, np.ones((4, 5), "float32").T
    want = a + b
    f(x=a, y=b)
    np.testing.assert_array_equal(b, want)


@pytest.fixture
def fresh_offer():
    cpu.offered.cache_clear()
    cpu.library.cache_clear()
    yield
    cpu.offered.cache_clear()
    cpu.library.cache_clear()


def test_auto_is_c_for_a_training_step_and_numpy_for_one_evaluation():
    w = tg.param("w", (3,))
    assert tg.compile(w.square().sum(), update=tg.optim.SGD(0.1)).options.backend == "c"
    assert tg.compile(w.square().sum()).options.backend == "numpy"


def test_without_a_compiler(monkeypatch, fresh_offer, caplog):
    monkeypatch.setattr(cpu, "compiler", lambda: None)
    x, w = tg.input("x", (3,)), tg.param("w", (3,))
    with pytest.raises(tg.errors.BackendError, match="needs a C compiler"):
        tg.compile(x + 1.0, backend="c")
    assert tg.compile(x + 1.0)(x=np.zeros(3, "float32")).tolist() == [1, 1, 1]
    for _ in range(2):
        step = tg.compile((w - 1.0).square().sum(), update=tg.optim.SGD(0.5))
        value, state = step(step.init({"w": np.zeros(3)}))
    assert value == 3 and state["params/w"].tolist() == [1, 1, 1]
    assert [r.getMessage() for r in caplog.records] == ['no C compiler was found: backend="auto" runs on NumPy']


def test_which_compiler(monkeypatch, tmp_path):
    find = cpu.compiler.__wrapped__
    for name in ("gcc", "mine"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert find() == (str(tmp_path / "gcc"),)
    monkeypatch.setenv("CC", "mine -m64")
    assert find() == (str(tmp_path / "mine"), "-m64")
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "ziglang")
    assert find() == (sys.executable, "-m", "ziglang", "cc")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert find() is None


def test_with_a_compiler_that_does_not_work(monkeypatch, fresh_offer, caplog, tmp_path):
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho no headers >&2\nexit 1\n")
    broken.chmod(0o700)
    monkeypatch.setenv("TENSORGRAPH_CACHE", str(tmp_path))
    monkeypatch.setattr(cpu, "compiler", lambda: (str(broken),))
    cpu.cache.cache_clear()
    try:
        w = tg.param("w", (3,))
        step = tg.compile(w.sum(), update=tg.optim.SGD(0.5))
        value, _ = step(step.init({"w": np.ones(3)}))
        assert value == 3 and "does not work" in caplog.text and len(caplog.records) == 1
    finally:
        cpu.cache.cache_clear()


# ------------------------------------------------------------------------------------- the call made again


def test_a_step_made_again_checks_what_it_is_given():
    ids, w = tg.input("ids", (3,), "int32"), tg.param("w", (5, 2))
    step = tg.compile(tg.take(w, ids).square().sum(), update=tg.optim.SGD(0.1), backend="c")
    plain = tg.compile(tg.take(w, ids).square().sum(), update=tg.optim.SGD(0.1), backend="numpy")
    params = {"w": np.arange(10, dtype="float32").reshape(5, 2)}
    a, b = step.init(params), plain.init(params)
    batch = np.array([0, 2, 4], np.int32)
    for given in (batch, batch, batch[::-1], batch.astype("int64"), batch.copy(), batch):
        x, a = step(a, ids=given)
        y, b = plain(b, ids=given)
        np.testing.assert_allclose(x, y, rtol=1e-6)
    assert a.repeat is not None, "this graph has the short way"
    np.testing.assert_allclose(a["params/w"], b["params/w"], rtol=1e-6)
    before = a["params/w"].copy()
    for wrong in ([0, 5, 1], [-1, 0, 0]):
        with pytest.raises(tg.errors.DataError, match="outside"):
            step(a, ids=np.array(wrong, np.int32))
    with pytest.raises(tg.errors.DataError, match="no value given for ids"):
        step(a)
    np.testing.assert_array_equal(a["params/w"], before)
    old = a
    _, a = step(a, ids=batch)
    with pytest.raises(tg.errors.StateError, match="consumed"):
        step(old, ids=batch)


def test_an_index_that_the_graph_computes_is_checked_where_it_is_used():
    ids, x = tg.input("ids", (3,), "int32"), tg.input("x", (5,))
    f = tg.compile(tg.take(x, ids + ids), backend="c")
    given = np.arange(5, dtype="float32")
    np.testing.assert_array_equal(f(x=given, ids=np.array([0, 1, 2], np.int32)), [0, 2, 4])
    with pytest.raises(tg.errors.DataError, match="outside its axis"):
        f(x=given, ids=np.array([0, 1, 3], np.int32))


THREADED = """
import hashlib, sys
import numpy as np, tensorgraph as tg
B, T, d, V = tg.dims("B T d V")
x, labels = tg.input("x", (B, T, d)), tg.input("labels", (B, T), "int32")
w, g, u = tg.param("w", (d, d)), tg.param("g", (d,)), tg.param("u", (V, d))
h = tg.gelu_tanh(tg.layer_norm(x, g, None) @ w)
q = h.reshape(B, T, 4, d / 4).permute(0, 2, 1, 3)
h = h + tg.attention(q, q, q, causal=True).permute(0, 2, 1, 3).reshape(B, T, d)
loss = tg.cross_entropy(h @ u.T, labels)
step = tg.compile(loss, update=tg.optim.AdamW(1e-2, clip=1.0), backend="c", strict=sys.argv[1] == "strict")
r = np.random.default_rng(0)
draw = lambda *s: r.standard_normal(s).astype("float32")
state = step.init({"w": draw(192, 192) / 14, "g": draw(192), "u": draw(777, 192) / 14})
for _ in range(3):
    given = {"x": draw(5, 65, 192), "labels": r.integers(0, 777, (5, 65)).astype("int32")}
    value, state = step(state, **given)
digest = hashlib.sha256(value.tobytes())
for n in sorted(state):
    digest.update(state[n].tobytes())
print(digest.hexdigest())
"""


@pytest.mark.parametrize(("mode", "threads"), [("strict", (1, 2, 3, 3)), ("fast", (2, 2)), ("fast", (3, 3))])
def test_the_same_bits_from_run_to_run_and_if_strict_for_any_number_of_threads(mode, threads):
    def digest(n):
        env = {**os.environ, "TENSORGRAPH_THREADS": str(n)}
        done = subprocess.run(
            [sys.executable, "-c", THREADED, mode], env=env, capture_output=True, text=True, check=True
        )
        return done.stdout

    assert len({digest(n) for n in threads}) == 1


def softmaxes(seed):
    """A function with row buffers in scratch, cut into many parts; an input and what comes out of it."""
    x = tg.input("x", (tg.dim("rows"), 700))
    f = tg.compile([tg.softmax(tg.tanh(x) * float(seed + 1)), tg.tanh(x).sum(0)], backend="c")
    a = np.random.default_rng(seed).standard_normal((150, 700)).astype("float32")
    return f, a, f(x=a)


def test_calls_from_several_threads_at_once(monkeypatch):
    monkeypatch.setenv("TENSORGRAPH_THREADS", "2")
    made = [softmaxes(i) for i in range(4)]
    wrong = []

    def call(i):
        f, a, want = made[i]
        for _ in range(60):
            if not all(np.array_equal(x, y) for x, y in zip(f(x=a), want, strict=True)):
                wrong.append(i)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_makes_threads_of_its_own(monkeypatch):
    monkeypatch.setenv("TENSORGRAPH_THREADS", "2")
    f, a, want = softmaxes(0)
    child = os.fork()
    if not child:
        same = all(np.array_equal(x, y) for x, y in zip(f(x=a), want, strict=True))
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_build_does_not_depend_on_where_the_lines_of_a_model_stand(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORGRAPH_CACHE", str(tmp_path))
    cpu.cache.cache_clear()
    try:
        one = tg.compile(tg.tanh(tg.input("x", (3,))) * 2.0, backend="c").lowered
        other = tg.compile(tg.tanh(tg.input("x", (3,))) * 2.0, backend="c").lowered
        assert one.c_source != other.c_source, "comments name the line"
        assert len(list(tmp_path.glob("c/*.so"))) == 1
    finally:
        cpu.cache.cache_clear()
