"""Training modes: what each trains, that frozen weights stay as they are to the bit, and what a frozen part costs."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorgraph as tg
from tensorgraph.cli.target import Target
from tensorgraph.cost import cost
from tensorgraph.dims import evaluate
from tensorgraph.errors import ModelError
from tensorgraph.graph import Graph
from tensorgraph.models import LoRA, Net, build, from_pretrained, lora, modes
from tensorgraph.visualize import draw

TEXT = {
    "model_type": "llama",
    "vocab_size": 29,
    "hidden_size": 12,
    "intermediate_size": 10,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 4,
}
EYE = {
    "hidden_size": 8,
    "intermediate_size": 14,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 4,
    "patch_size": 2,
}
LLAVA: dict[str, Any] = {
    "architectures": ["LlavaForConditionalGeneration"],
    "text_config": TEXT,
    "vision_config": EYE,
    "image_token_index": 28,
}
SEEING: dict[str, dict[str, Any]] = {
    "llava": LLAVA,
    "deepseek-vl": {
        "architectures": ["DeepseekVLForConditionalGeneration"],
        "text_config": TEXT,
        "vision_config": EYE,
        "image_token_id": 28,
    },
    "paligemma": {
        "architectures": ["PaliGemmaForConditionalGeneration"],
        "text_config": {**TEXT, "model_type": "gemma"},
        "vision_config": EYE,
        "image_token_index": 28,
        "projection_dim": 12,
    },
    "idefics": {
        "architectures": ["IdeficsForVisionText2Text"],
        **{k: v for k, v in TEXT.items() if k not in ("model_type", "num_key_value_heads")},
        "vision_config": {**EYE, "embed_dim": 8},
        "use_resampler": True,
        "perceiver_config": {"resampler_n_latents": 3, "resampler_depth": 1, "resampler_n_heads": 2},
    },
    "mllama": {
        "architectures": ["MllamaForConditionalGeneration"],
        "text_config": {**TEXT, "cross_attention_layers": [1], "pad_token_id": None},
        "vision_config": {
            **{k: v for k, v in EYE.items() if k != "num_attention_heads"},
            "attention_heads": 2,
            "num_global_layers": 1,
            "intermediate_layers_indices": [0],
            "vision_output_dim": 16,
            "max_num_tiles": 2,
            "supported_aspect_ratios": [[1, 1], [1, 2]],
        },
    },
}
STAGES = ["all", "bridge-only", "bridge+vision", "bridge+llm", "bridge+lora"]
SMALL = LoRA(r=2, alpha=4)


def prompt(config: dict[str, Any]) -> dict[str, Any]:
    """Two prompts with two images, as the model takes them."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 28, (2, 7))
    given: dict[str, Any] = {"input_ids": ids, "labels": ids}
    kind = config["architectures"][0]
    if "Idefics" in kind:
        seen = {"pixel_values": (2, 1, 3, 4, 4), "image_attention_mask": (2, 7, 1)}
    elif "Mllama" in kind:
        seen = {"pixel_values": (2, 1, 2, 3, 4, 4), "aspect_ratio_ids": (2, 1), "aspect_ratio_mask": (2, 1, 2)}
        seen["cross_attention_mask"] = (2, 7, 1, 2)
    else:
        ids[:, 1:5] = 28  # an image has four patches
        seen = {"pixel_values": (2, 3, 4, 4)}
    for name, shape in seen.items():
        given[name] = rng.standard_normal(shape) if name == "pixel_values" else np.ones(shape, np.int32)
    return given


def drawn(config: dict[str, Any]) -> Net:
    """Values that are nowhere zero or one."""
    net = Net(build(config).astype("float64"), config).init()
    rng = np.random.default_rng(1)
    net.state = {n: 0.3 * rng.standard_normal(a.shape) for n, a in net.state.items()}
    return net


