"""Products of few rows in C: within the error bound of a sum, at any size, for any threads the same bits."""

from __future__ import annotations

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import tensorgraph as tg
from tensorgraph.backends import cpu
from tensorgraph.ops.packed import packed_matmul

pytestmark = pytest.mark.skipif(cpu.compiler() is None, reason="no C compiler")
SMALL = itertools.product((1, 2, 4, 6), (1, 2, 3, 5), (1, 7, 16, 17, 63, 64, 130))
SIZES = [*SMALL, (1, 700, 1040), (3, 1041, 515), (2, 5, 9001), (1, 4099, 64), (4, 1003, 96)]
KINDS = ("rows", "columns", "batch", "batch of columns", "shared", "shared columns", "bfloat16", "int8")


def made(kind: str, strict: bool) -> Any:
    """x [m, k] times weights of n results as they lie in memory: n rows or k rows, one or several times, or packed."""
    m, n, k, b = (tg.dim(s) for s in "mnkb")
    if kind in ("bfloat16", "int8"):
        w, scale = tg.input("w", (n, k), kind), tg.input("scale", (n,)) if kind == "int8" else None
        return tg.compile(packed_matmul(tg.input("x", (m, k)), w, scale), backend="c", strict=strict)
    if "shared" in kind:  # heads of one row each that read the same weights
        w = tg.input("w", (b, 1, *((k, n) if "columns" in kind else (n, k))))
        x = tg.reshape(tg.input("x", (b, m, k)), (b, m, 1, k))
        y = tg.reshape(x @ (w if "columns" in kind else tg.swapaxes(w, -1, -2)), (b, m, n))
        return tg.compile(y, backend="c", strict=strict)
    lead = (b,) if "batch" in kind else ()
    w = tg.input("w", (*lead, *((k, n) if "columns" in kind else (n, k))))
    y = tg.input("x", (*lead, m, k)) @ (w if "columns" in kind else tg.swapaxes(w, -1, -2))
    return tg.compile(y, backend="c", strict=strict)


def values(kind: str, m: int, n: int, k: int) -> tuple[dict[str, Any], Any]:
    """Inputs, and the weights that they stand for [.., n, k] in float64."""
    r = np.random.default_rng(m + 10 * n + 100 * k)
    lead = (3,) if "batch" in kind or "shared" in kind else ()
    x = r.standard_normal((*lead, m, k)).astype("f4")
    if kind == "int8":
        q, scale = r.integers(-127, 128, (n, k)).astype("i1"), r.random(n).astype("f4")
        return {"x": x, "w": q, "scale": scale}, q * scale[:, None].astype("f8")
    w = r.standard_normal((*lead, n, k)).astype("f4")
    if n > 1:
        w[..., 0, k // 2], w[..., 1, k - 1] = np.nan, np.inf
    if kind == "bfloat16":
        w = w.astype(ml_dtypes.bfloat16)
        return {"x": x, "w": w}, w.astype("f8")
    lies = np.ascontiguousarray(np.swapaxes(w, -1, -2)) if "columns" in kind else w
    return {"x": x, "w": lies[:, None] if "shared" in kind else lies}, w.astype("f8")


def threaded(f: Any, count: int) -> None:
    bound = list(f._bound.values())[-1][0]
    assert cpu.threads() >= count
    bound.frame.call.threads = count


@pytest.mark.parametrize("strict", [False, True], ids=["fast", "strict"])
@pytest.mark.parametrize("kind", KINDS)
def test_products_of_few_rows(kind: str, strict: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORGRAPH_THREADS", "3")
    f = made(kind, strict)
    for m, n, k in SIZES:
        given, w = values(kind, m, n, k)
        first = f(**given)
        with np.errstate(all="ignore"):
            x = given["x"].astype("f8")
            want = x @ np.swapaxes(w, -1, -2)
            terms = np.abs(x) @ np.swapaxes(np.abs(w), -1, -2)
        whole = np.isfinite(want)
        np.testing.assert_array_equal(first[~whole], want[~whole])
        bound = (k + 2) * 2.0**-24 * terms[whole]  # products, sums and a scale, each rounded once
        assert (np.abs(first[whole] - want[whole]) <= bound * (1 + 1e-5)).all(), (m, n, k)
        if m <= 4 or strict:
            for count in (1, 2, 3):
                threaded(f, count)
                assert first.tobytes() == f(**given).tobytes(), f"{(m, n, k)} with {count} threads"


def test_a_number_of_rows_does_not_change_the_others() -> None:
    """A row of x gives the same bits alone and among few."""
    for kind in ("rows", "columns", "bfloat16", "int8"):
        f = made(kind, False)
        given, _ = values(kind, 4, 300, 700)
        several = f(**given)
        for i in range(4):
            assert f(**{**given, "x": given["x"][i : i + 1]}).tobytes() == several[i : i + 1].tobytes()
