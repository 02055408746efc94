"""The renderers hold their laws on hand-made views: valid, harmless, deterministic, legible, nothing cut or covered."""

from __future__ import annotations

import dataclasses
import itertools

from tensorgraph.visualize import Block, Box, Edge, View, Weight


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
        Edge("sum", "x", "B, T, d"), Edge("x", "ln_1", "B, T, d"),
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