def loss_and_gradients(config: dict[str, Any] | str, mode: str, adapter: LoRA | None = None) -> tuple[Graph, Any]:
    model = build(config).mode(mode, adapter)
    out = model.outputs(**model.inputs([*(model.usual or model.needs), "labels"]))
    wrt = {n: p for n, p in model.named_parameters().items() if p.trained}
    grads = tg.grad(out["loss"], wrt, unused="none")
    return Graph({"loss": out["loss"], **{n: g for n, g in grads.items() if g is not None}}), model


# ---------------------------------------------------------------------------------------------- what is trained


def test_published_stages() -> None:
    """LLaVA-1.5's bridge is 20,979,712 weights; its LoRA stage has 319,815,680 adapters (128 · sums of sizes)."""
    d, f, layers, bridge = 4096, 11008, 32, 20_979_712
    adapters = 128 * layers * (4 * (d + d) + 3 * (d + f))
    vision, llm = 303_507_456, 6_738_415_616 + 64 * 2 * d  # 64 tokens more than Llama-2's
    trained = {"all": bridge + vision + llm, "bridge-only": bridge, "bridge+vision": bridge + vision}
    trained |= {"bridge+llm": bridge + llm, "bridge+lora": bridge + adapters}
    assert adapters == 319_815_680
    for mode, count in trained.items():
        model = build("llava-1.5-7b").mode(mode)
        assert evaluate(model.total(trained=True), model.binding) == count, mode
        assert evaluate(model.total(), model.binding) == 7_063_427_072 + adapters * (mode == "bridge+lora")


@pytest.mark.parametrize("name", SEEING)
def test_models_that_see_have_the_stages_and_language_models_two(name: str) -> None:
    model = build(SEEING[name])
    assert modes.names(model) == STAGES
    for other in ("gpt2", "bert-base"):
        assert modes.names(build(other, layers=1)) == ["all", "lora"]


BRIDGES = {
    "llava": "multi_modal_projector.",
    "deepseek-vl": "model.aligner.",
    "paligemma": "multi_modal_projector.",
    "idefics": ("model.perceiver_resampler.", "model.gated_cross_attn_layers."),
    "mllama": ("multi_modal_projector.", "language_model.model.layers.1."),
}
EYES = {"deepseek-vl": "model.vision_model.", "idefics": "model.vision_model.", "mllama": "vision_model."}


@pytest.mark.parametrize("name", SEEING)
def test_parts_by_the_names_in_the_file(name: str) -> None:
    """Oracle: how transformers calls the parts."""
    for mode in STAGES:
        model = build(SEEING[name]).mode(mode, SMALL if mode == "bridge+lora" else None)
        trained = {n for n, p in model.named_parameters().items() if p.trained}
        every = {n for n, p in model.named_parameters().items() if p.counted}
        bridge = {n for n in every if n.startswith(BRIDGES[name])}
        eye = {n for n in every if n.startswith(EYES.get(name, "vision_tower."))}
        adapters = {n for n in every if n.startswith(lora.PREFIX)}
        llm = every - bridge - eye - adapters
        assert (
            trained
            == {
                "all": every,
                "bridge-only": bridge,
                "bridge+vision": bridge | eye,
                "bridge+llm": bridge | llm,
                "bridge+lora": bridge | adapters,
            }[mode]
        )
        assert bool(adapters) == (mode == "bridge+lora")
        assert not any(n.removeprefix(lora.PREFIX).startswith(BRIDGES[name]) for n in adapters)
        assert not any("vision" in n for n in adapters)


def test_what_is_not_there_is_refused() -> None:
    with pytest.raises(ModelError) as e:
        build("gpt2", layers=1).mode("bridge-only")
    assert str(e.value) == "[TG946] the model has no training mode 'bridge-only'\n  hint: its modes are all, lora"
    with pytest.raises(ModelError) as e:
        build(LLAVA).mode("lora")
    assert str(e.value).endswith("hint: its modes are all, bridge-only, bridge+vision, bridge+llm, bridge+lora")
    with pytest.raises(ModelError) as e:
        build(LLAVA).mode("bridge-only", SMALL)
    assert str(e.value) == "[TG947] mode bridge-only trains no adapter\n  hint: modes that do: bridge+lora"


