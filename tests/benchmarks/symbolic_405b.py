"""Llama-3.1-405B with every size a symbol, its 126 layers unrolled: forward and backward, built and shape-checked.

Prints JSON: milliseconds of sympy's import, of the forward graph and of the backward one, nodes, the process's peak
memory, and the number of parameters once the sizes are bound.
"""

from __future__ import annotations

import json
import resource
import sys
import time


def main() -> int:
    """Print the figures; exit status 1 if they break the budget of one second and 400 MB."""
    start = time.perf_counter()
    import sympy  # noqa: F401

    sympy_ms = (time.perf_counter() - start) * 1e3
    import tensorgraph as tg
    from tensorgraph.dims import evaluate
    from tensorgraph.models import llama

    start = time.perf_counter()
    model = llama.build("llama-3.1-405b", layers=126)
    B, T = tg.dims("B T")
    logits = model(tg.input("tokens", (B, T), "int32"))
    loss = tg.cross_entropy(logits, tg.input("labels", (B, T), "int32"))
    forward_ms = (time.perf_counter() - start) * 1e3
    start = time.perf_counter()
    leaves = {n: p.__tensor__() for n, p in model.named_parameters().items()}
    grads = tg.grad(loss, leaves)
    backward_ms = (time.perf_counter() - start) * 1e3
    graph = tg.Graph({"loss": loss, **grads})
    figures = {
        "sympy_import_ms": round(sympy_ms, 1),
        "forward_ms": round(forward_ms, 1),
        "backward_ms": round(backward_ms, 1),
        "nodes": len(graph.nodes),
        "rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "total": evaluate(model.total(), model.binding),
        "symbols": graph.symbols,
    }
    print(json.dumps(figures))
    return 0 if forward_ms + backward_ms < 1000 and figures["rss_mb"] < 400 else 1


if __name__ == "__main__":
    sys.exit(main())
