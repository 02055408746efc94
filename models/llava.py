"""LLaVA and its like: features of an image, through a connector, take the places of image tokens in a decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np

from tensorgraph.dims import Dim, mul
from tensorgraph.errors import DataError, ModelError, SizeError, counted
from tensorgraph.nn import Linear, Module, ModuleList
from tensorgraph.ops.elementwise import equal, maximum, minimum, where
from tensorgraph.ops.indexing import take
from tensorgraph.ops.leaf import const, dimension
from tensorgraph.ops.movement import concat, reshape, unsqueeze
from tensorgraph.ops.reduce import cumsum
from tensorgraph.tensor import Tensor, scope

from . import clip, decoder, gpt2, llama, siglip
from .activations import ACTIVATIONS
from .architecture import Architecture, Names, builder
from .decoder import Decoder, Sizes, next_token_loss
from .model import Model, Spec, belongs, under
from .parts import choose

TEXTS = {**llama.ARCHITECTURES, **gpt2.ARCHITECTURES}
TOWERS = {a.model_type: a for table in (clip, siglip) for a in table.ARCHITECTURES.values() if "vision" in a.model_type}

# transformers' LlavaConfig; projector_layers is ours
LLAVA: dict[str, Any] = {
    "text_config": None,
    "vision_config": None,
    "image_token_index": 32000,
    "projector_hidden_act": "gelu",
    "projector_layers": 2,
    "multimodal_projector_bias": True,
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "tie_word_embeddings": False,
}
# What its vision_config says where it is absent.
LLAVA_VISION: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "intermediate_size": 4096,
    "hidden_size": 1024,
    "patch_size": 14,
    "image_size": 336,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "projection_dim": 768,
}
# transformers' DeepseekVLConfig
DEEPSEEK_VL: dict[str, Any] = {
    "text_config": None,
    "vision_config": None,
    "image_token_id": 100015,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A decoder, a tower, and what lies between them.

    `features`: the hidden states of the tower that are used side by side; none: its last, after its last norm.
    `classless`: without the first position. `width`: of the connector's inputs; `biased`: it has biases.
    """

    text: decoder.Plan
    vision: Any
    tower: Architecture
    image_token: int
    names: Names
    features: tuple[int, ...] = ()
    classless: bool = False
    width: Dim
    layers: int = 1
    activation: str = "gelu"
    biased: bool = True
    outside: bool = False  # the image token is beyond the vocabulary
    batched: bool = False  # image_hidden_states [I, P, d], not [I·P, d]

    @property
    def longest(self) -> int | None:
        return self.text.longest

    @property
    def renewed_after(self) -> int | None:
        return self.text.renewed_after


def parts(
    config: Mapping[str, Any], size: Sizes, text: Mapping[str, Any], vision: Mapping[str, Any]
) -> tuple[Architecture, decoder.Plan, Architecture, Any]:
    """The decoder and the tower of a config with `text_config` and `vision_config`, over defaults of both.

    Sizes of the tower are marked, d_v. Raises ModelError[TG912] for one that is not supported.
    """
    text = {**text, **(config["text_config"] or {})}
    vision = {**vision, **(config["vision_config"] or {})}
    by_type = {a.model_type: a for a in TEXTS.values()}
    reader = choose("text_config.model_type", text["model_type"], by_type)
    tower = choose("vision_config.model_type", vision["model_type"], TOWERS)
    text_size = size.part("text_config", reader.settings(text), layers=True)
    vision_size = size.part("vision_config", tower.settings(vision), "_v")
    return reader, reader.plan(text_size.config, text_size), tower, tower.plan(vision_size.config, vision_size)


def bare(text: decoder.Plan, tied: bool) -> decoder.Plan:
    """The decoder with a head of the model's own: what a family adds to its own head is not there."""
    return replace(text, tied=tied, logit_softcap=None)