# --------------------------------------------------------------------------------------------- what training does


EVERY = [("llava", mode) for mode in STAGES]
OTHERS = [(name, mode) for name in SEEING if name != "llava" for mode in ("bridge-only", "bridge+lora")]


@pytest.mark.parametrize(("name", "mode"), EVERY + OTHERS)
def test_a_stage_moves_its_part_and_leaves_the_rest_equal_to_the_bit(name: str, mode: str) -> None:
    net = drawn(SEEING[name]).mode(mode, SMALL if mode == "bridge+lora" else None)
    before = {n: a.copy() for n, a in net.values().items()}
    given = prompt(SEEING[name])
    inputs = net.model.inputs(given)
    step = tg.compile(net.model.outputs(**inputs)["loss"], update=tg.optim.AdamW(lr=0.01), binding=net.model.binding)
    state = step.init({n: net.values()[n] for n in step.params})  # the last layer of a tower may not be read
    arrays = {n: np.asarray(a, inputs[n].dtype.np) for n, a in given.items()}
    for _ in range(3):
        _, state = step(state, **arrays)
    moved = {n for n, a in state.params.items() if not np.array_equal(a, before[n])}
    learns = {n for n, p in net.model.named_parameters().items() if p.trained and n in step.graph.params}
    assert moved == learns
    assert learns == set(net.value_and_grad(**given)[1])


def test_stages_follow_each_other_and_the_result_is_saved_whole(tmp_path: Any) -> None:
    net = drawn(LLAVA)
    given = prompt(LLAVA)
    first = set(net.mode("bridge-only").value_and_grad(**given)[1])
    second = set(net.mode("bridge+llm").value_and_grad(**given)[1])
    assert first < second
    net.mode("bridge+lora", SMALL, seed=3)
    for name in lora.parameters(net.model):
        net.state[name] = 0.3 * np.random.default_rng(len(name)).standard_normal(net.state[name].shape)
    third = set(net.value_and_grad(**given)[1])
    assert first < third and third - first == set(lora.parameters(net.model))
    with pytest.raises(ModelError, match=r"\[TG948\] 4 weights are trained beside the adapter"):
        net.save_adapter(tmp_path / "adapter")
    net.merged().save_pretrained(tmp_path / "whole")
    again = from_pretrained(tmp_path / "whole", dtype="float64")
    np.testing.assert_allclose(again(**given)["logits"], net(**given)["logits"], rtol=1e-10, atol=1e-12)


def test_an_adapter_of_the_language_model_alone_is_read_back_as_such(tmp_path: Any) -> None:
    net = drawn(LLAVA)
    net.save_pretrained(tmp_path / "base")
    net.mode("bridge+lora", SMALL).model.freeze("connector")
    for name in lora.parameters(net.model):
        net.state[name] = 0.3 * np.random.default_rng(len(name)).standard_normal(net.state[name].shape)
    net.save_adapter(tmp_path / "adapter")
    again = from_pretrained(tmp_path / "base", dtype="float64", adapter=tmp_path / "adapter")
    assert set(again.state) == set(net.state)
    np.testing.assert_array_equal(again(**prompt(LLAVA))["logits"], net(**prompt(LLAVA))["logits"])


# ---------------------------------------------------------------------------------------- what the graph computes


def layers_with_gradients(graph: Graph) -> set[str]:
    return {t.scope.path for t in graph.nodes if t.scope.backward and t.scope.path}


def test_no_backward_node_stands_where_nothing_learns() -> None:
    """A frozen tower, and all below the bridge, has none; a frozen language model passes gradients of values only."""
    for mode in ("bridge-only", "bridge+llm", "bridge+lora"):
        graph, _ = loss_and_gradients(LLAVA, mode, SMALL if mode == "bridge+lora" else None)
        paths = layers_with_gradients(graph)
        assert not any(p.startswith("vision") for p in paths), mode
        assert any(p.startswith("connector") for p in paths) and any(p.startswith("text.layers.0") for p in paths)
        assert (mode == "bridge+llm") == ("text.embed" in paths)
    graph, _ = loss_and_gradients(LLAVA, "bridge+vision")
    paths = layers_with_gradients(graph)
    assert "vision.embed.patches" in paths and not any(
        p.startswith("vision.layers.2") for p in paths
    )  # layer -2 is read


