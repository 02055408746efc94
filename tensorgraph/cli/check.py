"""`check`: shapes, obligations and gradients of a model, as a table or as JSON."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from tensorgraph.dims import free
from tensorgraph.gradcheck import check_grads
from tensorgraph.graph import Graph
from tensorgraph.op import Obligation

from .app import print_json
from .target import Target

if TYPE_CHECKING:
    from rich.console import Console


SHOWN = 12  # kinds of nodes in the table, the worst first, unless all are asked for


def check_model(
    target: Target, out: Console, seed: int = 0, *, only_wrong: bool = False, every: bool = False, as_json: bool = False
) -> bool:
    """Build the graph with its loss, list what its sizes must fulfil, compare its gradients; whether all is right."""
    start = time.perf_counter()
    graph = scalar(target)
    target.check_sizes(graph.symbols)
    built = time.perf_counter() - start
    duties = obligations(graph, target)
    report = check_grads(graph, binding={n: v for n, v in target.given.items() if n in graph.symbols}, seed=seed)
    broken = [o for o, holds in duties if holds is False]
    if as_json:
        print_json(
            {
                "model": target.name,
                "passed": report.passed and not broken,
                "nodes": len(graph.nodes),
                "symbols": graph.symbols,
                "obligations": [{"text": str(o), "holds": holds} for o, holds in duties],
                "gradients": report.to_json(),
            }
        )
        return report.passed and not broken
    sizes = f"all sizes {', '.join(graph.symbols)}" if graph.symbols else "its sizes"
    if not only_wrong:
        out.print(
            f"[bold]shapes[/]       right for {sizes}: {len(graph.nodes)} nodes in {1e3 * built:.0f} ms", soft_wrap=True
        )
    shown = [(o, h) for o, h in duties if h is False or not only_wrong]
    for i, (o, holds) in enumerate(shown):
        mark = {True: "holds", False: "[bold red]BROKEN[/]", None: "when bound"}[holds]
        out.print(f"{'[bold]obligations[/]' if i == 0 else ' ' * 11}  {mark}: ", end="")
        out.print(str(o), markup=False, soft_wrap=True)
    if not duties and not only_wrong:
        out.print("[bold]obligations[/]  none")
    if only_wrong and report.passed and not broken:
        out.print(report.summary(), markup=False, soft_wrap=True)
    else:
        out.print(report.table(only_wrong, None if every or only_wrong else SHOWN))
    return report.passed and not broken


def scalar(target: Target) -> Graph:
    """The graph whose gradients are checked: the loss of a published model, or the outputs of one's own."""
    found = target.trace(gradients=target.graph is None)
    outputs: dict[str, Any] = {n: t for n, t in found.outputs.items() if not n.startswith("∂")}
    return Graph(outputs, name=target.name, aliases=target.aliases)


def obligations(graph: Graph, target: Target) -> list[tuple[Obligation, bool | None]]:
    """What the sizes must fulfil, and whether the model's own values do; None where a size has no value yet."""
    out: list[tuple[Obligation, bool | None]] = []
    for o in graph.obligations:
        known = free(o.left) | free(o.right) <= target.binding.keys()
        out.append((o, o.holds(target.binding) if known else None))
    return out


__all__ = ["check_model", "obligations", "scalar"]
