"""tg.draw: a tensor, module, graph or checkpoint as a picture at a level."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from tensorgraph.dims import binding as to_binding
from tensorgraph.errors import GraphError, SizeError
from tensorgraph.graph import Graph
from tensorgraph.nn import Module, Parameter
from tensorgraph.tensor import Tensor
from tensorgraph.visualize.backward import backward
from tensorgraph.visualize.flowchart import flowchart, opened
from tensorgraph.visualize.links import check_links
from tensorgraph.visualize.picture import Picture
from tensorgraph.visualize.project import Projection
from tensorgraph.visualize.seed import seed_chart
from tensorgraph.visualize.steps import UNFOLDED
from tensorgraph.visualize.view import Direction
from tensorgraph.visualize.words import mode_text, title_of

Level = Literal["seed", "flowchart", "block", "ops", "backward"]
LEVELS: tuple[Level, ...] = ("seed", "flowchart", "block", "ops", "backward")


def draw(
    what: Any,
    level: Level = "flowchart",
    *,
    values: Mapping[Any, float] | None = None,
    values_label: str | None = None,
    unfold: bool = False,
    direction: Direction | None = None,
    theme: str = "seed",
    shapes: bool = False,
    links: str | Mapping[str, str] | None = None,
    binding: Any = None,
    title: str | None = None,
    block: str | None = None,
    where: bool = True,
    mode: str = "",
    force: bool = False,
) -> Picture:
    """A picture of a tensor, module, graph or loaded model; `.save("x.svg")` writes it.

    Levels: "flowchart" (steps with weights and the plain steps between; repeated layers once, "×N"), "block" (one
    repeated layer opened: the first, or the one whose path or class fits `block`), "ops" (every node), "backward"
    (gradients and what is saved for them), "seed" (a decoder as a chain of thirteen boxes). `values` colours nodes,
    parameters or names by a number, which `values_label` names; those of a gradient check red where they are wrong.
    `shapes` labels edges. `links`: a URL template with
    {label}, {op}, {path}, {component}, or a table by label or path. `binding` turns formulas into numbers.
    `where=False` leaves lines of code out of tooltips; `mode` names what decided which weights are trained, for the
    legend. A module must say what it is called with, as published models do. Raises GraphError: [TG388] a name in
    `values`, [TG389] too many boxes, [TG390] what cannot be drawn, [TG391] an unknown level or block, [TG392] no
    decoder for "seed", [TG395] an unknown direction, [TG396] links that lead nowhere; SizeError[TG014] for a
    size in the text of `binding` that it does not have.
    """
    if level not in LEVELS:
        raise GraphError("TG391", f"unknown level {level!r}", hint=f"one of: {', '.join(LEVELS)}")
    if direction not in (None, "LR", "TB"):
        raise GraphError("TG395", f"unknown direction {direction!r}", hint="LR or TB")
    check_links(links)
    graph, bound, name = traced(what)
    sizes = {**bound, **to_binding(binding)}
    known = {*graph.symbols, *graph.aliases, *bound}
    if isinstance(binding, str) and (unknown := [n for n in sizes if n not in known]):  # a mapping may be a model's own
        near = f"its sizes are {', '.join(sorted(known))}" if known else "all its sizes are numbers"
        raise SizeError("TG014", f"the graph has no size called {unknown[0]!r}", notes=[near])
    need_numbers(values)
    if level == "backward":
        graph = graph.with_gradients()
    seen = Projection(
        graph,
        every=level == "ops",
        whole=level == "backward" or valued_as_one(values),
        unfold=unfold,
        detail=level == "block",
        binding=sizes,
        values=values,
        links=links,
        where=where,
    )
    weights = stored(what, graph)
    said = title if title is not None else title_of(name or graph.name, weights, sizes, graph.aliases)
    if level == "seed":
        view = seed_chart(seen, said, direction, links)
    elif level == "backward":
        view = backward(seen, said, direction, force)
    else:
        view = flowchart(seen, said, direction, opened(seen, block) if level == "block" else None, force)
    if links and not isinstance(links, str) and not any(box.link for box in view.boxes):
        labels = dict.fromkeys(box.label for box in view.boxes)
        hint = f"boxes are called {', '.join(list(labels)[:8])}{' ...' * (len(labels) > 8)}"
        raise GraphError("TG396", f"no box is called {', '.join(list(links)[:4])}", hint=hint)
    if mode:
        said = mode_text(mode, weights, sizes, graph.aliases)
        view = replace(view, legend=" · ".join(part for part in (said, view.legend) if part))
    label = values_label or str(getattr(values, "label", "value"))
    view = replace(view, values_label=label, values_limit=getattr(values, "limit", None))
    return Picture(view, theme=theme, shapes=shapes)


def valued_as_one(values: Mapping[Any, float] | None) -> bool:
    """Whether an op whose definition would be shown in its place has a value, and nothing says whose within it: it is
    one box then, and has it all."""
    return not hasattr(values, "within") and any(
        isinstance(key, Tensor) and key.op.style in UNFOLDED for key in values or ()
    )


def need_numbers(values: Any) -> None:
    """Raise GraphError[TG388] for values that are not a number for each node, parameter or name."""
    if values is None:
        return
    if not isinstance(values, Mapping):
        raise GraphError("TG388", f"values are given by node or name, not as a {type(values).__name__}",
                         hint='values={"up.weight": 0.5}')  # fmt: skip
    for key, value in values.items():
        if not isinstance(key, (str, Tensor, Parameter)):
            raise GraphError("TG388", f"values: {key!r} is no node, parameter or name")
        if isinstance(value, str) or not hasattr(value, "__float__"):
            raise GraphError("TG388", f"values: {value!r} for {getattr(key, 'label', key)} is no number")


def stored(what: Any, graph: Graph) -> list[Tensor]:
    """All weights of what is drawn, whether its graph reads them or not."""
    module = next((m for m in (what, getattr(what, "module", None), getattr(what, "model", None))
                   if isinstance(m, Module)), None)  # fmt: skip
    return list(graph.params.values()) if module is None else [p.__tensor__() for p in module.parameters()]


def traced(what: Any) -> tuple[Graph, dict[str, int], str | None]:
    """The graph of what is to be drawn, the sizes it is bound to, and its name.

    Raises GraphError[TG390] for a module that cannot be traced, and for anything that is no graph.
    """
    bound = dict(getattr(what, "binding", None) or {})
    if isinstance(what, Graph):
        return what, bound, what.name if what.name != "graph" else None
    if isinstance(what, Tensor) or (isinstance(what, (list, tuple, dict)) and what):
        return Graph(what), bound, None
    trace = getattr(what, "trace", None)
    if callable(trace):
        made = trace()
        graph = made if isinstance(made, Graph) else Graph(made)
        name = getattr(what, "name", None) or (graph.name if graph.name != "graph" else type(what).__name__)
        return graph, {**bound, **(getattr(graph, "binding", None) or {})}, str(name)
    inputs, outputs = getattr(what, "inputs", None), getattr(what, "outputs", None)
    if isinstance(what, Module) and callable(inputs) and callable(outputs):
        needs = getattr(what, "usual", ()) or getattr(what, "needs", ())  # what it says it is called with
        made = outputs(**inputs(needs))
        name = str(next(iter(getattr(what, "config", {}).get("architectures") or ()), type(what).__name__))
        return Graph(made, name=name, aliases=getattr(what, "aliases", None)), bound, name
    if isinstance(what, Module):
        raise GraphError(
            "TG390",
            f"{type(what).__name__} does not say what it is called with, so it cannot be drawn by itself",
            hint='draw what it returns: tg.draw(model(tg.input("x", ...)))',
        )
    raise GraphError("TG390", f"a {type(what).__name__} is no graph", hint="a tensor, module, graph or loaded model is")


__all__ = ["LEVELS", "draw", "traced"]
