"""Pictures and ledgers say what is in the graph: the seed's chart from a real model, every weight once."""

from __future__ import annotations

import csv
import html.parser
import io
import itertools
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import merman
import networkx as nx
import pytest
from test_visualize import Geometry, Rect, inside, overlap, touches

import tensorgraph as tg
from tensorgraph.cli import main
from tensorgraph.cli.target import open_target
from tensorgraph.errors import GraphError
from tensorgraph.graph import Graph
from tensorgraph.models import build
from tensorgraph.visualize import LEVELS, SEED_LEGEND, THEMES, Picture, View, draw, ledger
from tensorgraph.visualize import engine as layout
from tensorgraph.visualize.project import Projection
from tensorgraph.visualize.seed import STAGES, stages
from tensorgraph.visualize.theme import contrast
from tensorgraph.visualize.words import human, ranges, span


def traced(name: str, loss: bool = False, **changes: Any) -> tuple[Graph, Any]:
    m = build(name, **changes)
    out = m.outputs(**m.inputs(("input_ids", "labels") if loss else ("input_ids",)))
    return Graph(out, name=name, aliases=m.aliases), m


def picture(name: str, level: str = "flowchart", changes: dict[str, Any] | None = None, **options: Any) -> Picture:
    graph, m = traced(name, **(changes or {}))
    return draw(graph, level, binding=m.binding, **options)  # type: ignore[arg-type]


def labels(view: View) -> list[str]:
    return [b.label for b in view.boxes]


# ------------------------------------------------------------------------------------------------- the seed
# The seed's chart, box by box: what of Llama-3-70B's flowchart it holds. A, B and M are the pipeline around the graph.

SEED = {
    "A": "Input Text", "B": "Tokenizer", "C": "Token IDs", "D": "Embedding", "E": "Q,K,V Proj", "F": "Attn Scores",
    "G": "Weighted Sum", "H": "FFN: W_up", "I": "Activation", "J": "FFN: W_down", "K": "→ ×80", "L": "Vocab Proj",
    "M": "Output",
}  # fmt: skip
HOLDS = {
    "D": {"embed"}, "E": {"attn_norm", "q", "k", "v", "RoPE"}, "F": {"scores", "softmax"}, "G": {"weighted sum"},
    "H": {"out", "+", "mlp_norm", "gate", "up"}, "I": {"SiLU", "×"}, "J": {"down", "+"}, "L": {"norm", "head"},
}  # fmt: skip
HIGHLIGHTED = {"D", "E", "H", "J", "L"}
LINKS = {
    "A": "/llms/what-happens/", "B": "/llms/what-happens/tokens/", "C": "/llms/what-happens/tokens/",
    "D": "/llms/what-happens/embeddings/", "M": "/llms/what-happens/embeddings/model-layers/final-vector-to-token/",
    **dict.fromkeys("EFG", "/llms/what-happens/embeddings/model-layers/attention-deep-dive/"),
    **dict.fromkeys("HJ", "/llms/what-happens/embeddings/model-layers/ffn-deep-dive/"),
    "I": "/llms/what-happens/embeddings/layer-transforms/",
    "L": "/llms/what-happens/embeddings/model-layers/final-vector-to-token/",
}  # fmt: skip


@pytest.fixture(scope="module")
def llama() -> Projection:
    graph, m = traced("llama-3-70b")
    return Projection(graph, binding=m.binding)


def boxed(seen: Projection) -> dict[Any, str]:
    """The seed's box of every step, by the table above: by label, and the second residual goes with what it ends."""
    out = {}
    residuals = iter("HJ")
    for step in seen.steps:
        label = seen.labels[step]
        out[step] = next(residuals) if label == "+" else next(box for box, own in HOLDS.items() if label in own)
    return out


def test_the_seeds_chart_is_the_real_models(llama: Projection) -> None:
    box = boxed(llama)
    assert {b: {llama.labels[s] for s in box if box[s] == b} for b in HOLDS} == HOLDS
    assert {box[s] for s in box if s.weights} == HIGHLIGHTED
    quotient = nx.DiGraph()
    for flow in llama.parts.flows:
        source = box.get(flow.source, "C")
        if source != box[flow.target]:
            quotient.add_edge(source, box[flow.target])
    chain = ["C", *HOLDS]
    reduced = nx.transitive_reduction(quotient)
    assert sorted(reduced.edges) == sorted(itertools.pairwise(chain))
    assert set(quotient.edges) - set(reduced.edges) == {  # what the seed leaves out:
        ("E", "G"),  # the values pass the scores
        ("D", "H"),  # the residual around attention
        ("H", "J"),  # the residual around the feed-forward
    }
    back = set()  # what a later layer reads of the one before it is no flow of the folded chart
    for node in llama.graph.nodes:
        ends = [llama.parts.of.get(llama.parts.resolve(x)) for x in (*node.inputs, node)]
        for source in ends[:-1]:
            if source and ends[-1] and box[source] > box[ends[-1]]:
                back.add((box[source], box[ends[-1]]))
    assert back == {("J", "E"), ("J", "H")}  # the way back for the next layer: to its norm, and past its attention
    (block,) = llama.blocks
    assert block.times == "×80"
    (scores,) = [s for s in llama.steps if llama.labels[s] == "scores"]
    added = [x for n in scores.nodes if n.op.ufunc == "add" for x in llama.parts.inputs(n)]
    assert any(map(llama.parts.is_free, added))  # the mask, made of positions alone, is part of the scores
    unnamed = {llama.labels[s] for s in llama.steps if s.weights} - {"embed", "q", "k", "v", "up", "down", "head"}
    assert unnamed == {"attn_norm", "out", "mlp_norm", "gate", "norm"}  # weights that the seed does not name


def test_the_stages_are_computed_as_the_table_says(llama: Projection) -> None:
    found, times = stages(llama)
    assert found == boxed(llama) and times == "80"
    assert {s.letter: s.label.format(times=times) for s in STAGES} == SEED


def test_the_drawn_seed_reads_like_the_seed() -> None:
    drawn = picture("llama-3-70b", "seed", links=LINKS)
    assert labels(drawn.view) == list(SEED.values())
    assert [(e.source, e.target) for e in drawn.view.edges] == list(itertools.pairwise(SEED))
    assert {b.id for b in drawn.view.boxes if b.role == "weight"} == HIGHLIGHTED
    assert {b.id: b.link for b in drawn.view.boxes if b.link} == LINKS and "K" not in LINKS
    assert drawn.view.legend == SEED_LEGEND == "Highlighted: every step that uses learned weight matrices"
    text = drawn.mermaid
    assert text.startswith("graph LR\n")
    assert "classDef weight fill:#2d6a4f,stroke:#1b4332,color:#d8f3dc" in text
    assert text.count(":::weight") == 5 and text.count(" --> ") == 12 and text.count("    click ") == 12