def plan(config: Mapping[str, Any], size: Sizes) -> Plan:
    """The plan of a LlavaConfig."""
    reader, text, tower, vision = parts(config, size, {"model_type": "llama"}, LLAVA_VISION)
    chosen, strategy = config["vision_feature_layer"], config["vision_feature_select_strategy"]
    features = tuple(chosen) if isinstance(chosen, (list, tuple)) else (chosen,)
    count = vision.layers.n
    if not features or not all(type(i) is int and -count - 1 <= i <= count for i in features):
        raise ModelError("TG913", f"vision_feature_layer {chosen!r} is not among {count} layers")
    if strategy not in ("default", "full"):
        raise ModelError("TG913", f"vision_feature_select_strategy must be default or full, not {strategy!r}")
    tied = bool(config["tie_word_embeddings"]) or text.tied
    size.fields["n_c"] = "projector_layers"
    return Plan(
        text=bare(text, tied),
        vision=vision,
        tower=tower,
        image_token=config.get("image_token_id", config["image_token_index"]),
        names=(
            *under("text.", "language_model.", reader.names),
            *under("vision.", "vision_tower.", tower.names),
            *((f"connector.layers.{i}.", f"multi_modal_projector.linear_{i + 1}.") for i in range(9)),
        ),
        features=features,
        classless=strategy == "default",
        width=mul(len(features), vision.layers.d),
        layers=config["projector_layers"],
        activation=config["projector_hidden_act"],
        biased=bool(config["multimodal_projector_bias"]),
    )


def deepseek_plan(config: Mapping[str, Any], size: Sizes) -> Plan:
    """The plan of a DeepseekVLConfig: SigLIP's features, two layers, Llama (Lu et al. 2024)."""
    reader, text, tower, vision = parts(config, size, {"model_type": "llama"}, {"model_type": "siglip_vision_model"})
    own = tuple((ours, "model.language_model." + theirs.removeprefix("model.")) for ours, theirs in reader.names)
    return Plan(
        text=bare(text, bool(config["tie_word_embeddings"])),
        vision=vision,
        tower=tower,
        image_token=config["image_token_id"],
        names=(
            ("text.head.", "lm_head."),
            *under("text.", "", own),
            *under("vision.", "model.vision_model.", tower.names),
            *((f"connector.layers.{i}.", f"model.aligner.linear{i + 1}.") for i in range(2)),
        ),
        width=vision.layers.d,
        layers=2,
    )


class Connector(Module):
    """Linear layers with an activation between them: features [..., w] -> [..., d]."""

    component = "connector"

    def __init__(self, p: Plan) -> None:
        super().__init__()
        if type(p.layers) is not int or p.layers < 1:
            raise ModelError("TG913", f"projector_layers must be a positive whole number, not {p.layers!r}")
        d = p.text.d
        self.activation = choose("activation", p.activation, ACTIVATIONS)
        self.layers = ModuleList(Linear(p.width if i == 0 else d, d, p.biased) for i in range(p.layers))

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = layer(x if i == 0 else self.activation(x))
        return x