def shapes_of_products(graph: Graph) -> list[tuple[Any, ...]]:
    return [t.shape for t in graph.nodes if t.scope.backward and t.op.style == "matmul"]


def test_a_frozen_language_model_makes_no_gradient_of_a_weight() -> None:
    frozen, model = loss_and_gradients(LLAVA, "bridge-only")
    whole, _ = loss_and_gradients(LLAVA, "bridge+llm")
    text = {
        p.shape for n, p in model.named_parameters().items() if n.startswith("language_model") and len(p.shape) == 2
    }
    bridge = {p.shape for n, p in model.named_parameters().items() if n.startswith("multi_modal") and len(p.shape) == 2}
    made = set(shapes_of_products(frozen))
    either = {s for shape in text for s in (shape, shape[::-1])}
    assert not made & (either - {s for shape in bridge for s in (shape, shape[::-1])})
    assert set(shapes_of_products(whole)) & either


def test_flops_of_the_stages_by_hand() -> None:
    """A frozen matrix costs its input's gradient alone (as much as its forward), a trained one its own as well."""
    sizes = {"B": 1, "T": 2048, "I": 1}
    found = {}
    for mode in ("bridge-only", "bridge+llm"):
        graph, model = loss_and_gradients("llava-1.5-7b", mode)
        found[mode] = cost(graph).bind({**model.binding, **sizes})
    d, f, V, w, P, T = 4096, 11008, 32064, 1024, 576, 2048
    linear = 2 * T * (32 * (4 * d * d + 3 * d * f) + V * d)
    mixing = 32 * 2 * 2 * T * T * d  # scores and weighted sum
    first, second = 2 * P * w * d, 2 * P * d * d
    own = {m: c.backward.products - c.recomputed.products for m, c in found.items()}  # type: ignore[operator]
    assert own["bridge-only"] == linear + 2 * mixing + first + 2 * second
    assert own["bridge+llm"] == 2 * linear + 2 * mixing + first + 2 * second
    assert found["bridge-only"].forward == found["bridge+llm"].forward
    assert found["bridge-only"].bytes["gradients"] == 4 * 20_979_712
    assert found["bridge-only"].bytes["optimiser"] == 8 * 20_979_712


# ------------------------------------------------------------------------------------------- on the command line


def test_params_of_a_mode(run: Any) -> None:
    found = run("params", "llava-1.5-7b", "--mode", "bridge-only", "--json").json()
    assert (found["mode"], found["total"], found["trainable"]) == ("bridge-only", 7_063_427_072, 20_979_712)
    learns = [t["name"] for t in found["tensors"] if t["trained"]]
    assert learns == [f"multi_modal_projector.linear_{i}.{x}" for i in (1, 2) for x in ("weight", "bias")]
    said = run("params", "llava-1.5-7b", "--mode", "bridge-only").out
    assert re.search(r"^language_model\.model\.norm\.weight .* norm +frozen", said, re.M)
    assert re.search(r"^multi_modal_projector\.linear_1\.bias .* connector +trained", said, re.M)
    assert re.search(r"^trainable +20,979,712 +0\.30 % +d·d_v \+ d² \+ 2·d", said, re.M)
    assert re.search(r"^frozen +7,042,447,360 +99\.7 %", said, re.M)


@pytest.mark.parametrize(("layers", "count"), [(1, 4_198_400), (2, 20_979_712), (3, 37_761_024)])
def test_connectors_of_one_two_and_three_layers(run: Any, layers: int, count: int) -> None:
    found = run("params", "llava-1.5-7b", "--mode", "bridge-only", "-d", f"n_c={layers}", "--json").json()
    assert found["trainable"] == found["components"]["connector"] == count


