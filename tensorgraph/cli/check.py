"""`check`: shapes, obligations and gradients of a model, as a table or as JSON."""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tensorgraph.dims import free
from tensorgraph.errors import counted
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
    small, notes = small_images(target)
    checked = scalar(small) if notes else graph
    sizes = {n: v for n, v in target.given.items() if n in checked.symbols}
    trained = [n for n, p in checked.params.items() if p.attrs.get("trained", True)]
    report = check_grads(checked, binding=sizes, seed=seed, wrt=trained if target.training else None)
    report.notes[:0] = notes
    broken = [o for o, holds in duties if holds is False]
    passed = report.passed and not broken
    if as_json:
        owed = [{"text": str(o), "holds": holds} for o, holds in duties]
        print_json({"model": target.name, **report.to_json(), "passed": passed, "obligations": owed})
        return passed
    which = f"all sizes {', '.join(graph.symbols)}" if graph.symbols else "its sizes"
    if not only_wrong:
        out.print(
            f"[bold]shapes[/]       right for {which}: {counted(len(graph.nodes), 'node')} in {1e3 * built:.0f} ms",
            soft_wrap=True,
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
    return passed


def small_images(target: Target) -> tuple[Target, list[str]]:
    """A published model whose images are two by three patches, and what was changed: pixels are numbers, not symbols.

    The target itself, and nothing said, where no config has a larger image.
    """
    if target.config is None or target.graph is not None:
        return target, []
    notes: list[str] = []
    config = copy.deepcopy(dict(target.config))
    stack = [config]
    while stack:
        part = stack.pop()
        stack += [v for v in part.values() if isinstance(v, dict)]
        if "image_size" not in part or "patch_size" not in part:
            continue
        image, patch = (x if isinstance(x, list) else [x, x] for x in (part["image_size"], part["patch_size"]))
        small = [2 * patch[0], 3 * patch[1]]
        if image[0] > small[0] and image[1] > small[1]:
            notes.append(f"images of {image[0]} × {image[1]} pixels are checked at {small[0]} × {small[1]}")
            part["image_size"] = small
    if not notes:
        return target, []
    from tensorgraph import models

    return replace(target, module=target.prepare(models.build(config))), notes


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


__all__ = ["check_model", "obligations", "scalar", "small_images"]
