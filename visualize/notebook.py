"""What a notebook shows of tensors, graphs, modules and loaded models: Mermaid, tables, text; no program is called."""

from __future__ import annotations

from typing import Any

from tensorgraph.graph import Graph
from tensorgraph.tensor import Tensor

MOST_NODES = 20_000  # a graph of more is shown as text: a cell must not make its reader wait
MOST_LINES = 80


def display(what: Any) -> dict[str, Any]:
    """The MIME bundle of something of ours: `text/plain` always, and its flowchart or ledger where there is one.

    Never raises: what cannot be drawn is text.
    """
    bundle: dict[str, Any] = {"text/plain": _text(what)}
    try:
        drawn = _drawn(what)
    except Exception:  # a value must show itself whatever is wrong with it: drawing is not what was asked for
        return bundle
    return {**drawn, **bundle}


def _text(what: Any) -> str:
    if not isinstance(what, Graph) or len(what.nodes) > MOST_NODES:
        return repr(what)
    lines = what.text().split("\n")
    if len(lines) > MOST_LINES:
        kept = MOST_LINES - 10
        lines[kept:-1] = [f"    ... {len(lines) - kept - 1} lines more, all in str(graph)"]
    return "\n".join(lines)


def _drawn(what: Any) -> dict[str, Any]:
    from tensorgraph.visualize.draw import draw, traced
    from tensorgraph.visualize.weights import ledger

    makes = isinstance(what, (Tensor, Graph)) or any(callable(getattr(what, n, None)) for n in ("trace", "inputs"))
    if not makes:  # a module alone does not say what it is called with; its weights are known
        return {"text/html": ledger(what).html}
    if len(traced(what)[0].nodes) > MOST_NODES:
        return {}
    return {"text/vnd.mermaid": draw(what).mermaid}


__all__ = ["display"]