@pytest.mark.parametrize(("r", "count", "share"), [(16, 39_976_960, "0.59"), (32, 79_953_920, "1.17")])
def test_adapters_of_llama_2_7b(run: Any, r: int, count: int, share: str) -> None:
    found = run("params", "llama-2-7b", "--lora", f"r={r}", "--json").json()
    assert (found["mode"], found["trainable"], found["total"]) == ("lora", count, 6_738_415_616 + count)
    assert re.search(rf"^trainable +{count:,} +{share} %", run("params", "llama-2-7b", "--lora", f"r={r}").out, re.M)
    two = run("params", "llama-2-7b", "--lora", "r=8,alpha=16,targets=q_proj+v_proj,rslora=true", "--json").json()
    assert two["trainable"] == 32 * 2 * 2 * 8 * 4096  # Hu et al. 2021: queries and values


def test_costs_by_hand(run: Any) -> None:
    """2 per weight and token, twice that backward; scores and weighted sum; what a step keeps; keys and values."""
    d, V, P, n, T = 768, 50257, 1024, 12, 1024
    found = run("cost", "gpt2", "-d", "B=2", "-d", f"T={T}", "--json").json()
    linear, mixing = 2 * 2 * T * (n * 12 * d * d + V * d), n * 2 * 4 * T * T * d
    assert found["FLOPs"]["forward, products"] == linear + mixing
    own = found["FLOPs"]["backward, products"] - found["FLOPs"]["recomputed, products"]
    assert own == 2 * (linear + mixing)
    kept = (
        n * (1 + 1 + 3 + 1 + 1 + 1 + 4 + 4) * d + 2 * d + V + 1
    )  # of a layer: x, norm, q k v, sums, x, norm, up, GELU
    assert found["bytes"]["activations"] == 4 * 2 * T * kept
    assert found["bytes"]["kv_cache"] == 2 * n * 2 * T * d * 4
    assert (
        found["bytes"]["weights"]
        == found["bytes"]["gradients"]
        == 4 * (V * d + P * d + n * (12 * d * d + 13 * d) + 2 * d)
    )
    assert found["formulas"]["FLOPs"]["forward, products"] == "2·B·T·V·d + 288·B·T·d² + 48·B·T²·d"

    sizes = ("-d", "B=1", "-d", "T=2048", "--dtype", "bf16")
    full = run("cost", "llama-2-7b", *sizes, "--json").json()
    low = run("cost", "llama-2-7b", *sizes, "--lora", "r=16", "--optimizer", "sgd", "--json").json()
    total, r16 = 6_738_415_616, 39_976_960
    assert full["bytes"]["kv_cache"] == low["bytes"]["kv_cache"] == 2 * 32 * 2048 * 32 * 128 * 2
    assert [full["bytes"][x] for x in ("weights", "gradients", "optimiser")] == [2 * total, 2 * total, 8 * total]
    assert [low["bytes"][x] for x in ("weights", "gradients", "optimiser")] == [2 * (total + r16), 2 * r16, 0]
    linear = 2 * 2048 * (total - 32000 * 4096 - 65 * 4096)
    mixing = 32 * 4 * 2048**2 * 4096
    assert full["FLOPs"]["forward, products"] == linear + mixing
    own = {
        k: c["FLOPs"]["backward, products"] - c["FLOPs"]["recomputed, products"] for k, c in (("f", full), ("l", low))
    }
    assert own["f"] == 2 * (linear + mixing)
    flows = linear - 3 * 2 * 2048 * 4096 * 4096  # below the first layer's queries, keys and values nothing learns
    through = 2 * 2 * 2048 * r16 - 3 * 2 * 2048 * 16 * 4096
    assert own["l"] == flows + 2 * mixing + through