class Llava(Model):
    """A decoder that sees (Liu et al. 2023): `logits` [B, T, V], `loss`; features of all images in turn replace the
    vectors of the image tokens in order.

    `pixel_values` [I, c, h, w]; a prompt holds one image token for every position of every image.
    """

    needs = ("input_ids",)
    usual = ("input_ids", "pixel_values")
    seen: ClassVar[tuple[str, ...]] = ("pixel_values",)
    learns = ("labels",)
    plan: Plan

    def __init__(self, p: Plan) -> None:
        super().__init__()
        self.plan = p
        self.vision = belongs(p.tower.model(p.vision), "vision")
        self.connector = Connector(p)
        self.text = Decoder(p.text)

    def specs(self, names: tuple[str, ...]) -> dict[str, Spec]:
        return {**self.text.specs(names), "pixel_values": self.plan.vision.image.spec("I", self.dtype)}

    def forward(
        self, input_ids: Tensor, pixel_values: Tensor | None = None, labels: Tensor | None = None, **text: Any
    ) -> dict[str, Any]:
        image = None if pixel_values is None else self.connector(self._seen(pixel_values))
        here, known = equal(input_ids, self.plan.image_token), input_ids
        if self.plan.outside:
            known = where(here, const(0, input_ids.dtype), input_ids)
        merge = None if image is None else partial(replaced, here=here, features=image)
        logits = self.text(known, merge=merge, **text)
        out = {"logits": logits} if labels is None else {"loss": next_token_loss(logits, labels), "logits": logits}
        if image is not None:
            shown = image if self.plan.batched else reshape(image, (mul(*image.shape[:2]), image.shape[2]))
            out["image_hidden_states"] = shown.named("image_hidden_states")
        return out

    def _seen(self, pixels: Tensor) -> Tensor:
        p, found = self.plan, self.vision(pixels)
        states = [found["hidden_states"][i] for i in p.features] or [found["last_hidden_state"]]
        states = [x[:, 1:] for x in states] if p.classless else states
        return states[0] if len(states) == 1 else concat(*states, axis=-1)

    @property
    def places(self) -> int:
        """How many image tokens an image takes in a prompt."""
        p = self.plan
        return int(p.vision.image.patches) + (isinstance(self.vision, clip.ClipVision) - p.classless)

    def check_sizes(self, sizes: Mapping[str, int]) -> None:
        """Raises SizeError[TG016] for prompts that are too short for the tokens of their images."""
        images, T, B = sizes.get("I", 0), sizes.get("T"), sizes.get("B")
        if images and T is not None and (self.places > T or (B is not None and images * self.places > B * T)):
            room = f"T = {T}" if B is None or self.places > T else f"B·T = {B * T}"
            raise SizeError(
                "TG016",
                f"prompts of {room} do not hold {counted(images, 'image')} of {counted(self.places, 'token')}",
                hint=f"-d T={self.places * -(-images // (B or images)) + (T if self.places > T else 0)}",
            )

    def check(self, arrays: Mapping[str, Any]) -> None:
        """Raises DataError[TG513] unless there are as many image tokens as positions of images."""
        tokens, pixels, p, whole = arrays.get("input_ids"), arrays.get("pixel_values"), self.plan, self.places
        if tokens is None or pixels is None:
            return
        found, wanted = int(np.count_nonzero(tokens == p.image_token)), len(pixels) * whole
        if found != wanted:
            text = f"input_ids hold {found} image tokens ({p.image_token}), and the images have {wanted} positions"
            raise DataError("TG513", text, hint=f"each image takes {whole}")


def replaced(x: Tensor, here: Tensor, features: Tensor) -> Tensor:
    """x [B, T, d] where `here` [B, T] is false; in the n-th place where it is true, the n-th of features [I, P, d]."""
    with scope("merge"):
        flat = reshape(features, (mul(*features.shape[:2]), x.shape[-1]))
        order = cumsum(reshape(here.cast("int32"), (mul(*here.shape),)), axis=0) - 1
        last = dimension(flat.shape[0], order.dtype) - 1
        order = minimum(maximum(order, const(0, order.dtype)), last)  # before the first place any will do
        return where(unsqueeze(here, 2), reshape(take(flat, order), x.shape), x)


# Versions of transformers differ in where they put the parts.
OTHERS = (
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
    ("vision_tower.", "model.vision_tower."),
    ("vision_tower.vision_model.", "vision_tower."),
    ("model.vision_tower.vision_model.", "model.vision_tower."),
)
BUFFERS = tuple("language_model." + b for a in TEXTS.values() for b in a.buffers)
ARCHITECTURES = {
    "LlavaForConditionalGeneration": Architecture(
        "llava",
        LLAVA,
        plan,
        (),
        buffers=(*BUFFERS, "vision_tower.vision_model.embeddings.position_ids"),
        model=Llava,
        others=OTHERS,
    ),
    "DeepseekVLForConditionalGeneration": Architecture(
        "deepseek_vl",
        DEEPSEEK_VL,
        deepseek_plan,
        (),
        buffers=("model.vision_model.vision_model.embeddings.position_ids",),
        model=Llava,
        others=(("model.vision_model.vision_model.", "model.vision_model."),),
    ),
}
build = builder(ARCHITECTURES)
