"""Milliseconds per stage for chains of 20,000 and 100,000 nodes: build, differentiate, print, compile, run, collect.

Linear time means that the last column, the ratio per node, stays near 1.
"""

from __future__ import annotations

import gc
import json
import time

import numpy as np

import tensorgraph as tg


def chain(n: int) -> dict[str, float]:
    """Milliseconds of each stage for a chain of n nodes."""
    took: dict[str, float] = {}

    def timed(name: str, start: float) -> float:
        took[name] = (time.perf_counter() - start) * 1e3
        return time.perf_counter()

    at = time.perf_counter()
    x = tg.input("x", (2,), "float64")
    y = x
    for _ in range(n // 2):
        y = tg.sin(y) * 0.999
    at = timed("build", at)
    g = tg.grad(y.sum(), x)
    at = timed("differentiate", at)
    text = str(tg.Graph(y))
    at = timed("print", at)
    assert text.count("\n") > n
    f = tg.compile(g)
    assert f.source
    at = timed("compile", at)
    assert np.isfinite(f(x=np.ones(2))).all()
    at = timed("run", at)
    del f, y, g
    gc.collect()
    timed("collect", at)
    return took


def main() -> None:
    """Print the table as JSON."""
    chain(2_000)
    small, large = chain(20_000), chain(100_000)
    table = {
        k: {"20k_ms": round(a, 1), "100k_ms": round(large[k], 1), "per_node_ratio": round(large[k] / a / 5, 2)}
        for k, a in small.items()
    }
    print(json.dumps(table, indent=2))


if __name__ == "__main__":
    main()