def test_prompts_too_short_for_the_tokens_of_their_images_are_refused(run: Any) -> None:
    for model, sizes, said in (
        ("llava-1.5-7b", "T=64 I=1", "prompts of T = 64 do not hold 1 image of 576 tokens\n  hint: -d T=640"),
        (
            "llava-1.5-7b",
            "B=2 T=640 I=3",
            "prompts of B·T = 1280 do not hold 3 images of 576 tokens\n  hint: -d T=1152",
        ),
        ("paligemma-3b", "B=1 T=255 I=1", "prompts of T = 255 do not hold 1 image of 256 tokens\n  hint: -d T=511"),
    ):
        done = run("cost", model, *(x for size in sizes.split() for x in ("-d", size)))
        assert (done.rc, done.err) == (2, f"SizeError[TG016] {said}\n")
    assert run("cost", "llava-1.5-7b", "--forward", "-d", "B=4", "-d", "T=576", "-d", "I=4").rc == 0


def test_cost_of_a_mode_counts_all_weights_and_says_what_is_open(run: Any) -> None:
    found = run("cost", "llava-1.5-7b", "-d", "B=1", "-d", "T=640", "--mode", "bridge-only", "--json").json()
    assert (found["parameters"]["total"], found["parameters"]["trained"]) == (7_063_427_072, 20_979_712)
    assert found["bytes"]["weights"] == 4 * 7_063_427_072  # with the tower's last layer, which is not read
    said = run("cost", "llava-1.5-7b", "-d", "B=1", "-d", "T=640", "--mode", "bridge-only").out
    assert said.endswith("without a value: I (-d I=1)\n") and "·I + " in said
    prefix = run("cost", "paligemma-3b", "--forward", "-d", "B=2", "-d", "T=300", "--json").json()
    assert prefix["bytes"]["kv_cache"] == 2 * 18 * 2 * 300 * 256 * 4  # Gemma: one group of 256, seen through a mask
    looks = run("cost", "llama-3.2-11b-vision", "--forward", "-d", "B=2", "-d", "T=64", "-d", "N=3", "--json").json()
    tiles = 3 * 4 * 1025  # three images of four tiles, each of 32 x 32 patches and a class token
    assert looks["bytes"]["kv_cache"] == 2 * 2 * 8 * 128 * 4 * (32 * 64 + 8 * tiles)
    experts = run("cost", "mixtral-8x7b", "--forward", "--json").json()["parameters"]
    assert (experts["total"], experts["active per token"]) == (46_702_792_704, 12_879_925_248)
    done = run("cost", "gpt2", "-d", "T=2048")
    assert (done.rc, done.err.splitlines()[0][:59]) == (
        2,
        "SizeError[TG011] P = 1024, T = 2048 breaks an obligation: P",
    )


def test_check_and_draw_and_show_of_a_mode(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(LLAVA))
    found = run("check", str(file), "--mode", "bridge-only", "--json").json()
    assert found["passed"]
    assert run("check", str(file), "--lora", "r=2", "--only-wrong").out.startswith("gradients of config.json are right")
    shown = run("show", str(file), "--backward", "--mode", "bridge-only").out
    assert {m[1] for m in re.finditer(r"∂([\w.]+)=%", shown)} == {
        f"multi_modal_projector.linear_{i}.{x}" for i in (1, 2) for x in ("weight", "bias")
    }
    picture = tmp_path / "stage.mmd"
    assert run("draw", str(file), "--mode", "bridge+vision", "-o", str(picture)).rc == 0
    text = picture.read_text(encoding="utf-8")
    assert "frozen" in text and "trained" in text and "bridge+vision" in text


