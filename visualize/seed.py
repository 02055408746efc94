"""The seed level: a decoder as a chain of thirteen boxes, from text to text. Which step is which box is computed."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import NamedTuple

from tensorgraph.errors import GraphError
from tensorgraph.visualize.links import link_for
from tensorgraph.visualize.project import Projection
from tensorgraph.visualize.steps import Step
from tensorgraph.visualize.view import SEED_LEGEND, Box, Direction, Edge, Role, View


class Stage(NamedTuple):
    """One box of the chain: its letter, its words, and whether the graph holds it (else the pipeline around does)."""

    letter: str
    label: str
    inside: bool = True


STAGES = (
    Stage("A", "Input Text", False),
    Stage("B", "Tokenizer", False),
    Stage("C", "Token IDs"),
    Stage("D", "Embedding"),
    Stage("E", "Q,K,V Proj"),
    Stage("F", "Attn Scores"),
    Stage("G", "Weighted Sum"),
    Stage("H", "FFN: W_up"),
    Stage("I", "Activation"),
    Stage("J", "FFN: W_down"),
    Stage("K", "→ ×{times}"),
    Stage("L", "Vocab Proj"),
    Stage("M", "Output", False),
)


def stages(seen: Projection) -> tuple[dict[Step, str], str]:
    """The letter of every step of a decoder, and how often its block runs.

    The scores, the weighted sum and the activation are told by their place and style; what leads to the scores, lies
    between, and follows, takes the box in whose stretch it lies. Raises GraphError[TG392] if the graph is no decoder:
    token ids, one repeated block with causal attention and then an activation, a head over the table of the ids.
    """
    import networkx as nx

    inputs = seen.graph.inputs
    if other := [name for name, t in inputs.items() if t.dtype.is_float]:
        raise _no_decoder(f"it reads {', '.join(other)}, and not token ids alone")
    frames = [b for b in seen.blocks if b.times and b.parent is None]
    attention = [s for s in seen.steps if s.head in seen.parts.origin]
    framed = [b for b in frames if any(seen.frames.within(seen.frame_of(s), b.id) for s in attention)]
    if not attention:
        raise _no_decoder("it has no attention")
    if any(not seen.parts.origin[s.head].attrs.get("causal") for s in attention):
        raise _no_decoder("its attention sees later tokens, too")
    if len(framed) != 1:
        raise _no_decoder(f"{len(framed)} repeated blocks hold attention" if framed else "its block does not repeat")
    block = framed[0].id
    inside = [s for s in seen.steps if seen.frames.within(seen.frame_of(s), block)]
    origins = list(dict.fromkeys(seen.parts.origin[s.head] for s in inside if s.head in seen.parts.origin))
    if len(origins) != 1:
        raise _no_decoder(f"its block has {len(origins)} attentions")
    parts = [s for s in inside if seen.parts.origin.get(s.head) is origins[0]]
    flow = nx.DiGraph([(f.source, f.target) for f in seen.parts.flows])
    flow.add_nodes_from(seen.steps)
    after = {s: nx.descendants(flow, s) for s in inside}
    acts = [s for s in inside if s.head.op.style == "activation" and s in after[parts[-1]]]
    if len(acts) != 1:
        raise _no_decoder(f"its block has {len(acts)} activations after the attention")
    (act,) = acts
    product = [s for s in after[act] if s in after and s.head.op.ufunc == "multiply" and flow.has_edge(act, s)]
    letters: dict[Step, str] = {}
    for s in seen.steps:
        if s not in after:
            letters[s] = "L" if any(s in after[i] for i in inside) else "D"
        elif s in parts:
            letters[s] = "G" if s is parts[-1] else "F"
        elif s is act or s in product:
            letters[s] = "I"
        elif s in after[act]:
            letters[s] = "J"
        elif s in after[parts[-1]]:
            letters[s] = "H"
        else:
            letters[s] = "E"
    for s in [s for s in seen.steps if s.head.op.style == "loss"]:
        letters[s] = "M"
    embedded = {w.shape[0] for s in seen.steps if letters[s] == "D" and s.head.op.name == "take" for w in s.weights}
    if embedded.isdisjoint(d for s in seen.steps if letters[s] == "L" for w in s.weights for d in w.shape):
        raise _no_decoder("it has no head over its vocabulary")
    return letters, framed[0].times.lstrip("×")


def seed_chart(
    seen: Projection,
    title: str,
    direction: Direction | None = None,
    links: str | Mapping[str, str] | None = None,
) -> View:
    """The chain of thirteen boxes; highlighted is what reads a parameter. Raises GraphError[TG392] for no decoder."""
    letters, times = stages(seen)
    members: dict[str, list[Step]] = {}
    for step, letter in letters.items():
        members.setdefault(letter, []).append(step)
    boxes = []
    for stage in STAGES:
        own = members.get(stage.letter, [])
        label = stage.label.format(times=times)
        holds = any(s.weights for s in own)
        tip = ", ".join(dict.fromkeys(seen.labels[s] for s in own)) or ("" if stage.inside else "outside the graph")
        role: Role = (
            "weight" if holds else "input" if stage.letter == "A" else "output" if stage.letter == "M" else "plain"
        )
        link = link_for(links, label=label, op=stage.letter, path=stage.letter, component="")
        boxes.append(Box(stage.letter, label, role, tooltip=f"{label}: {tip}" if tip else label, link=link))
    chain = [Edge(a.letter, b.letter) for a, b in itertools.pairwise(STAGES)]
    return View(title, tuple(boxes), tuple(chain), (), direction or "LR", SEED_LEGEND, show_weights=False)


def _no_decoder(why: str) -> GraphError:
    return GraphError(
        "TG392",
        f"level seed shows a language model of one repeated block of attention and feed-forward; {why}",
        hint='--level flowchart, in Python level="flowchart", draws any graph',
    )


__all__ = ["STAGES", "Stage", "seed_chart", "stages"]
