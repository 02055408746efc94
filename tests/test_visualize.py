"""The renderers hold their laws on hand-made views: valid, harmless, deterministic, legible, nothing cut or covered."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import math
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path
from urllib.parse import unquote

import mermaidx
import merman
import numpy as np
import pypdf
import pytest

from tensorgraph.errors import GraphError
from tensorgraph.visualize import THEMES, Block, Box, Edge, Picture, View, Weight
from tensorgraph.visualize import engine as layout
from tensorgraph.visualize.dot import to_dot
from tensorgraph.visualize.escape import clean, latex_text, safe_link, shorten
from tensorgraph.visualize.mermaid import to_mermaid
from tensorgraph.visualize.pdf import characters
from tensorgraph.visualize.printable import printable
from tensorgraph.visualize.shapes import Words, read_svg
from tensorgraph.visualize.terminal import to_text
from tensorgraph.visualize.theme import colour_of, contrast, rgb, style_of


def weighted(id: str, label: str, shape: str, count: str, block: str | None = None, **more: object) -> Box:
    trained = bool(more.pop("trained", True))
    tied_to = more.pop("tied_to", None)
    weight = Weight(label, shape, count, trained, None if tied_to is None else str(tied_to))
    return Box(id, label, "weight", weights=(weight,), block=block, **more)  # type: ignore[arg-type]


def edges(*paths: str, kind: str = "data", label: str = "") -> tuple[Edge, ...]:
    """Edges along paths written "a b c"."""
    return tuple(Edge(a, b, label, kind) for p in paths for a, b in itertools.pairwise(p.split()))  # type: ignore[arg-type]


def gpt2() -> View:
    """Folded GPT-2 small: embeddings, block ×12 with attention and MLP, residuals, tied head."""
    boxes = (
        Box("tokens", "Token IDs", "input"),
        weighted("wte", "wte", "V, d", "38.6 M", link="/llms/embeddings/"),
        Box("positions", "positions", "input"),
        weighted("wpe", "wpe", "T_max, d", "0.8 M"),
        Box("sum", "+"),
        Box("x", "x", block="block"),
        weighted("ln_1", "ln_1", "d ×2", "1.5 k", "attn"),
        weighted("q", "W_q", "d, d", "590 k", "attn"),
        weighted("k", "W_k", "d, d", "590 k", "attn"),
        weighted("v", "W_v", "d, d", "590 k", "attn"),
        Box("scores", "QKᵀ/√dₕ", block="attn"),
        Box("softmax", "softmax", block="attn"),
        Box("av", "A·V", block="attn"),
        weighted("o", "W_o", "d, d", "590 k", "attn"),
        Box("add1", "+", block="block"),
        weighted("ln_2", "ln_2", "d ×2", "1.5 k", "mlp"),
        weighted("up", "W_up", "d, 4·d", "2.36 M", "mlp"),
        Box("gelu", "GELU", block="mlp"),
        weighted("down", "W_down", "4·d, d", "2.36 M", "mlp"),
        Box("add2", "+", block="block"),
        weighted("ln_f", "ln_f", "d ×2", "1.5 k"),
        weighted("head", "lm_head", "V, d", "38.6 M", tied_to="wte"),
        Box("logits", "logits", "output"),
    )
    flow = (
        Edge("tokens", "wte", "B, T"),
        Edge("positions", "wpe", "T"),
        Edge("wte", "sum", "B, T, d"),
        Edge("wpe", "sum", "T, d"),
        Edge("sum", "x", "B, T, d"),
        Edge("x", "ln_1", "B, T, d"),
        *edges("ln_1 q", "ln_1 k", "ln_1 v", label="B, T, d"),
        *edges("q scores", "k scores", "v av", label="B, H, T, k"),
        Edge("scores", "softmax", "B, H, T, T"),
        Edge("softmax", "av", "B, H, T, T"),
        Edge("av", "o", "B, T, d"),
        Edge("o", "add1", "B, T, d"),
        Edge("add1", "ln_2", "B, T, d"),
        Edge("ln_2", "up", "B, T, d"),
        Edge("up", "gelu", "B, T, 4·d"),
        Edge("gelu", "down", "B, T, 4·d"),
        Edge("down", "add2", "B, T, d"),
        Edge("add2", "ln_f", "B, T, d"),
        Edge("ln_f", "head", "B, T, d"),
        Edge("head", "logits", "B, T, V"),
    )
    skips = edges("x add1", "add1 add2", kind="residual", label="B, T, d")
    blocks = (
        Block("block", "block", times="×12", note="7.1 M each · 85.1 M"),
        Block("attn", "attention", "block", note="2.4 M"),
        Block("mlp", "MLP", "block", note="4.7 M"),
    )
    return View("GPT-2 small · 124.4 M parameters", boxes, flow + skips + edges("wte head", kind="tied"), blocks)


def llava() -> View:
    """LLaVA-1.5 in its second stage: tower frozen, projector and adapters trained; two towers meet at the bridge."""
    boxes = (
        Box("image", "Image", "input"),
        weighted("patch", "patch embed", "d_v, 3·p²", "602 k", trained=False),
        weighted("vqkvo", "Q, K, V, O", "d_v, d_v ×4", "4.2 M", "vit", trained=False),
        weighted("vmlp", "MLP up, down", "d_v, 4·d_v ×2", "8.4 M", "vit", trained=False),
        Box("proj", "projector", "weight", weights=(Weight("W1", "d_v, d", "4.2 M"), Weight("W2", "d, d", "16.8 M"))),
        Box("text", "Text", "input"),
        weighted("embed", "embedding", "V, d", "131 M", trained=False),
        Box("concat", "concat"),
        weighted("qkvo", "q, k, v, o", "d, d ×4", "67.1 M", "llama", trained=False),
        Box(
            "lora",
            "LoRA",
            "weight",
            weights=(Weight("A", "d, r", "1.0 M"), Weight("B", "r, d", "1.0 M")),
            block="llama",
        ),
        Box("attention", "attention", block="llama"),
        weighted("ffn", "gate, up, down", "d, f ×3", "135 M", "llama", trained=False),
        weighted("head", "lm_head", "d, V", "131 M", trained=False),
        Box("logits", "logits", "output"),
    )
    flow = edges(
        "image patch vqkvo vmlp proj concat",
        "text embed concat",
        "concat qkvo attention",
        "concat lora attention",
        "attention ffn head logits",
        label="B, T, d",
    )
    blocks = (
        Block("vit", "CLIP ViT block", times="×24", note="12.6 M each · 302 M · frozen"),
        Block("llama", "Llama block", times="×32", note="204 M each · 6.5 B · frozen + LoRA r = 16"),
    )
    return View("LLaVA-1.5 · stage 2", boxes, flow, blocks)


def chain(n: int) -> View:
    """A long chain with residuals over every third step."""
    boxes = tuple(Box(f"s{i}", f"step {i}", "weight" if i % 3 else "plain") for i in range(n))
    skips = tuple(Edge(f"s{i}", f"s{i + 3}", kind="residual") for i in range(0, n - 3, 3))
    return View(f"chain of {n}", boxes, edges(" ".join(b.id for b in boxes), label="B, T, d") + skips, direction="TB")


def valued(theme_value: float = 1.0) -> View:
    """GPT-2 coloured by a quantity on every box."""
    view = gpt2()
    boxes = tuple(dataclasses.replace(b, value=theme_value * (i + 1)) for i, b in enumerate(view.boxes))
    return dataclasses.replace(view, title="GPT-2 small · gradient norms", boxes=boxes, values_label="gradient norm")


def backward() -> View:
    """Every kind of edge and role."""
    boxes = (
        Box("x", "x", "input"),
        weighted("w", "W", "d, f", "2.4 M"),
        Box("c", "½", "constant"),
        Box("y", "y", "output"),
        Box("dw", "∂W", lines=("saved: x",)),
        Box("stop", "stop gradient"),
    )
    return View(
        "kinds",
        boxes,
        (*edges("x w y", "c y"), *edges("y dw", "dw stop", kind="gradient"), *edges("x stop", kind="control")),
    )


HOSTILE = (
    "<script>alert(1)</script>",
    "quo\"te's",
    "back\\slash\\n\\N\\G\\",
    "line\nbreak\r\ttab",
    "]]] --> n0 %% end",
    "#quot; &lt; &amp;#35;",
    "`code` **bold** _em_ $$x$$",
    "javascript:alert(1)",
    "x\x1b[31m\x00\u202eevil\ufffe\ud800",
    "<<b>>",
    "classDef style x:#fff; end",
    "%%{init: {}}%%",
    "1. list",
    "- item",
    "end",
    "subgraph",
    '"]; click n0 "javascript:x"',
    "--><!-- ]]>",
    "",
    "{{a}} | b",
    "n0 --> n1;",
    "é 日本 😀",
    "*/ url(x) /*",
)


def hostile() -> View:
    boxes = tuple(
        Box(
            name + str(i),
            name,
            "weight" if i % 2 else "plain",
            lines=(name,),
            weights=(Weight(name, name, name, tied_to=name),),
            block=f"b{name}" if i > 3 else None,
            tooltip=name,
            link=f"{('javascript:', 'http://x/', '/')[i % 3]}{name}",
        )
        for i, name in enumerate(HOSTILE)
    )
    blocks = tuple(Block(f"b{name}", name, times=name, note=name) for name in HOSTILE)
    flow = tuple(Edge(a.id, b.id, a.label) for a, b in itertools.pairwise(boxes))
    return View(
        HOSTILE[0] + HOSTILE[1] + HOSTILE[2], boxes, flow, blocks, legend="".join(HOSTILE), values_label=HOSTILE[0]
    )


VIEWS = {
    "gpt2": gpt2(),
    "llava": llava(),
    "chain": chain(14),
    "valued": valued(),
    "backward": backward(),
    "hostile": hostile(),
}

DOWN = {name: dataclasses.replace(view, direction="TB") for name, view in VIEWS.items() if view.direction == "LR"}
SVG = "{http://www.w3.org/2000/svg}"
HREF = "{http://www.w3.org/1999/xlink}href"


def pictures(*names: str) -> list[object]:
    every = [(f"{n}-{v.direction}", v) for group in (VIEWS, DOWN) for n, v in group.items() if not names or n in names]
    return [
        pytest.param(view, shapes, id=f"{name}{'-shapes' if shapes else ''}")
        for name, view in every
        for shapes in (0, 1)
    ]


# --- The view model -------------------------------------------------------------------------------------------------


def test_a_view_names_what_is_wrong() -> None:
    a, b = Box("a", "a"), Box("b", "b", block="nowhere")
    for make, message in (
        (lambda: View("v", (a, a)), "[TG380] view 'v': two boxes or two blocks have the same id"),
        (lambda: View("v", (a,), (Edge("a", "z"),)), "[TG380] view 'v': an edge names 'z', which is no box"),
        (lambda: View("v", (b,)), "[TG380] view 'v': 'b' lies in 'nowhere', which is no block"),
        (
            lambda: View("v", (a,), (), (Block("p", "p", "q"), Block("q", "q", "p"))),
            "[TG380] view 'v': block 'p' lies inside itself",
        ),
    ):
        with pytest.raises(GraphError) as caught:
            make()
        assert str(caught.value) == message


def test_a_box_says_whether_it_is_trained_only_where_modes_differ() -> None:
    assert all(("trained",) not in gpt2().rows(box) for box in gpt2().boxes)
    said = {box.id: gpt and gpt[-1] for box in llava().boxes for gpt in [llava().rows(box)]}
    assert said["patch"] == ("frozen",) and said["proj"] == ("trained",) and said["concat"] == ()
    both = Box("m", "m", "weight", weights=(Weight("a", "d", "1"), Weight("b", "d", "1", trained=False)))
    assert View("v", (both,)).rows(both)[-1] == ("partly trained",)


def test_labels_alone_when_weights_are_not_shown() -> None:
    view = dataclasses.replace(gpt2(), show_weights=False)
    assert "38.6 M" not in to_mermaid(view) and "38.6 M" in to_mermaid(gpt2())


# --- Colours --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("theme", THEMES.values(), ids=THEMES)
def test_every_text_has_contrast_on_what_it_stands_on(theme) -> None:
    for style in theme.boxes.values():
        assert contrast(style.fill, style.text) >= 4.5
    for ground in (theme.page, theme.frame_fill):
        assert contrast(ground, theme.text) >= 4.5 and contrast(ground, theme.muted) >= 4.5
        for line in (theme.edge, theme.residual, theme.tied, theme.gradient):
            assert contrast(ground, line) >= 3  # WCAG 1.4.11: lines are no text
    plain = theme.boxes["plain"]
    assert (
        max(contrast(theme.page, plain.fill), contrast(theme.page, plain.stroke)) >= 3
    )  # WCAG 1.4.11: seen on its page
    for value in np.linspace(-3, 9, 61):
        view = View("v", (Box("a", "a", value=-3.0), Box("b", "b", value=float(value)), Box("c", "c", value=9.0)))
        style = style_of(view.boxes[1], view, theme)
        assert contrast(style.fill, style.text) >= 4.5


# Machado, Oliveira and Fernandes 2009, severity 1.0, on linear RGB.
BLINDNESS = {
    "none": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def lab(colour: str, blindness: str) -> np.ndarray:
    """CIE L*a*b* (D65) of an sRGB colour as seen with a colour-blindness."""
    c = np.array(rgb(colour)) / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.array(BLINDNESS[blindness]) @ linear, 0, 1)
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    t = np.array(to_xyz) @ linear / [0.95047, 1, 1.08883]
    f = np.where(t > 216 / 24389, np.cbrt(t), (24389 / 27 * t + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("blindness", BLINDNESS)
@pytest.mark.parametrize("name", ["seed", "light", "dark"])
def test_roles_differ_for_the_colour_blind(name: str, blindness: str) -> None:
    for a, b in itertools.combinations(("plain", "weight", "frozen", "trained", "tied"), 2):
        boxes = THEMES[name].boxes
        assert np.linalg.norm(lab(boxes[a].fill, blindness) - lab(boxes[b].fill, blindness)) >= 20, (a, b)


@pytest.mark.parametrize("theme", THEMES.values(), ids=THEMES)
def test_roles_differ_without_any_colour(theme) -> None:
    borders = {kind: (style.border, style.width) for kind, style in theme.boxes.items()}
    assert len({borders[kind] for kind in ("trained", "frozen", "mixed")}) == 3
    mono = {(s.border, s.width) for kind, s in THEMES["mono"].boxes.items()}
    assert len(mono) == len(THEMES["mono"].boxes)


def test_values_are_coloured_along_the_scale() -> None:
    scale = ("#000000", "#ff0000", "#ffffff")
    assert [colour_of(v, (2, 6), scale) for v in (2, 3, 4, 6)] == ["#000000", "#800000", "#ff0000", "#ffffff"]
    assert colour_of(5, (5, 5), scale) == "#000000" and colour_of(0, (-1.7e308, 1.7e308), scale) == "#ff0000"
    odd = dataclasses.replace(
        valued(), boxes=(*valued().boxes, Box("nan", "nan", value=math.nan), Box("inf", "inf", value=math.inf))
    )
    for text in (to_dot(odd), to_mermaid(odd), to_text(odd)):
        assert "gradient norm" in text and "1" in text and "23" in text
    assert Picture(odd).svg


# --- Geometry -------------------------------------------------------------------------------------------------------

Rect = tuple[float, float, float, float]  # left, bottom, right, top


def overlap(a: Rect, b: Rect, slack: float = 0.0) -> bool:
    return a[0] < b[2] - slack and b[0] < a[2] - slack and a[1] < b[3] - slack and b[1] < a[3] - slack


def inside(a: Rect, b: Rect, slack: float = 0.0) -> bool:
    return a[0] >= b[0] - slack and a[1] >= b[1] - slack and a[2] <= b[2] + slack and a[3] <= b[3] + slack


def around(x: float, y: float, w: float, h: float) -> Rect:
    return (x - w / 2, y - h / 2, x + w / 2, y + h / 2)


def texts(draws: list[dict], size: float = 13.0) -> list[Rect]:
    """Where a drawn text stands: Graphviz's own pen operations, with its own measure of the width."""
    found = []
    for op in draws:
        if op["op"] == "F":
            size = op["size"]
        if op["op"] == "T":
            x, y = op["pt"]
            left = {"l": x, "c": x - op["width"] / 2, "r": x - op["width"]}[op["align"]]
            found.append((left, y - 0.22 * size, left + op["width"], y + 0.75 * size))
    return found