@pytest.mark.parametrize("name", [n for n in SEEING if n != "mllama"])  # its tower has too few layers here to repeat
def test_towers_stand_side_by_side_and_meet_at_the_bridge(name: str) -> None:
    """Features rise through the vision encoder to the bridge, from which text is read downwards beside it."""
    model = build(SEEING[name])
    target = Target(name, model, binding=dict(model.binding)).train("bridge-only")
    picture = draw(target, mode="bridge-only")
    frames = {b.id: b.title for b in picture.view.blocks if b.parent is None}
    assert picture.view.direction == "TB" and {"vision", "text"} <= set(frames.values())
    place = {o["name"]: o for o in json.loads(picture.layout)["objects"] if "bb" in o or "pos" in o}
    box = {}
    for i, block in enumerate(picture.view.blocks):
        if block.id in frames:
            box[block.title] = [float(v) for v in place[f"cluster_b{i}"]["bb"].split(",")]
    (left, below, right, above), (left_, below_, right_, above_) = box["vision"], box["text"]
    assert right <= left_ or right_ <= left
    assert min(above, above_) - max(below, below_) > 0.3 * min(above - below, above_ - below_)
    height = {b.id: float(place[f"n{i}"]["pos"].split(",")[1]) for i, b in enumerate(picture.view.boxes)}
    rising = [e for e in picture.view.edges if e.up]
    assert rising and all(height[e.target] > height[e.source] for e in rising)
    falling = [e for e in picture.view.edges if not e.up and e.kind in ("data", "residual")]
    assert all(height[e.target] < height[e.source] for e in falling)
    (pixels,) = (b for b in picture.view.boxes if b.label == "pixel_values")
    assert height[pixels.id] == min(height[e.source] for e in rising)
    trained, total = (f"{evaluate(model.total(trained=t), model.binding):,}" for t in (True, None))
    assert f"Mode bridge-only: {trained} of {total} weights are trained" in html.unescape(picture.svg)


def test_training_with_an_adapter_leaves_a_model_and_the_adapter(run: Any, tmp_path: Path) -> None:
    text = tmp_path / "cat.txt"
    text.write_text("The cat sat on a mat .\n" * 60, encoding="utf-8")
    base, out = tmp_path / "base", tmp_path / "out"
    assert run("train", "mini-268", "--text", str(text), "--steps", "2", "--out", str(base)).rc == 0
    done = run("train", str(base), "--lora", "r=2", "--text", str(text), "--steps", "3", "--out", str(out))
    assert done.rc == 0 and "444 parameters, 144 of them trained, vocabulary 8" in done.err
    before, merged = from_pretrained(base), from_pretrained(out)
    with_adapter = from_pretrained(base, adapter=out / "adapter")
    ids = np.arange(6)[None]
    np.testing.assert_allclose(
        with_adapter(input_ids=ids)["logits"], merged(input_ids=ids)["logits"], rtol=1e-5, atol=1e-5
    )
    moved = {n for n, a in merged.state.items() if not np.array_equal(a, before.state[n])}
    assert moved == {n for n in merged.state if n.startswith("layers.0.") and n.endswith(".weight")}


def test_wrong_modes_on_the_command_line(run: Any, tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text('import tensorgraph as tg\nloss = tg.input("x", (3,)).sum()\n', encoding="utf-8")
    cases = {
        ("params", "gpt2", "--mode", "bridge-only"):
            "ModelError[TG946] the model has no training mode 'bridge-only'\n  hint: its modes are all, lora",
        ("cost", "gpt2", "--mode", "all", "--lora", "r=3"):
            "ModelError[TG947] mode all trains no adapter\n  hint: modes that do: lora",
        ("draw", "gpt2", "--lora", "r=many", "-o", "x.svg"):
            "ModelError[TG949] cannot read 'r=many' as a setting of an adapter\n"
            "  hint: write them as r=16,alpha=32,targets=q_proj+v_proj,rslora=true; any may be left out",
        ("check", "gpt2", "--lora", "r=0"):
            "ModelError[TG913] the rank r of an adapter must be a positive whole number, not 0",
        ("cost", f"{own}:loss", "--mode", "all"):
            "ModelError[TG945] own.py:loss gives a graph, in which it is settled what is trained",
        ("cost", "gpt2", "--optimizer", "lion"):
            "SizeError[TG013] unknown optimiser 'lion'\n  hint: one of: none, sgd, momentum, adam, adamw",
    }  # fmt: skip
    for args, said in cases.items():
        done = run(*args)
        assert (done.rc, done.out, done.err) == (2, "", said + "\n"), args
