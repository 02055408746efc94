"""The configurations and inputs of the encoder and vision suites, as data: no torch, no transformers.

Sizes are small and distinct, so that a transposed or tiled axis cannot hide. Every case names its own seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .configs import LLAMA, LLAMA3_ROPE, Batch, inputs

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Case:
    """A transformers class with keyword arguments of its config, and what it is called with.

    `text`: how ids, masks and labels are drawn; `types`: the number of token types, 0: none given. `images`: how many,
    `several`: how many for each text, `tiled`: how many in tiles for each text, with a mask of what each token sees if
    it `looks`; `classes`: what the labels of images are. `cotangents`: the outputs that are differentiated, where there
    is no loss; `wrt`: float inputs to differentiate in; `flags`: inputs that are true.
    """

    cls: str
    settings: Mapping[str, Any]
    seed: int
    text: Batch | None = None
    types: int = 0
    images: int = 0
    several: int = 0
    tiled: int = 0
    looks: bool = False
    classes: str = ""
    cotangents: tuple[str, ...] = ()
    wrt: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()


TEXT: dict[str, Batch] = {
    "plain": Batch(labels="none"),
    "left": Batch(padding="left", labels="none"),
    "right": Batch(padding="right", labels="none"),
    "holes": Batch(padding="holes", labels="none"),
    "spaced": Batch(positions="spaced", labels="none"),
    "one": Batch(B=1, T=1, labels="none"),
}
# H = 6, k = 4, d = 24, f = 29, V = 41, P = 19.
BERT: dict[str, Any] = {
    "vocab_size": 41,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "intermediate_size": 29,
    "max_position_embeddings": 19,
    "type_vocab_size": 3,
}
HIDDEN = ("last_hidden_state",)
POOLED = ("last_hidden_state", "pooler_output")


def bert(seed: int, text: str = "plain", types: int = 0, cotangents: tuple[str, ...] = POOLED, **changes: Any) -> Case:
    return Case("BertModel", BERT | changes, seed, TEXT[text], types, cotangents=cotangents)


def masked(seed: int, text: Batch, types: int = 0, **changes: Any) -> Case:
    return Case("BertForMaskedLM", BERT | changes, seed, text, types)


ENCODERS: dict[str, Case] = {
    "bert": bert(100),
    "bert-left": bert(101, "left", 3),
    "bert-right": bert(102, "right", 3, num_hidden_layers=3, hidden_act="relu"),
    "bert-holes": bert(103, "holes", 2, hidden_act="gelu_new", pad_token_id=5),
    "bert-spaced": bert(104, "spaced", 3, pad_token_id=None, layer_norm_eps=0.1),
    "bert-one": bert(105, "one", type_vocab_size=1, num_attention_heads=1),
    "bert-hidden-only": bert(106, "right", 3, HIDDEN),
    "bert-pooled-only": bert(107, "right", 3, ("pooler_output",), num_attention_heads=24),
    "masked": masked(110, Batch()),
    "masked-left": masked(111, Batch(padding="left", labels="masked"), 3, hidden_act="silu"),
    "masked-pad-row": masked(112, Batch(padding="right", labels="all"), 3, pad_token_id=7),
    "masked-untied": masked(113, Batch(B=3, T=4), 2, tie_word_embeddings=False, num_hidden_layers=1),
    "masked-no-labels": masked(114, Batch(labels="none", positions="restart")),
}

# H = 6, k = 4, d = 24, f = 29; a grid of 3 x 3 patches of 5 x 5.
VIT: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "intermediate_size": 29,
    "image_size": 15,
    "patch_size": 5,
}
PIXELS = ("pixel_values",)


def vit(seed: int, cotangents: tuple[str, ...] = POOLED, images: int = 3, **changes: Any) -> Case:
    return Case("ViTModel", VIT | changes, seed, images=images, cotangents=cotangents, wrt=PIXELS)


def classify(seed: int, classes: str = "ids", images: int = 7, **changes: Any) -> Case:
    """`classes`: what the labels are: ids, numbers (one per image, or one per class) or bits."""
    settings = {"num_labels": 11, **VIT, **changes}
    return Case("ViTForImageClassification", settings, seed, images=images, classes=classes, wrt=PIXELS)


VISION: dict[str, Case] = {
    "vit": vit(120),
    "vit-oblong": vit(121, image_size=[14, 21], patch_size=[7, 3], num_channels=2),
    "vit-remainder": vit(122, image_size=17, patch_size=6, hidden_act="gelu_new", num_hidden_layers=3),
    "vit-no-bias": vit(123, qkv_bias=False, layer_norm_eps=0.1, num_attention_heads=3),
    "vit-pooler": vit(124, ("pooler_output",), pooler_output_size=13, pooler_act="relu"),
    "vit-hidden-only": vit(125, HIDDEN, 1, num_attention_heads=1, image_size=5),
    "classify": classify(130),
    "classify-two": classify(131, num_labels=2, hidden_act="relu", image_size=[14, 21], patch_size=[7, 3]),
    "classify-one-number": classify(132, "number", num_labels=1),
    "classify-numbers": classify(133, "numbers", num_labels=5, problem_type="regression"),
    "classify-bits": classify(134, "bits", num_labels=5, problem_type="multi_label_classification"),
    "classify-some": classify(135, "some", qkv_bias=False, num_hidden_layers=1),
}

# Image: H = 6, k = 4, d = 24, f = 29, 3 x 3 patches. Text: H = 3, k = 5, d = 15, f = 22. Embeddings: 13.
CLIP_VISION = VIT | {"num_hidden_layers": 3}
CLIP_TEXT: dict[str, Any] = {
    "vocab_size": 41,
    "hidden_size": 15,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 22,
    "max_position_embeddings": 19,
    "eos_token_id": 39,
}
PAIRS = ("text_embeds", "image_embeds", "logits_per_image", "logits_per_text")


def clip_vision(seed: int, cotangents: tuple[str, ...] = POOLED, **changes: Any) -> Case:
    return Case("CLIPVisionModel", CLIP_VISION | changes, seed, images=4, cotangents=cotangents, wrt=PIXELS)


def clip_text(seed: int, text: str = "plain", cotangents: tuple[str, ...] = POOLED, **changes: Any) -> Case:
    return Case("CLIPTextModel", CLIP_TEXT | changes, seed, TEXT[text], cotangents=cotangents)


def clip(
    seed: int,
    text: Mapping[str, Any] | None = None,
    vision: Mapping[str, Any] | None = None,
    batch: str = "plain",
    images: int = 5,
    cotangents: tuple[str, ...] = (),
    **changes: Any,
) -> Case:
    settings = {"text_config": CLIP_TEXT | (text or {}), "vision_config": CLIP_VISION | (vision or {})}
    flags = () if cotangents else ("return_loss",)
    full = {"projection_dim": 13, **settings, **changes}
    return Case("CLIPModel", full, seed, TEXT[batch], images=images, cotangents=cotangents, wrt=PIXELS, flags=flags)


def siglip(seed: int, cotangents: tuple[str, ...] = POOLED, **changes: Any) -> Case:
    return Case("SiglipVisionModel", CLIP_VISION | changes, seed, images=4, cotangents=cotangents, wrt=PIXELS)


VISION |= {
    "clip-vision": clip_vision(140),
    "clip-vision-hidden-only": clip_vision(141, HIDDEN, hidden_act="gelu", num_channels=1),
    "clip-vision-remainder": clip_vision(142, image_size=17, patch_size=6, layer_norm_eps=0.1, num_attention_heads=1),
    "clip-text": clip_text(143),
    "clip-text-right": clip_text(144, "right", eos_token_id=2),
    "clip-text-left": clip_text(145, "left", hidden_act="gelu_pytorch_tanh", eos_token_id=3, layer_norm_eps=0.1),
    "clip-text-spaced": clip_text(146, "spaced", ("pooler_output",), num_attention_heads=1),
    "clip": clip(150),
    "clip-right": clip(151, {"eos_token_id": 2, "hidden_act": "relu"}, {"num_hidden_layers": 1}, "right"),
    "clip-holes": clip(152, {"num_hidden_layers": 3}, {"hidden_act": "gelu", "image_size": 20}, "holes"),
    "clip-pairs": clip(153, images=3, batch="right", cotangents=PAIRS, projection_dim=9),
    "clip-images-only": clip(154, images=2, cotangents=("image_embeds",)),
    "clip-no-loss": clip(155, images=1, cotangents=("logits_per_image",)),
    "siglip": siglip(160),
    "siglip-hidden-only": siglip(161, HIDDEN, vision_use_head=False, num_channels=1),
    "siglip-unused-head": siglip(162, HIDDEN, hidden_act="gelu"),
    "siglip-remainder": siglip(163, image_size=17, patch_size=6, layer_norm_eps=0.1, num_attention_heads=3),
    "siglip-pooled-only": siglip(164, ("pooler_output",), num_hidden_layers=1, num_attention_heads=1),
}

# 2 x 2 patches, of which the text holds an image token each (with the class token: 5); the tower's layer 3 is not used.
SEEN = VIT | {"image_size": 10, "num_hidden_layers": 4}
SAID: dict[str, Any] = LLAMA | {"model_type": "llama", "pad_token_id": None}
GEMMA = LLAMA | {"model_type": "gemma", "head_dim": 10, "hidden_size": 18, "pad_token_id": None}
CLIP_TOWER = {"model_type": "clip_vision_model"}
SIGLIP_TOWER = {"model_type": "siglip_vision_model"}
LONG = Batch(B=3, T=13)
LEFT = Batch(B=3, T=13, padding="left", labels="masked")
RIGHT = Batch(B=3, T=13, padding="right", labels="all")
HOLES = Batch(B=3, T=13, padding="holes", labels="all")
SPACED = Batch(B=3, T=13, labels="none", positions="spaced")


def seeing(cls: str, seed: int, text: Mapping[str, Any], vision: Mapping[str, Any], **changes: Any) -> Case:
    batch, images = changes.pop("batch", LONG), changes.pop("images", 4)
    settings = {"text_config": dict(text), "vision_config": dict(vision), **changes}
    cotangents = ("logits", "image_hidden_states") if batch.labels == "none" else ()
    return Case(cls, settings, seed, batch, images=images, wrt=PIXELS if images else (), cotangents=cotangents)


def llava(seed: int, text: Mapping[str, Any] | None = None, tower: Mapping[str, Any] = CLIP_TOWER, **rest: Any) -> Case:
    full = {"image_token_index": 38, **rest}
    return seeing("LlavaForConditionalGeneration", seed, SAID | (text or {}), SEEN | tower, **full)


def deepseek(
    seed: int, text: Mapping[str, Any] | None = None, tower: Mapping[str, Any] | None = None, **rest: Any
) -> Case:
    full = {"image_token_id": 38, **rest}
    vision = SEEN | SIGLIP_TOWER | (tower or {})
    return seeing("DeepseekVLForConditionalGeneration", seed, SAID | (text or {}), vision, **full)


def paligemma(seed: int, text: Mapping[str, Any] | None = None, prefix: bool = True, **rest: Any) -> Case:
    full = {"image_token_index": 38, "projection_dim": 18, **rest}
    vision = SEEN | SIGLIP_TOWER | {"vision_use_head": False} | full.pop("tower", {})
    case = seeing("PaliGemmaForConditionalGeneration", seed, GEMMA | (text or {}), vision, **full)
    return replace(case, types=2 if prefix else 0)


FULL = {"vision_feature_select_strategy": "full"}
VISION |= {
    "llava": llava(170),
    "llava-left": llava(171, {"num_key_value_heads": 6}, batch=LEFT),
    "llava-full": llava(172, images=3, vision_feature_layer=-1, **FULL),
    "llava-several": llava(
        173, vision_feature_layer=[-3, 1, -1], multimodal_projector_bias=False, projector_hidden_act="relu"
    ),
    "llava-siglip": llava(174, {"pad_token_id": 5}, SIGLIP_TOWER, images=3, vision_feature_layer=2, **FULL),
    "llava-mistral": llava(
        175,
        {"model_type": "mistral", "sliding_window": 4, "head_dim": 10, "hidden_size": 18},
        batch=RIGHT,
        images=1,
    ),
    "llava-qwen": llava(176, {"model_type": "qwen2", "tie_word_embeddings": True}, images=2),
    # The head is LLaVA's own: Gemma's soft cap of the logits is not there.
    "llava-gemma2": llava(
        179,
        {
            "model_type": "gemma2",
            "head_dim": 10,
            "hidden_size": 18,
            "final_logit_softcapping": 1.5,
            "sliding_window": 3,
        },
        images=2,
    ),
    "llava-no-labels": llava(177, batch=SPACED),
    "llava-no-image": llava(178, images=0),
    "deepseek-vl": deepseek(180),
    "deepseek-vl-left": deepseek(
        181,
        {"attention_bias": True, "mlp_bias": True},
        {"vision_use_head": False, "hidden_act": "gelu"},
        batch=LEFT,
        tie_word_embeddings=True,
    ),
    "deepseek-vl-holes": deepseek(
        182, {"hidden_act": "gelu", "head_dim": 10, "hidden_size": 18}, {"num_channels": 1}, batch=HOLES, images=2
    ),
    "paligemma": paligemma(190),
    "paligemma-left": paligemma(191, batch=LEFT, images=2),
    "paligemma-right": paligemma(192, {"pad_token_id": 3}, tower={"hidden_act": "gelu"}, batch=RIGHT),
    "paligemma-causal": paligemma(193, prefix=False, tie_word_embeddings=False),
    "paligemma-outside": paligemma(194, {"num_key_value_heads": 1, "num_hidden_layers": 3}, image_token_index=57),
    "paligemma-no-labels": paligemma(195, batch=SPACED),
}

IDEFICS: dict[str, Any] = {name: value for name, value in LLAMA.items() if name != "num_key_value_heads"} | {
    "num_hidden_layers": 3,
    "cross_layer_interval": 2,
    "pad_token_id": 5,
    "freeze_text_layers": False,
    "freeze_vision_layers": False,
}
IDEFICS_VISION: dict[str, Any] = {"embed_dim": 24, **SEEN, "num_hidden_layers": 2}
IDEFICS_VISION.pop("hidden_size")
RESAMPLER = {"resampler_n_latents": 3, "resampler_depth": 2, "resampler_n_heads": 3, "resampler_head_dim": 7}


def idefics(seed: int, batch: Batch = LONG, images: int = 2, **changes: Any) -> Case:
    vision = {**IDEFICS_VISION, **changes.pop("vision", {})}
    resampler = changes.get("perceiver_config")
    extra = {"use_resampler": True} if resampler else {}
    settings = {**IDEFICS, "vision_config": vision, **extra, **changes}
    cotangents = ("logits", "image_hidden_states") if batch.labels == "none" else ()
    wrt = () if settings["freeze_vision_layers"] else PIXELS
    return Case("IdeficsForVisionText2Text", settings, seed, batch, several=images, cotangents=cotangents, wrt=wrt)


VISION |= {
    # The reference wants a number of layers that the interval divides.
    "idefics": idefics(200, num_hidden_layers=4),
    "idefics-left": idefics(201, LEFT, num_hidden_layers=2, cross_layer_interval=1, qk_layer_norms=True),
    "idefics-resampler": idefics(202, RIGHT, num_hidden_layers=2, perceiver_config=RESAMPLER, alpha_type="vector"),
    "idefics-norms": idefics(
        203,
        HOLES,
        3,
        num_hidden_layers=6,
        cross_layer_interval=3,
        perceiver_config={**RESAMPLER, "qk_layer_norms_perceiver": True},
        qk_layer_norms=True,
        tie_word_embeddings=True,
        vision={"hidden_act": "relu", "layer_norm_eps": 0.1},
    ),
    "idefics-extra": idefics(204, SPACED, num_hidden_layers=2, additional_vocab_size=3, images=1),
    "idefics-extra-tied": idefics(
        205, SPACED, num_hidden_layers=2, additional_vocab_size=2, tie_word_embeddings=True, qk_layer_norms=True
    ),
    "idefics-frozen": idefics(
        206, num_hidden_layers=2, freeze_text_layers=True, freeze_vision_layers=True, perceiver_config=RESAMPLER
    ),
    # A tied head is the embedding, which is not frozen with it.
    "idefics-frozen-tied": idefics(208, num_hidden_layers=2, freeze_lm_head=True, tie_word_embeddings=True),
    "idefics-frozen-head": idefics(
        207,
        LEFT,
        num_hidden_layers=2,
        freeze_text_layers=True,
        freeze_text_module_exceptions=["Linear"],
        freeze_vision_layers=True,
        freeze_vision_module_exceptions=["LayerNorm"],
        freeze_lm_head=True,
    ),
}

# 3 x 3 patches and a class token, filled up to 16; R tiles in A arrangements.
MLLAMA_VISION: dict[str, Any] = {name: value for name, value in VIT.items() if name != "num_attention_heads"} | {
    "attention_heads": 6,
    "num_hidden_layers": 3,
    "num_global_layers": 2,
    "max_num_tiles": 2,
    "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
    "intermediate_layers_indices": [0, 2],
    "vision_output_dim": 72,
}
MLLAMA_TEXT: dict[str, Any] = LLAMA | {
    "num_hidden_layers": 4,
    "cross_attention_layers": [1, 3],
    "pad_token_id": 40,
    "bos_token_id": 1,
}


def mllama(seed: int, batch: Batch = LONG, images: int = 2, looks: bool = True, **changes: Any) -> Case:
    text, vision = MLLAMA_TEXT | changes.pop("text", {}), MLLAMA_VISION | changes.pop("vision", {})
    settings = {"text_config": text, "vision_config": vision, "image_token_index": 41, **changes}
    cotangents = ("logits",) if batch.labels == "none" else ()
    wrt = PIXELS if images else ()
    return Case(
        "MllamaForConditionalGeneration",
        settings,
        seed,
        batch,
        tiled=images,
        looks=looks,
        cotangents=cotangents,
        wrt=wrt,
    )


VISION |= {
    "mllama": mllama(210),
    "mllama-left": mllama(
        211,
        LEFT,
        1,
        text={"cross_attention_layers": [0], "num_hidden_layers": 2, "num_key_value_heads": 6, "rms_norm_eps": 0.1},
        vision={"hidden_act": "relu", "norm_eps": 0.1, "num_global_layers": 1},
    ),
    "mllama-right": mllama(
        212,
        RIGHT,
        vision={
            "image_size": 17,
            "patch_size": 6,
            "max_num_tiles": 3,
            "intermediate_layers_indices": [1],
            "vision_output_dim": 48,
            "num_channels": 1,
        },
        text={"rope_parameters": LLAMA3_ROPE},
    ),
    "mllama-all-seen": mllama(213, SPACED, looks=False),
    "mllama-text-only": mllama(214, HOLES, 0),
    "mllama-three": mllama(
        215,
        HOLES,
        3,
        vision={"image_size": 10, "intermediate_layers_indices": [2, 0, 1], "vision_output_dim": 96},
        text={"cross_attention_layers": [2], "num_hidden_layers": 3, "num_key_value_heads": 1, "hidden_act": "gelu"},
    ),
}


def tiles_of(case: Case, shape: tuple[int, ...], rng: np.random.Generator) -> dict[str, Array]:
    """Images in tiles, some of them absent; tokens some of which see no tile."""
    vision, (B, T) = case.settings["vision_config"], shape
    R, N = vision["max_num_tiles"], case.tiled
    real = np.arange(R) < rng.integers(1, R + 1, (B, N, 1))
    real[-1, -1] = B * N == 1
    sees = rng.integers(0, 2, (B, T, N, R))
    sees[:, 0], sees[0, 1:] = 0, 1
    out = {
        "pixel_values": single(rng.standard_normal((B, N, R, *image_shape(vision)))),
        "aspect_ratio_ids": rng.integers(0, len(vision["supported_aspect_ratios"]) + 1, (B, N)),
        "aspect_ratio_mask": real.astype(np.int64),
    }
    return {**out, "cross_attention_mask": sees} if case.looks else out


def vocabulary(settings: Mapping[str, Any]) -> int:
    text = settings.get("text_config", settings)
    return int(text["vocab_size"] + text.get("additional_vocab_size", 0))


def labels_of(case: Case, rng: np.random.Generator) -> Array:
    B, C = case.images, case.settings["num_labels"]
    if case.classes in ("ids", "some"):
        labels = rng.integers(0, C, B)
        if case.classes == "some":
            labels[1::2] = -100
        return labels
    numbers = rng.standard_normal((B,) if case.classes == "number" else (B, C))
    return single(numbers > 0 if case.classes == "bits" else numbers)


def single(x: Any) -> Array:
    """As float64, rounded to what float32 holds exactly."""
    return np.asarray(x).astype(np.float32).astype(np.float64)


def image_shape(config: Mapping[str, Any]) -> tuple[int, ...]:
    size = config["image_size"]
    return (config.get("num_channels", 3), *(size if isinstance(size, list) else (size, size)))


def arrays_of(case: Case) -> dict[str, Any]:
    """The inputs of a case: whole numbers int64, images float64; the arrays of one case are always the same."""
    rng = np.random.default_rng([case.seed, 98])
    out: dict[str, Any] = {}
    if case.text is not None:
        out |= inputs(case.text, vocabulary(case.settings), case.seed)
    if "text_config" in case.settings and case.images and case.cls != "CLIPModel":
        place_images(case, out["input_ids"], rng)
    if case.types:
        out["token_type_ids"] = rng.integers(0, case.types, out["input_ids"].shape)
    if case.images:
        config = case.settings.get("vision_config", case.settings)
        out["pixel_values"] = single(rng.standard_normal((case.images, *image_shape(config))))
    if case.several:
        B, T = out["input_ids"].shape
        images = (B, case.several, *image_shape(case.settings["vision_config"]))
        out["pixel_values"] = single(rng.standard_normal(images))
        sees = rng.integers(0, 2, (B, T, case.several))
        sees[:, 0], sees[0, :] = 0, 1  # some tokens see no image, and one row sees all
        out["image_attention_mask"] = sees
    if case.tiled:
        out |= tiles_of(case, out["input_ids"].shape, rng)
    if case.classes:
        out["labels"] = labels_of(case, rng)
    return out | dict.fromkeys(case.flags, True)


def place_images(case: Case, ids: Array, rng: np.random.Generator) -> None:
    """As many image tokens as the images have positions, anywhere in the batch, and none besides."""
    s = case.settings
    token = s.get("image_token_index", s.get("image_token_id"))
    ids[ids == token] = 1
    each = 4 + (s["vision_config"]["model_type"] == "clip_vision_model")
    if "Llava" in case.cls and "vision_feature_select_strategy" not in s:
        each -= 1
    ids.reshape(-1)[rng.permutation(ids.size)[: case.images * each]] = token


def cotangents_of(case: Case, outputs: Mapping[str, Array]) -> dict[str, Array] | None:
    """A random array, that float32 holds exactly, for each output that the case differentiates."""
    rng = np.random.default_rng([case.seed, 97])
    return {n: single(rng.standard_normal(outputs[n].shape)) for n in case.cotangents} or None