def bezier(points: list[list[float]]) -> list[tuple[float, float]]:
    """Points along a B-spline of cubic pieces."""
    p = np.array(points)
    t = np.linspace(0, 1, 25)[:, None]
    pieces = [p[i : i + 4] for i in range(0, len(p) - 3, 3)]
    curve = [(1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * b + 3 * (1 - t) * t**2 * c + t**3 * d for a, b, c, d in pieces]
    return [tuple(q) for q in np.concatenate(curve)]


class Geometry:
    def __init__(self, view: View, shapes: bool) -> None:
        data = json.loads(Picture(view, shapes=shapes, engine="graphviz-pure").layout)
        objects = data["objects"]
        nodes = [o for o in objects if "pos" in o]
        self.boxes: dict[str, Rect] = {}
        self.labels: dict[str, list[Rect]] = {}
        self.headings: dict[str, list[Rect]] = {}
        self.names = {o["_gvid"]: o["name"] for o in objects}
        for o in nodes:
            x, y = map(float, o["pos"].split(","))
            rect = around(x, y, 72 * float(o["width"]), 72 * float(o["height"]))
            if o["name"].startswith("h"):
                self.headings[o["name"]] = texts(o["_ldraw_"])
            else:
                self.boxes[o["name"]], self.labels[o["name"]] = rect, texts(o["_ldraw_"])
        self.frames: dict[str, Rect] = {}
        self.members: dict[str, set[str]] = {}
        for o in objects:
            if o["name"].startswith("cluster_b"):
                self.frames[o["name"]] = tuple(map(float, o["bb"].split(",")))  # type: ignore[assignment]
                self.members[o["name"]] = {self.names[i] for i in o.get("nodes", ())}
                if "_ldraw_" in o:
                    self.headings[o["name"]] = texts(o["_ldraw_"])
        self.edges = [
            (
                self.names[e["tail"]],
                self.names[e["head"]],
                [q for op in e["_draw_"] if op["op"] == "b" for q in bezier(op["points"])],
            )
            for e in data.get("edges", ())
            if "_draw_" in e  # others only hold places
        ]
        self.edge_labels = [rect for e in data.get("edges", ()) for rect in texts(e.get("_ldraw_", []))]


@pytest.mark.parametrize(("view", "shapes"), pictures())
def test_nothing_is_covered_or_cut(view: View, shapes: bool) -> None:
    drawn, view = Geometry(view, shapes), Picture(view, shapes=shapes).rows.view
    assert len(drawn.boxes) == len(view.boxes) and len(drawn.edges) == len(view.edges)
    for (a, x), (b, y) in itertools.combinations(drawn.boxes.items(), 2):
        assert not overlap(x, y), (a, b)
    for name, rect in drawn.boxes.items():
        assert drawn.labels[name] or not clean(view.boxes[int(name[1:])].label)
        assert all(inside(text, rect) for text in drawn.labels[name]), name
        for frame, frame_rect in drawn.frames.items():
            assert inside(rect, frame_rect) if name in drawn.members[frame] else not overlap(rect, frame_rect), (
                name,
                frame,
            )
    for heading in itertools.chain(*drawn.headings.values()):
        assert not any(overlap(heading, rect) for rect in drawn.boxes.values())
    for label in drawn.edge_labels:
        assert not any(overlap(label, rect) for rect in drawn.boxes.values())
        assert not any(overlap(label, rect) for rect in itertools.chain(*drawn.headings.values()))
    for a, b in itertools.combinations(drawn.edge_labels, 2):
        assert not overlap(a, b, slack=0.5)


def touches(point: tuple[float, float], rect: Rect, slack: float) -> bool:
    return inside((*point, *point), rect, slack)


@pytest.mark.parametrize(("view", "shapes"), pictures("gpt2", "llava", "chain", "backward"))
def test_no_edge_runs_under_a_box_or_a_text(view: View, shapes: bool) -> None:
    drawn = Geometry(view, shapes)
    for tail, head, curve in drawn.edges:
        assert touches(curve[0], drawn.boxes[tail], 12) and touches(curve[-1], drawn.boxes[head], 12), (tail, head)
        for name, rect in drawn.boxes.items():
            if name not in (tail, head):
                assert not any(touches(q, rect, -0.5) for q in curve), (tail, head, name)
        for text in itertools.chain(*drawn.headings.values()):
            assert not any(touches(q, text, -0.5) for q in curve), (tail, head, "text")
        assert not any(touches(q, text, -1.5) for text in drawn.edge_labels for q in curve), (tail, head, "label")


# --- Formats --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("name", VIEWS)
def test_svg_is_xml_with_every_box_and_name(name: str, theme: str) -> None:
    picture = Picture(VIEWS[name], theme=theme, engine="graphviz-pure")
    root, view = ET.fromstring(picture.svg), picture.rows.view
    kinds = [g.get("class") for g in root.iter(f"{SVG}g")]
    assert kinds.count("node") == len(view.boxes) and kinds.count("edge") == len(view.edges)
    shown = {(text.text or "").replace("\u200b", "") for text in root.iter(f"{SVG}text")}
    assert {shorten(box.label) for box in view.boxes if clean(box.label)} <= shown
    assert {t.text or "" for t in root.iter(f"{SVG}title")} >= {clean(box.tooltip) for box in view.boxes if box.tooltip}


def test_lines_of_a_box_are_centred_whatever_the_font() -> None:
    for g in ET.fromstring(Picture(llava(), engine="graphviz-pure").svg).iter(f"{SVG}g"):
        if (
            g.get("class") == "node"
            and "LoRA" not in "".join(g.itertext())
            and "projector" not in "".join(g.itertext())
        ):
            assert {t.get("text-anchor") for t in g.iter(f"{SVG}text")} == {"middle"}
            assert len({t.get("x") for t in g.iter(f"{SVG}text")}) == 1


@pytest.mark.parametrize("form", ["svg", "png", "pdf", "tikz", "dot", "mermaid", "text"])
def test_the_same_view_gives_the_same_bytes(form: str) -> None:
    a, b = (getattr(Picture(gpt2(), engine="graphviz-pure"), form) for _ in range(2))
    assert a == b
    if form == "svg":
        assert "graphviz" not in a.lower() and "<!--" not in a and "/*" not in a


def test_png_is_a_picture_at_twice_the_size() -> None:
    picture = Picture(gpt2(), engine="graphviz-pure")
    assert picture.png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = (int.from_bytes(picture.png[i : i + 4], "big") for i in (16, 20))
    w, h = layout.svg_size(picture.svg)
    assert width == pytest.approx(w * 192 / 72, rel=0.03) and height == pytest.approx(h * 192 / 72, rel=0.06)


SPACES = re.compile(r"[\s\u200b\xa0]+")


@pytest.mark.parametrize("name", VIEWS)
def test_pdf_is_one_page_whose_text_can_be_read(name: str) -> None:
    """Oracle: pypdf. All fonts are inside, all text is text; what can be pressed leads to a site and runs nothing."""
    picture = Picture(VIEWS[name], shapes=True, engine="graphviz-pure")
    file = pypdf.PdfReader(io.BytesIO(picture.pdf), strict=True)
    (page,) = file.pages
    assert (page.mediabox.width, page.mediabox.height) == pytest.approx(layout.svg_size(picture.svg), abs=1)
    seen = SPACES.sub("", page.extract_text())
    words = [s for s in read_svg(picture.svg, 14_400).shapes if isinstance(s, Words)]
    assert len(words) == sum(bool((t.text or "").strip()) for t in ET.fromstring(picture.svg).iter(f"{SVG}text"))
    for word in words:
        assert SPACES.sub("", spelled(word.text)) in seen, word.text
    for font in page["/Resources"]["/Font"].values():
        assert "/FontFile2" in font.get_object()["/FontDescriptor"].get_object()
    actions = [a.get_object()["/A"] for a in page.get("/Annots", ())]
    assert all(a["/S"] == "/URI" and re.match("https?://", a["/URI"]) for a in actions)
    assert len(actions) >= sum((safe_link(b.link) or "/").startswith("http") for b in VIEWS[name].boxes)
    assert not {"/OpenAction", "/AA", "/Names"} & set(file.trailer["/Root"])


def spelled(text: str) -> str:
    """The text with characters of scripts that PNG and PDF lack as their codes."""
    return "".join(c if ord(c) <= 0x2E7F else f"U+{ord(c):04X}" for c in text)


def test_what_a_font_lacks_is_given_as_its_code() -> None:
    """SVG keeps every script; PDF and PNG, which bring a font, say which character it is, in boxes made for that."""
    view = View("日本", (Box("a", "重み 😀", "weight", weights=(Weight("أوزان", "d", "1 M"),)), Box("b", "Größe ∂")))
    picture = Picture(view, engine="graphviz-pure")
    assert "重み 😀" in picture.svg and "أوزان" in picture.svg
    (page,) = pypdf.PdfReader(io.BytesIO(picture.pdf)).pages
    text = SPACES.sub("", page.extract_text())
    for said in ("U+65E5U+672C", "U+91CDU+307FU+1F600", "U+0623U+0648U+0632U+0627U+0646", "Größe∂"):
        assert said in text and (said in SPACES.sub("", picture.tikz) or "∂" in said)
    assert picture.png != Picture(dataclasses.replace(view, boxes=view.boxes[1:]), engine="graphviz-pure").png
    geometry = Geometry(printable(view, characters()), False)
    assert all(inside(text, geometry.boxes[name]) for name, texts in geometry.labels.items() for text in texts)
    plain = gpt2()
    assert printable(plain, characters()) is plain


def test_pdf_keeps_words_where_the_svg_has_them() -> None:
    """Oracle: pypdf. Helvetica's widths, by which the layout was made, are those of the fonts inside."""
    picture = Picture(gpt2(), engine="graphviz-pure")
    (page,) = pypdf.PdfReader(io.BytesIO(picture.pdf)).pages
    height, places = float(page.mediabox.height), {}

    def visit(text: str, _: object, matrix: list[float], *more: object) -> None:
        if text.strip():
            places[text.strip()] = (matrix[4], height - matrix[5])

    page.extract_text(visitor_text=visit)
    words = {s.text.strip(): s for s in read_svg(picture.svg, 14_400).shapes if isinstance(s, Words)}
    assert words.keys() == places.keys()
    for text, word in words.items():
        x, y = places[text]
        assert y == pytest.approx(word.y, abs=0.1)
        assert x == pytest.approx(word.x, abs=0.1) if word.anchor == "start" else x < word.x


def test_a_picture_longer_than_a_pdf_page_is_made_smaller() -> None:
    drawn = read_svg(Picture(chain(400), engine="graphviz-pure").svg, 1000)
    assert drawn.height == pytest.approx(1000)
    assert max(s.size for s in drawn.shapes if isinstance(s, Words)) < 1


TEX_WORDS = set(
    [
        "RequirePackage",
        "documentclass",
        "usepackage",
        "renewcommand",
        "familydefault",
        "sfdefault",
        "pagestyle",
        "setlength",
        "parindent",
        "topskip",
        "definecolor",
        "begin",
        "end",
        "useasboundingbox",
        "path",
        "node",
        "fontsize",
        "selectfont",
        "bfseries",
        "href",
    ]
)


@pytest.mark.parametrize("name", VIEWS)
def test_tikz_draws_everything_and_runs_nothing(name: str) -> None:
    """Every shape is a command on a line of its own, braces close, and no word comes from a name."""
    picture = Picture(VIEWS[name], shapes=True, engine="graphviz-pure")
    shapes = read_svg(picture.svg, 14_400).shapes
    lines = picture.tikz.splitlines()
    assert sum(line.startswith(r"\node") for line in lines) == sum(isinstance(s, Words) for s in shapes)
    assert sum(line.startswith(r"\path") for line in lines) == sum(not isinstance(s, Words) for s in shapes)
    words = set(re.findall(r"\\([A-Za-z]+)", picture.tikz))
    symbols = {w for c in map(chr, range(0x2E7F)) for w in re.findall(r"\\([A-Za-z]+)", latex_text(c))}
    assert words <= TEX_WORDS | symbols and not symbols & {"input", "write", "def", "catcode", "include", "csname"}
    for line in lines:
        bare = re.sub(r"\\.", "", line)
        assert bare.count("{") == bare.count("}") and "%" not in bare, line
    assert not re.search(r"[\u0180-\uffff]", picture.tikz)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdfLaTeX on this machine")
@pytest.mark.parametrize("name", VIEWS)
def test_latex_typesets_it(name: str, tmp_path: Path) -> None:
    """Oracle: pdfLaTeX; one page of the picture's size."""
    picture = Picture(VIEWS[name], shapes=True, engine="graphviz-pure")
    picture.save(tmp_path / "x.tex")
    command = ["pdflatex", "-no-shell-escape", "-halt-on-error", "-interaction=nonstopmode", "x.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    (page,) = pypdf.PdfReader(tmp_path / "x.pdf").pages
    assert (page.mediabox.width, page.mediabox.height) == pytest.approx(layout.svg_size(picture.svg), abs=1)


def test_mermaid_reads_like_the_seed() -> None:
    boxes = (
        Box("a", "Token IDs"),
        Box("d", "Embedding", "weight", link="/llms/embeddings/"),
        Box("h", "FFN: W_up", "weight"),
    )
    text = to_mermaid(View("Llama", boxes, edges("a d h")))
    assert (
        text
        == """\
graph LR
    accTitle: Llama
    accDescr: Highlighted: every step that uses learned weight matrices
    n0["Token IDs"]
    n1["Embedding"]:::weight
    n2["FFN: W_up"]:::weight
    n0 --> n1
    n1 --> n2
    classDef weight fill:#2d6a4f,stroke:#1b4332,color:#d8f3dc
    classDef default fill:#1a1a2e,stroke:#8b93a3,color:#e0e0e0
    click n1 "/llms/embeddings/"
"""
    )


def decoded(link: str) -> str:
    """A link without percent signs; merman normalises links, and drops an encoded backslash before an n."""
    return unquote(link).replace("\\n", "")


@pytest.mark.parametrize(("view", "shapes"), pictures())
def test_mermaid_is_valid_and_says_all(view: View, shapes: bool) -> None:
    """Oracle: merman's parser of Mermaid's grammar."""
    client = merman.Merman()
    text = to_mermaid(view, shapes=shapes)
    verdict = client.validate(text, None)
    assert verdict.valid, verdict.error
    parsed = json.loads(client.parse_json(text, None))
    assert [n["id"] for n in parsed["nodes"] if n["id"] != "legend"] == [f"n{i}" for i in range(len(view.boxes))]
    assert len(parsed["edges"]) == len(view.edges)
    used = {b for box in view.boxes for b in view.path(box)}
    assert {s["id"] for s in parsed["subgraphs"]} == {
        f"b{i}" for i, block in enumerate(view.blocks) if block.id in used
    }
    links = {f"n{i}": decoded(safe_link(box.link) or "") for i, box in enumerate(view.boxes)}
    assert {n["id"]: decoded(n["link"]) for n in parsed["nodes"] if n["link"]} == {k: v for k, v in links.items() if v}


@pytest.mark.slow
@pytest.mark.parametrize("name", VIEWS)
def test_mermaid_itself_draws_it(name: str) -> None:
    """Oracle: Mermaid's own JavaScript; labels come out as they were given, and as text."""
    svg = mermaidx.render(to_mermaid(VIEWS[name])).svg()
    root = ET.fromstring(svg)
    assert not list(root.iter(f"{SVG}script"))
    drawn = re.sub(r"[\s\u200b]", "", "".join(root.itertext()))
    for box in VIEWS[name].boxes:
        assert re.sub(r"\s", "", clean(box.label)) in drawn, box.label


def test_mermaid_refuses_what_github_does_not_draw() -> None:
    boxes = tuple(Box(str(i), str(i)) for i in range(502))
    assert to_mermaid(View("v", boxes, edges(" ".join(map(str, range(501))))))
    with pytest.raises(GraphError) as caught:
        to_mermaid(View("v", boxes, edges(" ".join(map(str, range(502))))))
    assert str(caught.value) == (
        "[TG385] 501 edges: Mermaid draws at most 500\n"
        "  hint: fold the graph, draw a coarser level, or save .svg, .png or .dot"
    )
    with pytest.raises(GraphError, match=r"TG385.*characters"):
        to_mermaid(View("v", (Box("a", "x" * 60_000),)))


def test_text_shows_blocks_and_where_inputs_come_from() -> None:
    boxes = (
        Box("x", "x", "input"),
        weighted("w", "W_up", "d, f", "2.4 M", "mlp"),
        Box("add", "+", block="mlp"),
        Box("y", "y", "output"),
    )
    flow = (*edges("x w add y", label="B, d"), Edge("x", "add", kind="residual"))
    view = View("tiny · 2.4 M", boxes, flow, (Block("mlp", "MLP", times="×2", note="4.8 M"),))
    assert (
        to_text(view)
        == """\
tiny · 2.4 M

  x
┌ MLP ×2 · 4.8 M
│ ■ W_up  (d, f)  2.4 M
│   +                    ← W_up, x (residual)
└─
  y

■ Highlighted: every step that uses learned weight matrices
"""
    )


# --- Hostile names --------------------------------------------------------------------------------------------------


def test_hostile_names_are_harmless_in_svg() -> None:
    for view in (hostile(), dataclasses.replace(hostile(), direction="TB")):
        root = ET.fromstring(Picture(view, shapes=True, engine="graphviz-pure").svg)
        assert {e.tag for e in root.iter()} <= {
            f"{SVG}{t}" for t in ("svg", "g", "title", "polygon", "path", "text", "a", "polyline", "ellipse")
        }
        for element in root.iter():
            assert not any(key.lower().startswith("on") for key in element.attrib)
            assert element.get(HREF, "/").startswith(("/", "http://", "https://"))
        seen = " ".join(root.itertext()).replace("\u200b", "")
        assert "<script>alert(1)</script>" in seen and "back\\slash\\n\\N\\G\\" in seen  # shown, not run


def test_hostile_names_do_not_change_the_text_forms() -> None:
    view = hostile()
    text, mermaid = to_text(view), to_mermaid(view)
    assert not set(text + mermaid) & {chr(i) for i in (*range(10), *range(11, 32), 127, 0x202E)}
    assert len([line for line in mermaid.splitlines() if line.strip().startswith("click")]) == sum(
        safe_link(b.link) is not None for b in view.boxes
    )
    assert "<script" not in mermaid and "javascript:" not in re.sub(r'"[^"]*"|acc.*', "", mermaid)
    text.encode(), mermaid.encode()


@pytest.mark.parametrize(
    ("link", "safe"),
    [
        ("https://a.org/x?y=1#z", "https://a.org/x?y=1#z"),
        ("/llms/what-happens/", "/llms/what-happens/"),
        ("HTTP://a.org", "HTTP://a.org"),
        ('/a"b<c>;d`\\', "/a%22b%3Cc%3E%3Bd%60%5C"),
        ("/seite/ä b", "/seite/%C3%A4%20b"),
        ("javascript:alert(1)", None),
        ("java\tscript:alert(1)", None),
        (" JavaScript:alert(1)", None),
        ("data:text/html,x", None),
        ("//evil.org", None),
        ("vbscript:x", None),
        ("http:javascript", None),
        ("", None),
        (None, None),
    ],
)
def test_only_safe_links_remain(link: str | None, safe: str | None) -> None:
    assert safe_link(link) == safe


# --- Picture and engine ---------------------------------------------------------------------------------------------


def test_save_goes_by_suffix_and_leaves_nothing_behind(tmp_path: Path) -> None:
    picture = Picture(gpt2(), engine="graphviz-pure")
    for suffix, made in (
        (".svg", picture.svg),
        (".tex", picture.tikz),
        (".mmd", picture.mermaid),
        (".dot", picture.dot),
        (".txt", picture.text),
    ):
        assert picture.save(tmp_path / f"a{suffix}").read_text(encoding="utf-8") == made
    assert picture.save(str(tmp_path / "a.PNG")).read_bytes() == picture.png
    assert picture.save(tmp_path / "a.pdf").read_bytes() == picture.pdf
    with pytest.raises(GraphError) as caught:
        picture.save(tmp_path / "a.jpg")
    assert str(caught.value) == (
        "[TG386] no picture format is named '.jpg' (a.jpg)\n"
        "  hint: save as one of: .svg .png .pdf .tex .mmd .mermaid .dot .gv .txt"
    )
    with pytest.raises(GraphError, match=r"TG387.*no-such-folder.*there is no folder"):
        picture.save(tmp_path / "no-such-folder" / "a.txt")
    assert {p.name for p in tmp_path.iterdir()} == {"a.svg", "a.tex", "a.mmd", "a.dot", "a.txt", "a.PNG", "a.pdf"}


def test_unknown_theme_is_named_at_once() -> None:
    with pytest.raises(GraphError) as caught:
        Picture(gpt2(), theme="neon")
    assert str(caught.value) == "[TG381] unknown theme 'neon'\n  hint: one of: seed, light, dark, mono"


def test_a_notebook_shows_a_picture_without_any_program(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = Picture(gpt2(), engine="graphviz-pure")
    assert drawn.svg
    monkeypatch.setattr(layout.subprocess, "run", lambda *a, **k: pytest.fail("a program was called"))
    assert set(drawn._repr_mimebundle_()) == {"text/plain", "text/vnd.mermaid", "image/svg+xml"}
    assert set(Picture(gpt2())._repr_mimebundle_()) == {"text/plain", "text/vnd.mermaid"}
    assert set(drawn._repr_mimebundle_(include={"image/svg+xml"})) == {"image/svg+xml"}


def test_without_an_engine_the_text_forms_still_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "_machine_dot", lambda: None)
    monkeypatch.setattr(layout, "_wheel", lambda: None)
    picture = Picture(gpt2())
    assert picture.mermaid and picture.dot and picture.text
    with pytest.raises(GraphError) as caught:
        picture.svg  # noqa: B018
    assert str(caught.value) == (
        "[TG382] no working Graphviz on this machine\n"
        "  hint: Mermaid (.mmd), DOT (.dot) and text (.txt) work without it; "
        "`pip install graphviz-pure` brings a layout engine"
    )


def test_the_machines_dot_is_used_only_if_it_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "dot"
    fake.write_text("#!/bin/sh\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    layout._machine_dot.cache_clear()
    try:
        assert Path(layout.find_engine()).stem == "graphviz-pure"
        with pytest.raises(GraphError, match=r"TG382.*no working dot"):
            layout.find_engine("dot")
    finally:
        layout._machine_dot.cache_clear()


def test_the_engines_words_are_passed_on_and_it_never_hangs() -> None:
    with pytest.raises(GraphError, match=r"TG383.*syntax error"):
        layout.render("digraph {", "svg")
    with pytest.raises(GraphError, match=r"TG384.*more than 0.001 s"):
        layout.render(to_dot(chain(400)), "svg", timeout=0.001)