def test_the_command_line_draws_the_seed_with_its_links(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "links.json"
    table.write_text(json.dumps({SEED[box]: link for box, link in LINKS.items()}), encoding="utf-8")
    chart = tmp_path / "x.mmd"
    assert main(["draw", "llama-3-70b", "--level", "seed", "--links", str(table), "-o", str(chart)]) == 0
    clicks = dict(re.findall(r'click n(\d+) "([^"]*)"', chart.read_text(encoding="utf-8")))
    assert {letter: clicks[str(i)] for i, letter in enumerate(SEED) if str(i) in clicks} == LINKS
    table.write_text("[]", encoding="utf-8")
    assert main(["draw", "llama-3-70b", "--level", "seed", "--links", str(table), "-o", str(chart)]) != 0
    assert "TG396" in capsys.readouterr().err
    assert main(["draw", "gpt2", "--links", str(tmp_path / "no.json"), "-o", str(chart)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("GraphError[TG396] cannot read the links in ") and "Errno" not in said


@pytest.mark.parametrize("name", ["gpt2", "llama-3.2-1b", "qwen3-0.6b"])
def test_other_decoders_have_the_seeds_chart_too(name: str) -> None:
    assert {b.id for b in picture(name, "seed").view.boxes if b.role == "weight"} == HIGHLIGHTED


def test_what_is_no_decoder_has_no_seed_chart() -> None:
    with pytest.raises(GraphError) as raised:
        draw(tg.tanh(tg.input("x", (3,))), "seed")
    assert str(raised.value) == (
        "[TG392] level seed shows a language model of one repeated block of attention and feed-forward; "
        'it reads x, and not token ids alone\n  hint: --level flowchart, in Python level="flowchart", draws any graph'
    )
    with pytest.raises(GraphError, match="its attention sees later tokens, too"):
        draw(open_target("bert-base"), "seed")
    with pytest.raises(GraphError, match="it reads pixel_values, and not token ids alone"):
        draw(open_target("vit-b-16"), "seed")
    model = build("gpt2", symbolic=False)
    with pytest.raises(GraphError, match="it has no head over its vocabulary"):
        draw(model.outputs(**model.inputs(("input_ids",)))["logits"].inputs[0], "seed")
    with pytest.raises(GraphError, match="its block does not repeat"):
        picture("mini-268", "seed")


def test_the_order_of_steps_is_that_of_seed_004(llama: Projection) -> None:
    """Tokens, embedding, then per layer: norm, Q/K/V, RoPE, attention, back, norm, FFN; final norm, projection."""
    order = ["embed", "attn_norm", "q", "RoPE", "scores", "softmax", "weighted sum", "out", "mlp_norm", "up", "down"]
    order += ["norm", "head"]
    flow = nx.DiGraph([(f.source, f.target) for f in llama.parts.flows])
    first = {llama.labels[s]: s for s in reversed(llama.steps)}
    for before, after in itertools.pairwise(order):
        assert nx.has_path(flow, first[before], first[after]), (before, after)


# ------------------------------------------------------------------------------------------------- flowcharts


def test_gpt2_folded() -> None:
    assert (
        picture("gpt2", title="GPT-2").text
        == """\
GPT-2

  input_ids
■ embed           (V, d)  38.6 M
■ positions       (P, d)  786 k
  +                                             ← embed, positions
┌ Block ×12 · 7.09 M each · 85.1 M
│   x
│ ■ attn_norm     (d) ×2  1.54 k
│ ■ qkv           (d, 3·d) + (3·d)  1.77 M
│   scores        causal
│   softmax
│   weighted sum                                ← softmax, qkv
│ ■ out           (d, d) + (d)  591 k
│   +                                           ← x (residual), out
│ ■ mlp_norm      (d) ×2  1.54 k
│ ■ up            (d, 4·d) + (4·d)  2.36 M
│   GELU
│ ■ down          (4·d, d) + (d)  2.36 M
│   +                                           ← + (residual), down
└─
■ norm            (d) ×2  1.54 k
◇ head            (V, d)  tied = embed · 0 new  ← norm, embed (tied)
  logits

■ Highlighted: every step that uses learned weight matrices
◇ tied: stored once
"""
    )


FAMILIES = ["gpt2", "llama-3-8b", "llama-3.1-405b", "mistral-7b", "qwen2.5-0.5b", "qwen3-0.6b", "gemma-2b",
            "gemma-2-9b", "gemma-3-1b", "phi-3-mini", "mini-268", "mini-11776"]  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_every_weight_is_in_one_box_and_every_value_flows(name: str) -> None:
    graph, m = traced(name)
    seen = Projection(graph, binding=m.binding)
    lead = seen.folded.representative
    first = {x for n in graph.nodes if n not in lead for x in n.inputs if x.op.style == "weight"}
    assert {p for s in seen.steps for p in s.weights} == first
    owned = [p for s in seen.steps for p in s.weights if seen.uses.owners[p] is s]
    assert len(owned) == len(set(owned)) == len(first)
    flow = nx.DiGraph([(f.source, f.target) for f in seen.parts.flows])
    (end,) = [s for s in seen.steps if not flow.out_degree(s)]
    assert nx.ancestors(flow, end) | {end} == set(flow) and set(seen.steps) <= set(flow)
    assert nx.is_directed_acyclic_graph(flow)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["gpt2", "llama-3-8b", "gemma-3-1b", "mini-268"])
def test_every_level_draws_in_every_text_form(name: str, level: str) -> None:
    if level in ("seed", "block") and name in ("gemma-3-1b", "mini-268") and (level, name) != ("block", "gemma-3-1b"):
        with pytest.raises(GraphError, match=r"TG39[12]"):
            picture(name, level)
        return
    drawn = picture(name, level)
    for text in (drawn.text, drawn.mermaid, drawn.dot):
        assert all(b.label.split()[0] in text for b in drawn.view.boxes)
    ids = {b.id for b in drawn.view.boxes}
    ends = {e for edge in drawn.view.edges for e in (edge.source, edge.target)}
    assert ends == ids


@pytest.mark.parametrize(
    ("name", "level"),
    [("gpt2", "flowchart"), ("gpt2", "block"), ("llama-3-70b", "seed"), ("gpt2", "ops"), ("gpt2", "backward"),
     ("llama-3.1-405b", "flowchart"), ("llama-3-8b", "backward"), ("gemma-3-1b", "flowchart"),
     ("mixtral-8x7b", "flowchart"), ("mixtral-8x7b", "backward"), ("deepseek-v3", "flowchart"),
     ("deepseek-v3", "backward"), ("clip-vit-l-14-336", "flowchart"), ("llava-1.5-7b", "flowchart"),
     ("llava-1.5-7b bridge+lora", "flowchart"), ("idefics-9b", "flowchart"), ("llama-3.2-11b-vision", "flowchart"),
     ("llama-2-7b lora", "flowchart"), ("bert-base", "flowchart"), ("mini-268", "flowchart"),
     ("llava-1.5-7b bridge-only", "backward"), ("llama-2-7b lora", "block"), ("mixtral-8x7b", "block"),
     *(pytest.param(name, level, marks=pytest.mark.slow) for name, level in [
         ("paligemma-3b", "flowchart"), ("gemma-2-9b", "flowchart"), ("deepseek-v2-lite", "flowchart"),
         ("vit-b-16", "flowchart"), ("phi-3-mini", "flowchart"), ("qwen3-0.6b", "flowchart"), ("gpt2 lora", "block"),
         ("mixtral-8x7b", "ops"), ("deepseek-v3", "ops"), ("llava-1.5-7b", "ops"), ("clip-vit-l-14-336", "backward"),
         ("paligemma-3b", "backward"), ("idefics-9b", "backward"), ("llama-3.2-11b-vision", "backward"),
         ("gemma-3-1b", "backward"), ("llava-1.5-7b bridge+lora", "backward")])],
)  # fmt: skip
def test_nothing_overlaps_in_real_pictures(name: str, level: str) -> None:
    name, _, mode = name.partition(" ")
    shapes = level in ("block", "flowchart")
    made = draw(open_target(name).train(mode or None), level, shapes=shapes)  # type: ignore[arg-type]
    view, drawn = made.rows.view, Geometry(made.view, shapes)
    assert len(drawn.boxes) == len(view.boxes) and len(drawn.edges) == len(view.edges)
    written = drawn.edge_labels if shapes else []
    assert not shapes or written
    for text, other in itertools.combinations(written, 2):
        assert not overlap(text, other, slack=0.5)
    for (a, x), (b, y) in itertools.combinations(drawn.boxes.items(), 2):
        assert not overlap(x, y), (a, b)
    for box, rect in drawn.boxes.items():
        assert not any(overlap(text, rect) for text in written), box
        assert all(inside(text, rect) for text in drawn.labels[box]), box
        for frame, around in drawn.frames.items():
            assert inside(rect, around) if box in drawn.members[frame] else not overlap(rect, around), (box, frame)
    for tail, head, curve in drawn.edges:
        assert touches(curve[0], drawn.boxes[tail], 12) and touches(curve[-1], drawn.boxes[head], 12), (tail, head)
        for box, rect in drawn.boxes.items():
            assert box in (tail, head) or not any(touches(q, rect, -1.5) for q in curve), (tail, head, box)
        for text in itertools.chain(*drawn.headings.values()):
            assert level == "backward" or not any(touches(q, text, -0.5) for q in curve), (tail, head, "heading")
        assert not any(touches(q, text, -1.5) for text in written for q in curve), (tail, head, "shape")
    for (a, x), (b, y) in itertools.combinations(drawn.frames.items(), 2):
        assert frames_apart(x, y) >= 7.9, (a, b)


def frames_apart(a: Rect, b: Rect) -> float:
    """Points between two frames, side by side or one in the other."""
    inner, outer = sorted((a, b), key=lambda r: (r[2] - r[0]) * (r[3] - r[1]))
    if inside(inner, outer):
        return min(inner[0] - outer[0], inner[1] - outer[1], outer[2] - inner[2], outer[3] - inner[3])
    return max(a[0] - b[2], b[0] - a[2], a[1] - b[3], b[1] - a[3])


def test_rows_hold_what_the_view_holds() -> None:
    """Breaking a picture adds boxes through which a value enters a row, and nothing else: paths are the same."""
    made = draw(open_target("llama-3.2-11b-vision"), direction="LR")
    view, rows = made.view, made.rows.view
    added = {b.id for b in rows.boxes} - {b.id for b in view.boxes}
    assert added and {b.label for b in rows.boxes if b.id in added} == {"x"}
    into = {e.target: e.source for e in rows.edges if e.target in added}
    edges = {(into.get(e.source, e.source), e.target, e.kind) for e in rows.edges if e.target not in added}
    assert edges == {(e.source, e.target, e.kind) for e in view.edges}


def test_pictures_have_the_shape_of_a_page() -> None:
    for name in ("gpt2", "llama-3.1-405b", "mixtral-8x7b", "deepseek-v3", "bert-base", "vit-b-16"):
        width, height = layout.svg_size(draw(open_target(name)).svg)
        assert 0.5 < width / height < 3 and width < 1600, name


@pytest.mark.parametrize("level", ["flowchart", "block", "backward"])
def test_mermaid_accepts_what_is_drawn(level: str) -> None:
    """Oracle: merman's parser of Mermaid's grammar."""
    drawn, client = picture("llama-3-8b", level), merman.Merman()
    verdict = client.validate(drawn.mermaid, None)
    assert verdict.valid, verdict.error
    parsed = json.loads(client.parse_json(drawn.mermaid, None))
    assert len(parsed["nodes"]) == len(drawn.view.boxes) and len(parsed["edges"]) == len(drawn.view.edges)


def test_a_fused_weight_is_one_weight_with_three_uses() -> None:
    """GPT-2 stores queries, keys and values as one matrix: one box, one weight, three cuts of what it gives."""
    view = picture("gpt2").view
    (box,) = [b for b in view.boxes if b.label == "qkv"]
    assert [(w.shape, w.count) for w in box.weights] == [("(d, 3·d) + (3·d)", "1.77 M")]
    assert {e.label for e in view.edges if e.source == box.id} == {"B, H, T, k"}
    ops = picture("gpt2", "ops").view
    labelled = {b.id: b.label for b in ops.boxes}
    (bias,) = [b.id for b in ops.boxes if any(w.shape == "3·d" or w.shape == "(3·d)" for w in b.weights)]
    assert [labelled[e.target] for e in ops.edges if e.source == bias] == ["slice"] * 3


def test_a_periodic_pattern_is_drawn_as_one() -> None:
    assert [b.heading for b in picture("gemma-3-1b").view.blocks] == [
        "(5 Block + 1 Block) ×4 · 161 M each · 644 M",
        "Block, window 512 ×5 · 26.8 M each · 134 M",
        "Block, no window · 26.8 M",
    ]
    (again,) = [b for b in picture("gemma-3-1b").view.boxes if "as above" in b.lines]
    assert again.label == "Block ×2" and [w.count for w in again.weights] == ["26.8 M each · 53.7 M"]


def test_a_symbolic_number_of_layers_and_no_binding() -> None:
    graph, m = traced("llama-3-8b", layers=tg.dim("n"))
    (block,) = draw(graph, binding=m.binding).view.blocks
    assert block.heading == "Block ×n · 218 M each · 6.98 B"
    (block,) = draw(graph).view.blocks
    assert block.note == "2·G·d·k + 3·d·f + 2·d² + 2·d each · 2·G·d·k·n + 3·d·f·n + 2·d²·n + 2·d·n"
    folded = picture("llama-3-8b").view
    assert labels(draw(graph).view) == labels(folded)


def test_frozen_and_trained_boxes() -> None:
    m = build("gpt2")
    m.freeze()
    m.unfreeze("*.mlp.*")
    view = draw(Graph(m.outputs(**m.inputs(["input_ids"])), aliases=m.aliases), binding=m.binding).view
    assert {b.label for b in view.boxes if b.training == "trained"} == {"up", "down"}
    assert view.title.endswith("124.4 M parameters, 56.67 M trained")


def test_unfolded_every_layer_stands_for_itself() -> None:
    view = picture("gpt2", changes={"layers": 3}, unfold=True).view
    assert [b.heading for b in view.blocks] == [f"layers.{i} · 7.09 M" for i in range(3)]
    assert labels(view).count("qkv") == 3


def test_the_block_level_opens_one_layer_with_stubs() -> None:
    view = picture("gpt2", "block").view
    assert labels(view)[0] == "from +, or the layer before" and labels(view)[-1] == "to norm, or the layer after"
    assert [b.title for b in view.blocks] == ["Block", "attn", "mlp"]
    with pytest.raises(GraphError) as raised:
        picture("gpt2", "block", block="Experts")
    assert str(raised.value) == (
        "[TG391] no block is called 'Experts'\n  blocks: Block, attn, mlp\n  hint: level=\"flowchart\" draws any graph"
    )


def test_backward_shows_what_is_saved_and_where_it_stops() -> None:
    m = build("gpt2")
    m.freeze("*wte*", "*wpe*", "*.h.*")
    out = m.outputs(**m.inputs(["input_ids"]))
    view = draw(Graph(out, aliases=m.aliases), "backward", binding=m.binding).view
    by = {b.label: b for b in view.boxes}
    assert [b.label for b in view.boxes if b.label.startswith("∂")] == ["∂ head", "∂ norm"]
    assert "no gradient: frozen" in by["embed"].lines and "no gradient: frozen" in by["qkv"].lines
    assert by["∂ head"].lines == ("for its input only: frozen",)
    assert by["∂ norm"].lines == ("+ gradient of its weights", "reads its input")
    assert [b.lines for b in view.boxes if b.label == "+"][-1] == ("kept: B, T, d", "no gradient needed")
    ids = {b.id: b.label for b in view.boxes}
    kinds = {(ids[e.source], ids[e.target]): e.kind for e in view.edges}
    assert kinds["∂ head", "∂ norm"] == "gradient" and "control" not in kinds.values()


class Shared(tg.Module):
    """One weight, used by every layer."""

    def __init__(self, w: tg.Parameter) -> None:
        super().__init__()
        self.w = w

    def forward(self, x: tg.Tensor) -> tg.Tensor:
        return tg.tanh(x @ self.w)


class Stack(tg.Module):
    def __init__(self) -> None:
        super().__init__()
        w = tg.Parameter((4, 4))
        self.layers = tg.ModuleList([Shared(w) for _ in range(12)])

    def forward(self, x: tg.Tensor) -> tg.Tensor:
        return self.layers(x)


def test_a_shared_weight_is_stored_once() -> None:
    (block,) = draw(Stack()(tg.input("x", (3, 4)))).view.blocks
    assert block.heading == "Shared ×12 · 16, stored once, used 12 times"


# ----------------------------------------------------------------------------------------------- any graph


def example() -> tg.Tensor:
    n = tg.dim("n")
    x, w = tg.input("x", (n, 3)), tg.input("w", (3,))
    return tg.tanh(x @ w).sum()


def test_a_graph_without_modules_or_weights() -> None:
    view = draw(example(), shapes=True).view
    assert labels(view) == ["x", "w", "matmul", "tanh", "sum", "output"]
    assert [e.label for e in view.edges] == ["n, 3", "3", "n", "n", "scalar"]
    assert view.legend == ""


@pytest.mark.parametrize("values", [[1, 2], {3: 1.0}, {"w": None}, {"w": "hot"}, {"ww": 1.0}])
def test_values_that_are_no_numbers_by_name_are_refused(values) -> None:
    y = tg.input("x", (2,)) @ tg.param("w", (2, 2))
    with pytest.raises(GraphError, match="TG388") as error:
        draw(y, values=values)
    assert values != {"ww": 1.0} or "did you mean w" in str(error.value)


def test_values_that_are_not_finite_are_said_to_be_so() -> None:
    y = tg.tanh(tg.input("x", (2,)) @ tg.param("w", (2, 2))) @ tg.param("u", (2, 2))
    some, none = draw(y, values={"w": math.nan, "u": 2.0}), draw(y, values={"w": math.inf})
    for text in (some.svg, some.mermaid, some.text):
        assert "dotted: nan or infinite" in text
    for text in (none.svg, none.mermaid, none.text):
        assert "none is finite" in text


def test_values_colour_boxes_and_the_largest_of_a_repeated_block_counts() -> None:
    graph, m = traced("gpt2")
    names = [n for n in graph.params if n.endswith("c_fc.weight")]
    view = draw(graph, values={n: i for i, n in enumerate(names)}, values_label="gradient norm").view
    assert [b.value for b in view.boxes if b.label == "up"] == [11.0]
    assert [b.label for b in view.boxes if b.value is not None] == ["up"] and view.values_label == "gradient norm"
    node = graph.outputs["logits"]
    assert [b.label for b in draw(graph, values={node: 1.5}).view.boxes if b.value == 1.5] == ["head"]
    with pytest.raises(GraphError) as raised:
        draw(graph, values={"nothing": 1.0})
    assert str(raised.value) == "[TG388] values: nothing in the graph is called 'nothing'"
    assert m is not None


def test_what_cannot_be_drawn_is_said() -> None:
    class Plain(tg.Module):
        pass

    for what, text in (
        (Plain(), "[TG390] Plain does not say what it is called with, so it cannot be drawn by itself\n"
                  '  hint: draw what it returns: tg.draw(model(tg.input("x", ...)))'),
        (3, "[TG390] a int is no graph\n  hint: a tensor, module, graph or loaded model is"),
    ):  # fmt: skip
        with pytest.raises(GraphError) as raised:
            draw(what)
        assert str(raised.value) == text
    with pytest.raises(GraphError) as raised:
        draw(example(), "all")  # type: ignore[arg-type]
    assert str(raised.value) == ("[TG391] unknown level 'all'\n  hint: one of: seed, flowchart, block, ops, backward")


def test_a_picture_that_helps_nobody_is_refused() -> None:
    y, fns = tg.input("x", (3,)), itertools.cycle([tg.tanh, tg.exp, tg.sin])
    for i in range(1600):
        y = next(fns)(y) if i % 7 else y * float(i + 2)
    with pytest.raises(GraphError) as raised:
        draw(y, "ops", unfold=True)
    assert str(raised.value) == (
        "[TG389] this picture would have 1600 boxes, more than 1500\n"
        "  hint: draw it folded, at a coarser level, or one block; force=True draws it all the same"
    )
    assert len(draw(y, "ops", unfold=True, force=True).view.boxes) == 1602


def test_hostile_names_stay_text() -> None:
    bad = '<script>alert(1)</script>"];\n%% javascript:'
    w = tg.ops.leaf.param(bad.replace("\n", " "), (3, 3))
    drawn = draw(Graph({bad: tg.tanh(tg.input(bad.replace("\n", " "), (2, 3)) @ w)}), links="https://x/{label}")
    assert "<script" not in drawn.svg and "<script" not in drawn.mermaid and "javascript:alert" not in drawn.svg
    tame = draw(tg.tanh(tg.input("a", (2, 3)) @ tg.ops.leaf.param("w", (3, 3))))
    assert len(drawn.dot.splitlines()) == len(tame.dot.splitlines())


@pytest.mark.parametrize(
    ("links", "text"),
    [
        (
            "https://x/{labell}",
            r"links know no \{labell\}\n  hint: they fill in \{label\}, \{op\}, \{path\}, \{component\}",
        ),
        ({"upp": "https://x/"}, "no box is called upp\n  hint: boxes are called x, tanh"),
        ("javascript:alert(1)", r"no picture leads to 'javascript:alert\(1\)'"),
        (3, "links are a URL template or a table of them, not 3"),
    ],
)
def test_links_that_lead_nowhere_are_refused(links: Any, text: str) -> None:
    with pytest.raises(GraphError, match=r"TG396\] " + text):
        draw(tg.tanh(tg.input("x", (3,))), links=links)


def test_a_size_that_the_graph_does_not_have_is_refused() -> None:
    with pytest.raises(tg.SizeError, match=r"TG014.* the graph has no size called 'q'\n  its sizes are B"):
        draw(tg.tanh(tg.input("x", (tg.dim("B"),))), binding="q=3")


def test_the_same_graph_gives_the_same_text_in_every_process() -> None:
    code = (
        "import tensorgraph as tg; from tensorgraph.models import build; m = build('gemma-3-1b');"
        "p = tg.draw(m); q = tg.draw(m, 'backward'); print(p.dot, p.mermaid, p.text, q.dot);"
        "print(tg.draw(build('paligemma-3b'), 'backward').dot)"
    )
    texts = set()
    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        texts.add(subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True).stdout)
    assert len(texts) == 1


def test_counts_as_people_read_them() -> None:
    assert [human(n) for n in (7, 768, 1_536, 38_597_376, 405_853_388_800)] == ["7", "768", "1.54 k", "38.6 M", "406 B"]


# --------------------------------------------------------------------------------------------- the ledger


def test_the_ledger_of_gpt2_as_json() -> None:
    m = build("gpt2")
    found = ledger(m, name="gpt2").to_json()
    assert list(found) == ["model", "total", "trainable", "components", "tensors"]
    assert (found["model"], found["total"], found["trainable"]) == ("gpt2", 124_439_808, 124_439_808)
    assert found["components"] == {
        "embedding": 39_383_808, "attention": 28_348_416, "mlp": 56_669_184, "norm": 38_400,
    }  # fmt: skip
    assert sum(t["count"] for t in found["tensors"]) == sum(found["components"].values()) == 124_439_808
    assert found["tensors"][0] == {
        "name": "transformer.wte.weight",
        "shape": [50257, 768],
        "symbolic_shape": ["V", "d"],
        "count": 38_597_376,
        "component": "embedding",
    }
    (tied,) = [t for t in found["tensors"] if "tied_to" in t]
    assert (tied["name"], tied["tied_to"], tied["count"]) == ("lm_head.weight", "transformer.wte.weight", 0)


@pytest.mark.parametrize("name", [n for n in FAMILIES if n != "gemma-3-1b"])
def test_the_ledger_of_a_graph_is_that_of_its_module(name: str) -> None:
    graph, m = traced(name)
    a, b = ledger(m).to_json(), ledger(graph, m.binding).to_json()
    assert (a["total"], a["trainable"], a["components"]) == (b["total"], b["trainable"], b["components"])
    assert {t["name"] for t in a["tensors"] if "tied_to" not in t} == {t["name"] for t in b["tensors"]}


def test_ledger_without_numbers_gives_formulas() -> None:
    m = build("gpt2")
    found = ledger(m)
    symbolic = type(found)(found.model, found.rows, (), {}, found.aliases)
    assert symbolic.number(symbolic.total) == "P·d + V·d + 144·d² + 158·d"
    (row,) = [r for r in symbolic.folded() if r.name.endswith("c_fc.weight")]
    assert (row.name, row.times, symbolic.sizes(row), row.reading) == (
        "transformer.h.0…11.mlp.c_fc.weight", 12, "d, 4·d", "d → 4·d",
    )  # fmt: skip
    assert "48·d²" in symbolic.markdown and symbolic.to_json()["tensors"][0]["shape"] == ["V", "d"]


def test_a_ledger_says_what_one_layer_holds() -> None:
    model = build("gpt2")
    found = ledger(model, model.binding)
    assert [(n, t, found.formula(d), found.number(d)) for n, t, d in found.blocks()] == [
        ("transformer.h.0…11", 12, "12·d² + 13·d", "7,087,872")
    ]
    of = ledger(build("deepseek-v2-lite"))
    assert [(n, t) for n, t, _ in of.blocks()] == [("model.layers.1…26", 26)]


def test_ledger_readings_say_which_way_a_matrix_is_stored() -> None:
    rows = {r.name.rpartition("layers.0.")[2]: r for r in ledger(build("llama-3-8b")).rows}
    assert rows["mlp.down_proj.weight"].reading == "f → d"
    assert rows["self_attn.k_proj.weight"].reading == "d → G·k"


def test_ledger_of_a_symbolic_number_of_layers() -> None:
    m = build("llama-3-8b", layers=tg.dim("n"))
    found = ledger(m)
    assert found.to_json()["total"] == 8_030_261_248
    assert "×n" in found.text


def test_rotary_tables_are_buffers() -> None:
    graph, m = traced("llama-3-8b")
    found = ledger(graph, m.binding)
    assert [(b.name, found.sizes(b), b.count) for b in found.buffers] == [("cos", "T, k/2", 0), ("sin", "T, k/2", 0)]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdfLaTeX on this machine")
def test_latex_typesets_the_ledger(tmp_path: Path) -> None:
    """Oracle: pdfLaTeX, with no package loaded; hostile names included."""
    bad = "\\input{x} $a$ %&#_{}^~<>|\"'`-- é ∂ × ⁻² 日"
    w = tg.ops.leaf.param(bad, (tg.dim("n_heads"), 3))
    for found in (ledger(build("gpt2")), ledger(build("llama-3-8b", layers=tg.dim("n"))), ledger(Graph(w * 2.0))):
        text = "\\documentclass{article}\\begin{document}\\tiny\n" + found.latex + "\\end{document}\n"
        (tmp_path / "x.tex").write_text(text, encoding="utf-8")
        command = ["pdflatex", "-no-shell-escape", "-halt-on-error", "-interaction=nonstopmode", "x.tex"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
        assert done.returncode == 0, done.stdout[-2000:]


class Cells(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        assert tag in ("table", "caption", "thead", "tbody", "tfoot", "tr", "td", "th")

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip("\n")


def test_every_table_form_says_the_same(tmp_path: Path) -> None:
    found = ledger(build("gpt2"), name="gpt2")
    header, rows, totals = found.table()
    cells = Cells()
    cells.feed(found.html)
    assert cells.rows == [list(header), *map(list, rows), *map(list, totals)]
    lines = found.markdown.splitlines()
    assert len(lines) == 2 + len(rows) + len(totals) and {len(re.findall(r"(?<!\\)\|", x)) for x in lines} == {14}
    parsed = list(csv.DictReader(io.StringIO(found.csv)))
    assert sum(int(r["count"]) for r in parsed) == 124_439_808 and len(parsed) == len(found.rows)
    body = [x for x in found.latex.splitlines() if x.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", x)) for x in body} == {5} and len(body) == 1 + len(rows) + len(totals)
    for suffix in (".txt", ".md", ".html", ".tex", ".csv", ".json", ".svg"):
        assert found.save(tmp_path / f"x{suffix}").stat().st_size > 500
    with pytest.raises(GraphError, match=r"TG386.*'\.pdf'"):
        found.save(tmp_path / "x.pdf")


def test_hostile_names_stay_cells_in_every_form() -> None:
    bad = '=cmd|<b>&"$\\input{x}`'
    found = ledger(Graph(tg.input("x", (2, 3)) @ tg.ops.leaf.param(bad, (3, 3))), name=bad)
    assert "<b>" not in found.html and r"\input{" not in found.latex
    assert next(csv.reader(io.StringIO(found.csv.split("\n", 1)[1])))[0] == "'" + bad
    assert len(re.findall(r"(?<!\\)\|", found.markdown.splitlines()[2])) == 14


# ------------------------------------------------------------------------------- where the parameters live

SVG = "{http://www.w3.org/2000/svg}"


def drawn(svg: str) -> tuple[ET.Element, dict[str, ET.Element]]:
    """The picture, and its areas by what they say on pointing."""
    root = ET.fromstring(svg)
    return root, {(r.find(f"{SVG}title").text or ""): r for r in root.iter(f"{SVG}rect") if len(r)}  # type: ignore[union-attr]


def test_bars_are_as_long_as_the_counts_are_great() -> None:
    found = ledger(build("gpt2"), name="gpt2")
    root, areas = drawn(found.bars())
    counts = {name: int(name.partition(": ")[2].split()[0].replace(",", "")) for name in areas}
    assert sum(counts.values()) == 124_439_808
    wide = {name: float(r.attrib["width"]) for name, r in areas.items()}
    unit = max(wide.values()) / max(counts.values())
    assert all(wide[n] == pytest.approx(max(counts[n] * unit, 0.5), abs=0.006) for n in areas)
    said = {t.text for t in root.iter(f"{SVG}text")}
    assert {"embedding", "39.4 M · 31.6 %", "h.mlp.c_fc ×12", "28.3 M"} <= said


def test_an_icicles_areas_are_shares_and_nest() -> None:
    found = ledger(build("clip-vit-l-14-336"), name="clip")
    root, areas = drawn(found.icicle())
    place = {n.partition(":")[0] + r.attrib["y"]: [float(r.attrib[k]) for k in ("x", "y", "width", "height")]
             for n, r in areas.items()}  # fmt: skip
    counts = {n.partition(":")[0] + r.attrib["y"]: int(n.partition(": ")[2].split()[0].replace(",", ""))
              for n, r in areas.items()}  # fmt: skip
    (whole,) = [n for n in place if n.startswith("clip")]
    assert counts[whole] == 427_944_193
    unit = (place[whole][3] + 1.5) / counts[whole]
    assert all(p[3] == pytest.approx(max(counts[n] * unit - 1.5, 0.5), abs=0.01) for n, p in place.items())
    columns = sorted({p[0] for p in place.values()})
    for left, right in itertools.pairwise(columns):  # every area stands beside the one that it is part of
        for x, y, _, height in place.values():
            if x == right:
                beside = [q for q in place.values() if q[0] == left]
                assert any(q[1] - 0.01 <= y and y + height <= q[1] + q[3] + 1.6 for q in beside)
    for a, b in itertools.combinations(place.values(), 2):
        assert not overlap((a[0], a[1], a[0] + a[2], a[1] + a[3]), (b[0], b[1], b[0] + b[2], b[1] + b[3]), 0.51)
    assert "encoder.layers.0…23 ×24" in {t.text for t in root.iter(f"{SVG}text")}


@pytest.mark.parametrize("theme", THEMES)
def test_pictures_of_counts_hold_in_every_theme(theme: str) -> None:
    """Every text is readable where it stands, inside the page; names do no harm."""
    bad = '<script>alert(1)</script>&"'
    m = build("gpt2")
    m.freeze("*.h.*")
    for found in (ledger(m, name=bad), ledger(Graph(tg.input("x", (2, 3)) @ tg.ops.leaf.param(bad, (3, 3))), name=bad)):
        for svg in (found.bars(theme), found.icicle(theme)):
            root, areas = drawn(svg)
            assert {e.tag for e in root.iter()} <= {f"{SVG}{t}" for t in ("svg", "title", "rect", "text")}
            assert not any(k.lower().startswith("on") for e in root.iter() for k in e.attrib)
            width, height = float(root.attrib["width"]), float(root.attrib["height"])
            for t in root.iter(f"{SVG}text"):
                x, y = float(t.attrib["x"]), float(t.attrib["y"])
                assert 0 <= x <= width and 0 <= y <= height
                under = [r for r in areas.values() if touches((x, y), rect(r), 0)]
                ground = under[0].attrib["fill"] if under else THEMES[theme].page
                assert contrast(ground, t.attrib["fill"]) >= 4.5, t.text


def rect(r: ET.Element) -> tuple[float, float, float, float]:
    x, y, width, height = (float(r.attrib[k]) for k in ("x", "y", "width", "height"))
    return x, y, x + width, y + height


def test_a_picture_of_counts_needs_sizes(tmp_path: Path) -> None:
    found = ledger(build("gpt2"))
    symbolic = type(found)(found.model, found.rows, (), {}, found.aliases)
    with pytest.raises(tg.SizeError) as raised:
        symbolic.bars()
    assert str(raised.value) == "[TG016] transformer.wte.weight has open sizes: V, d\n  hint: give their sizes"
    assert found.save(tmp_path / "x.svg", "icicle", "mono").read_text(encoding="utf-8") == found.icicle("mono")
    with pytest.raises(GraphError) as refused:
        found.save(tmp_path / "x.svg", "pie")
    assert str(refused.value) == "[TG386] no picture of weights is named 'pie'\n  hint: bars or icicle"


def test_an_unknown_direction_is_named() -> None:
    with pytest.raises(GraphError) as raised:
        draw(example(), direction="up")  # type: ignore[arg-type]
    assert str(raised.value) == "[TG395] unknown direction 'up'\n  hint: LR or TB"


# -------------------------------------------------------------------------------------------------- notebooks


def test_everything_shows_itself_in_a_notebook_without_any_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout.subprocess, "run", lambda *a, **k: pytest.fail("a program was called"))
    y, m = example(), build("gpt2")
    for what in (y, Graph(y), m, build("llama-3.1-405b")):
        bundle = what._repr_mimebundle_()
        assert list(bundle) == ["text/vnd.mermaid", "text/plain"], what
        assert merman.Merman().validate(bundle["text/vnd.mermaid"], None).valid
    assert m._repr_mimebundle_()["text/plain"] == "<Decoder>"
    assert list(tg.nn.Linear(3, 4)._repr_mimebundle_()) == ["text/html", "text/plain"]
    assert list(ledger(m)._repr_mimebundle_()) == ["text/plain", "text/html", "text/markdown"]
    assert Graph(y)._repr_mimebundle_()["text/plain"] == str(Graph(y))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the kernel's own libraries
def test_an_executed_notebook_holds_what_its_cells_show(tmp_path: Path) -> None:
    """Oracle: Jupyter's own kernel. No program is on the path, so none can be called to show something."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    cells = [
        "import os; os.environ['PATH'] = ''; import tensorgraph as tg; from tensorgraph.models import build\n"
        "from tensorgraph.visualize import draw, ledger; m = build('gpt2')\n"
        "x = tg.input('x', (2, 3)); y = tg.tanh(x).sum()",
        "y", "tg.Graph(y)", "m", "ledger(m, m.binding)", "tg.check_grads(y)", "draw(m)", "tg.nn.Linear(3, 4)",
    ]  # fmt: skip
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    nbclient.NotebookClient(
        book, timeout=60, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    shown = {c.source: set(c.outputs[0].data) for c in book.cells[1:]}
    for name in ("y", "tg.Graph(y)", "m", "draw(m)"):
        assert shown[name] >= {"text/plain", "text/vnd.mermaid"}, name
    for name in ("ledger(m, m.binding)", "tg.nn.Linear(3, 4)"):
        assert shown[name] >= {"text/plain", "text/html"}, name
    report = next(c for c in book.cells if c.source == "tg.check_grads(y)").outputs[0].data["text/plain"]
    assert report.startswith("gradients of graph are right") and "PASS" in report


def test_what_is_too_large_or_broken_shows_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    y = tg.input("x", (3,))
    for i in range(20_001):
        y = y * float(i + 2)
    assert y._repr_mimebundle_() == {"text/plain": repr(y)}
    assert Graph(y)._repr_mimebundle_() == {"text/plain": repr(Graph(y))}
    middle = Graph(traced("gpt2")[0].outputs)._repr_mimebundle_()["text/plain"].split("\n")
    assert len(middle) == 72 and re.fullmatch(r" +\.\.\. \d+ lines more, all in str\(graph\)", middle[-2])
    monkeypatch.setattr(Projection, "__init__", lambda *a, **k: 1 / 0)
    assert example()._repr_mimebundle_() == {"text/plain": repr(example())}


def test_a_plain_import_suffices_for_a_notebook() -> None:
    code = (
        "import sys, tensorgraph as tg; assert 'tensorgraph.visualize' not in sys.modules;"
        "print(sorted(tg.tanh(tg.input('x', (3,)))._repr_mimebundle_()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['text/plain', 'text/vnd.mermaid']\n"


# ------------------------------------------------------------------------------------------- the command line


def test_draw_and_params_take_every_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / f"x.{s}" for s in ("svg", "pdf", "tex", "mmd", "dot", "txt", "png")]
    outs = [arg for f in files for arg in ("-o", str(f))]
    words = ["--level", "block", "--block", "Block", "--theme", "dark", "--direction", "TB", "--shapes", "--force"]
    assert main(["draw", "gpt2", *outs, *words, "--freeze", "attention", "--links", "https://a.org/{label}"]) == 0
    assert capsys.readouterr().out.split() == [str(f) for f in files]
    text = (tmp_path / "x.mmd").read_text(encoding="utf-8")
    assert text.startswith("graph TB") and "https://a.org/qkv" in text and ":::frozen" in text and ":::trained" in text
    forms = [tmp_path / f"p.{s}" for s in ("md", "html", "tex", "csv", "json", "txt", "svg")]
    outs = [arg for f in forms for arg in ("-o", str(f))]
    assert main(["params", "gpt2", *outs, "--form", "icicle", "--theme", "mono", "--freeze", "*.wte.*"]) == 0
    assert (tmp_path / "p.svg").read_text(encoding="utf-8").count("<rect") > 8
    assert json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))["trainable"] == 124_439_808 - 38_597_376
    (tmp_path / "own.py").write_text("import tensorgraph as tg\ndef f(): return tg.tanh(tg.input('x', (3,)))\n")
    capsys.readouterr()
    assert main(["draw", f"{tmp_path}/own.py:f", "-o", str(tmp_path / "y.svg"), "--freeze", "w"]) == 2
    said = "ModelError[TG945] own.py:f gives a graph, in which it is settled what is trained\n"
    assert capsys.readouterr().err == said


def weights_drawn(text: str) -> int:
    """Weights in a terminal's picture: each box as often as the frames around it say, or as it says itself."""
    total, times = 0, [1]
    for line in text.splitlines():
        if found := re.search(r"┌ .*?×(\d+)", line):
            times.append(times[-1] * int(found[1]))
        elif "└─" in line:
            times.pop()
        elif re.match(r"[│ ]*■ (?!Highlighted)", line):
            shared = re.search(r", (?:(\d+) (?:stored|new in)|stored once)", line)
            total += int(shared[1] or 1) if shared else times[-1]
    return total


@pytest.mark.parametrize("seed", range(40))
def test_every_weight_of_a_chain_is_in_the_picture(seed: int) -> None:
    """Whatever repeats, however short: boxes times the frames around them are all weights of the graph."""
    rng = random.Random(seed)
    d = tg.dim("d")
    motif = [rng.choice([tg.tanh, tg.relu, tg.sigmoid]) for _ in range(rng.randint(1, 4))]
    fns = motif * rng.randint(1, 5) + [rng.choice([tg.tanh, tg.exp]) for _ in range(rng.randint(0, 4))]
    x = h = tg.input("x", (tg.dim("n"), d))
    for i, fn in enumerate(fns):
        h = fn(h @ tg.param(f"l{i}.w", (d, d))) + (h if rng.random() < 0.1 else 0.0)
    for level in ("flowchart", "ops"):
        assert weights_drawn(tg.draw(h, level=level).text) == len(fns)
    own, pool = rng.random(), [tg.param(f"shared{i}", (d, d)) for i in range(rng.randint(1, 3))]
    turns, read = rng.random() < 0.5, dict[tg.Tensor, None]()
    for i, fn in enumerate(fns):  # some weights in turn, or by chance, are those of other layers
        alone = i % len(motif) > 0 if turns else rng.random() < own
        w = tg.param(f"m{i}.w", (d, d)) if alone else pool[i // len(motif) % len(pool)] if turns else rng.choice(pool)
        x, read[w] = fn(x @ w), None
    for level in ("flowchart", "ops"):
        assert weights_drawn(tg.draw(x, level=level).text) == len(read)


def test_a_layer_with_another_constant_or_another_training_is_left_out() -> None:
    d = tg.dim("d")
    x = y = tg.input("x", (tg.dim("n"), d))
    for i in range(21):
        x = tg.tanh((x @ tg.param(f"l{i}.w", (d, d))) * (2.0 if i == 10 else 1.5))
        y = tg.tanh(y @ tg.param(f"l{i}.w", (d, d), trained=i != 10))
    for drawn in (tg.draw(x).text, tg.draw(y).text):
        assert re.findall(r"×(\d+)", drawn) == ["10", "10"]
        assert weights_drawn(drawn) >= 20


def test_what_is_kept_and_what_reads_it_agree() -> None:
    """Oracle: the backward nodes of the graph: every forward value that one reads is kept by its step, no other is."""
    graph, m = traced("llama-3-8b", loss=True)
    full = graph.with_gradients()
    seen = Projection(full, whole=True, binding=m.binding)
    read = {x for n in full.nodes if n.scope.backward for x in n.inputs if not x.scope.backward and not x.op.leaf}
    steps = {seen.parts.of.get(seen.parts.resolve(x)) for x in read} - {None}
    view = draw(graph, "backward", binding=m.binding).view
    kept = {b.id for b in view.boxes if any(line.startswith("kept: ") for line in b.lines)}
    assert kept == {seen.ids[s] for s in steps if s is not None}
    labels = {b.id: b.label for b in view.boxes}
    gradients = {(labels[e.source], labels[e.target]) for e in view.edges if e.kind == "gradient"}
    assert {("∂ attention", "∂ v"), ("∂ RoPE", "∂ q"), ("∂ RoPE", "∂ k"), ("∂ norm", "∂ +")} <= gradients
    assert ("∂ q", "∂ k") not in gradients and ("∂ q", "∂ v") not in gradients


def test_gradients_stand_beside_their_steps() -> None:
    """What trains nothing has no gradient: the first of LLaVA's bridge begins below its tower, beside the bridge."""
    made = draw(open_target("llava-1.5-7b").train("bridge-only"), "backward")
    drawn, index = Geometry(made.view, False), {b.label: i for i, b in enumerate(made.view.boxes)}
    top = {label: drawn.boxes[f"n{i}"][3] for label, i in index.items()}
    for label in ("connector.0", "connector.1"):
        assert abs(top[label] - top[f"∂ {label}"]) < 60
    assert abs(top["∂ attn_norm"] - top["mlp_norm"]) < 0.5 * abs(top["pixel_values"] - top["logits"])


def test_the_same_step_has_the_same_name() -> None:
    """An adapter beside a layer changes no name; a router is one box however it scores; a norm is one in CLIP too."""
    plain, adapted = (labels(draw(open_target("gpt2").train(mode)).view) for mode in (None, "lora"))
    assert "qkv" in plain and [x for x in adapted if x not in ("+", "lora_A", "lora_B")] == [
        x for x in plain if x != "+"
    ]
    for name in ("mixtral-8x7b", "deepseek-v3"):
        assert "router" in labels(picture(name).view) and "argsort" not in labels(picture(name).view)
    assert labels(draw(open_target("clip-vit-l-14-336")).view).count("normalise") == 2


def test_names_say_which_layers_they_stand_for() -> None:
    assert span(f"h.{i}.w" for i in range(12)) == "h.0…11.w" and span(["h.0.w"]) == "h.0.w"
    assert span(f"h.{i}.w" for i in (3, 8, 13)) == "h.{3, 8, 13}.w"
    assert span(f"h.{i}.w.{j}" for i in range(40) if i % 5 != 3 for j in (0, 1)) == "h.{0…2, 4…7, …, 39}.w.0…1"
    assert [ranges(r) for r in ([4, 3, 2, 1], [6, 4, 9], [1, 2], [1, 2, 3, 7])] == ["4…1", "6, 4, 9", "1, 2", "1…3, 7"]
    (box,) = [b for b in picture("gpt2").view.boxes if b.label == "qkv"]
    assert "layers.0…11.attn.qkv" in box.tooltip and "transformer.h.0…11.attn.c_attn.weight" in box.tooltip
    (local, _) = [b for b in picture("gemma-3-1b").view.boxes if b.label == "q"]
    assert "model.layers.{0…4, 6…10, 12…16, 18…22}.self_attn.q_proj.weight" in local.tooltip


def test_an_icicle_counts_layers_that_lie_apart() -> None:
    """Llama 3.2 Vision has 40 layers, 8 of them with attention across: every fifth."""
    svg = ledger(open_target("llama-3.2-11b-vision").module).icicle()
    assert "{3, 8, …, 38} ×8" in svg and "0…39 ×40" in svg


def test_masks_stand_in_the_layers_that_read_them_and_bridges_hold_nothing_in_place() -> None:
    """Llama 3.2 Vision: a mask in each kind of layer, and one box through which the image enters its cross layers."""
    view = draw(open_target("llama-3.2-11b-vision")).view
    headings = {b.id: view.block_index[b.block].heading.split(" ·")[0] if b.block else "" for b in view.boxes}
    masks = [headings[b.id] for b in view.boxes if b.label == "aspect_ratio_mask"]
    assert sorted(masks) == ["Layer ×32", "Layer ×8"]
    (entry,) = [b for b in view.boxes if b.label == "from connector"]
    labels = {b.id: b.label for b in view.boxes}
    assert [labels[e.target] for e in view.edges if e.source == entry.id] == ["k", "v"]
    assert [(labels[e.source], e.target) for e in view.edges if e.loose] == [("connector", entry.id)]
    wide, high = layout.svg_size(draw(open_target("llama-3.2-11b-vision")).svg)
    assert high < 2.3 * wide


def test_what_no_step_makes_is_a_box_of_its_own() -> None:
    """An input, a weight or a table that is itself what the graph gives."""
    leaves = {"x": tg.input("x", (3,)), "n": tg.input("n", (3,), dtype="int64"), "w": tg.param("w", (3, 3))}
    for level in ("flowchart", "ops", "backward"):
        for name, leaf in leaves.items():
            made = tg.draw(leaf, level=level)
            gradient = [f"∂{name}"] if level == "backward" and leaf.dtype.is_float else []  # which is one
            assert labels(made.view) == [name, *gradient] and not made.view.edges and name in made.text
            assert len(Geometry(made.view, False).boxes) == len(made.view.boxes) and made.mermaid
    (box,) = tg.draw(leaves["w"]).view.boxes
    assert [w.texts for w in box.weights] == [("w", "3, 3", "9")] and box.role == "weight"
    view = tg.draw({"y": tg.tanh(leaves["x"]), "same": leaves["x"], "w": leaves["w"]}).view
    assert labels(view) == ["x", "tanh", "y", "same", "w"] and len(view.edges) == 3


@pytest.mark.parametrize("name", ["llama-3.2-11b-vision", "idefics-9b"])
def test_what_every_run_reads_from_outside_comes_from_no_layer_before(name: str) -> None:
    found = [b.label for b in draw(open_target(name), "block", block="Cross*").view.boxes if b.label.startswith("from")]
    assert sum("or the layer before" in label for label in found) <= 1
    assert not any("connector, or" in label or "norm, or" in label for label in found)


@pytest.mark.parametrize("shapes", [False, True])
def test_no_line_runs_along_the_border_of_a_frame(shapes: bool) -> None:
    """CLIP reads its tokens again behind all layers, to find where a text ends."""
    view = draw(open_target("clip-vit-l-14-336"), shapes=shapes).view
    drawn = Geometry(view, shapes)
    assert [view.block_index[b.block].title for b in view.boxes if b.label == "input_ids" and b.block] == ["text"]
    for (tail, head, curve), (left, low, right, high) in itertools.product(drawn.edges, drawn.frames.values()):
        near = [y for x, y in curve if low < y < high and min(abs(x - left), abs(x - right)) < 4]
        assert not near or max(near) - min(near) < 30, (tail, head)
