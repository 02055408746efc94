"""CLIP: an encoder of images and one of texts, whose embeddings agree where image and text belong together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tensorgraph.dims import Dim
from tensorgraph.errors import ModelError
from tensorgraph.nn import Embedding, LayerNorm, Linear, Module, Parameter
from tensorgraph.ops.elementwise import equal, exp, upcast
from tensorgraph.ops.indexing import take_along
from tensorgraph.ops.leaf import arange
from tensorgraph.ops.movement import expand, reshape, swapaxes
from tensorgraph.ops.nn import cross_entropy
from tensorgraph.ops.reduce import argmax, sum
from tensorgraph.tensor import Tensor, scope

from . import encoder
from .architecture import Architecture, builder
from .decoder import PositionTable, Sizes, key_mask, whole
from .encoder import Image, ImageEmbedding, image_of
from .model import Model, Spec, belongs, ids, under
from .parts import Context

# transformers' CLIPVisionConfig, CLIPTextConfig and CLIPConfig
VISION: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
TEXT: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "projection_dim": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}
LOGIT_SCALE = 2.6592  # log(1 / 0.07)
CLIP: dict[str, Any] = {"text_config": None, "vision_config": None, "projection_dim": 512}

LAYERS = (
    ("layers.{}.attn_norm.", "encoder.layers.{}.layer_norm1."),
    ("layers.{}.attn.q.", "encoder.layers.{}.self_attn.q_proj."),
    ("layers.{}.attn.k.", "encoder.layers.{}.self_attn.k_proj."),
    ("layers.{}.attn.v.", "encoder.layers.{}.self_attn.v_proj."),
    ("layers.{}.attn.out.", "encoder.layers.{}.self_attn.out_proj."),
    ("layers.{}.mlp_norm.", "encoder.layers.{}.layer_norm2."),
    ("layers.{}.mlp.up.", "encoder.layers.{}.mlp.fc1."),
    ("layers.{}.mlp.down.", "encoder.layers.{}.mlp.fc2."),
)
VISION_NAMES = under(
    "",
    "vision_model.",
    (
        ("embed.cls", "embeddings.class_embedding"),
        ("embed.patches.", "embeddings.patch_embedding."),
        ("embed.positions", "embeddings.position_embedding.weight"),
        ("pre_norm.", "pre_layrnorm."),  # the published spelling
        ("post_norm.", "post_layernorm."),
        *LAYERS,
    ),
)
TEXT_NAMES = under(
    "",
    "text_model.",
    (
        ("embed.tokens.", "embeddings.token_embedding."),
        ("embed.positions.", "embeddings.position_embedding."),
        ("norm.", "final_layer_norm."),
        *LAYERS,
    ),
)
PROJECTIONS = (("image_projection.", "visual_projection."), ("text_projection.", "text_projection."))
NAMES = (*under("vision.", "", VISION_NAMES), *under("text.", "", TEXT_NAMES), *PROJECTIONS)
BUFFERS = ("vision_model.embeddings.position_ids", "text_model.embeddings.position_ids")


@dataclass(frozen=True, kw_only=True)
class VisionPlan:
    """The image and the layers."""

    layers: encoder.Plan
    image: Image


@dataclass(frozen=True, kw_only=True)
class TextPlan:
    """V vocabulary, P positions, and the layers; `end` is the id at which texts are read."""

    layers: encoder.Plan
    V: Dim
    P: Dim
    end: int
    longest: int
    renewed_after: None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Both towers, and p, the size of their embeddings."""

    text: TextPlan
    vision: VisionPlan
    p: Dim

    @property
    def longest(self) -> int:
        return self.text.longest


def vision_plan(config: Mapping[str, Any], size: Sizes, width: str = "hidden_size") -> VisionPlan:
    """The plan of a CLIPVisionConfig; `width`: another name of its hidden_size."""
    return VisionPlan(layers=encoder.plan_of(config, size, width), image=image_of(config))


def text_plan(config: Mapping[str, Any], size: Sizes) -> TextPlan:
    """The plan of a CLIPTextConfig."""
    if type(end := config["eos_token_id"]) is not int:
        inside = getattr(config, "inside", "")
        raise ModelError("TG913", f"{inside}eos_token_id must be one id, at which texts are read, not {end!r}")
    return TextPlan(
        layers=encoder.plan_of(config, size, causal=True),
        V=size("V", "vocab_size"),
        P=size("P", "max_position_embeddings"),
        end=end,
        longest=whole(config, "max_position_embeddings"),
    )


def plan(config: Mapping[str, Any], size: Sizes) -> Plan:
    """The plan of a CLIPConfig: sizes of the image's tower are marked, d_v."""
    text = size.part("text_config", TEXT | (config["text_config"] or {}), layers=True)
    vision = size.part("vision_config", VISION | (config["vision_config"] or {}), "_v")
    return Plan(
        text=text_plan(text.config, text),
        vision=vision_plan(vision.config, vision),
        p=size("p", "projection_dim"),
    )


class ClipVision(Model):
    """The image's tower: `last_hidden_state` [B, P + 1, d] before the last norm, `pooler_output` [B, d] after it."""

    needs = ("pixel_values",)

    def __init__(self, p: VisionPlan) -> None:
        super().__init__()
        self.plan = p
        d, eps = p.layers.d, p.layers.norm_eps
        self.embed = ImageEmbedding(d, p.image, bias=False, classed=True)
        self.pre_norm = LayerNorm(d, eps)
        self.layers = encoder.Layers(p.layers)
        self.post_norm = LayerNorm(d, eps)

    def specs(self, names: tuple[str, ...]) -> dict[str, Spec]:
        return {"pixel_values": self.plan.image.spec("B", self.dtype)}

    def forward(self, pixel_values: Tensor) -> dict[str, Any]:
        states = self.layers(self.pre_norm(self.embed(pixel_values)), Context())
        y = states[-1].named("last_hidden_state")
        pooled = self.post_norm(y[:, 0]).named("pooler_output")
        return {"last_hidden_state": y, "pooler_output": pooled, "hidden_states": states}


class TextEmbedding(Module):
    """token + position: [B, T] -> [B, T, d]."""

    component = "embedding"

    def __init__(self, p: TextPlan) -> None:
        super().__init__()
        self.tokens = Embedding(p.V, p.layers.d)
        self.positions = PositionTable(p.P, p.layers.d)

    def forward(self, tokens: Tensor, places: Tensor | None) -> Tensor:
        return self.tokens(tokens) + self.positions(places, tokens.shape[1])


class ClipText(Model):
    """The text's tower, causal: `last_hidden_state` [B, T, d], and where the text ends, `pooler_output` [B, d]."""

    needs = ("input_ids",)

    def __init__(self, p: TextPlan) -> None:
        super().__init__()
        self.plan = p
        self.embed = TextEmbedding(p)
        self.layers = encoder.Layers(p.layers)
        self.norm = LayerNorm(p.layers.d, p.layers.norm_eps)

    def specs(self, names: tuple[str, ...]) -> dict[str, Spec]:
        return ids("input_ids", "attention_mask", "position_ids")

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None
    ) -> dict[str, Any]:
        context = Context(mask=key_mask(attention_mask))
        y = self.norm(self.layers(self.embed(input_ids, position_ids), context)[-1]).named("last_hidden_state")
        # The first files say 2, which is no end of text: there it is the largest id.
        ends = input_ids if self.plan.end == 2 else equal(input_ids, self.plan.end).cast("int32")
        B, _, d = y.shape
        place = expand(reshape(argmax(ends, axis=1), (B, 1, 1)), (B, 1, d))
        pooled = reshape(take_along(y, place, axis=1), (B, d)).named("pooler_output")
        return {"last_hidden_state": y, "pooler_output": pooled}


class Clip(Model):
    """CLIP (Radford et al. 2021): embeddings of length 1, their products, and the contrastive `loss` on request.

    `image_embeds` [I, p], `text_embeds` [B, p], `logits_per_image` [I, B]. With `return_loss` I = B: image i belongs
    to text i.
    """

    needs = ("input_ids", "pixel_values")
    flags = ("return_loss",)
    learns = ("return_loss",)

    def __init__(self, p: Plan) -> None:
        super().__init__()
        self.plan = p
        self.vision, self.text = belongs(ClipVision(p.vision), "vision"), belongs(ClipText(p.text), "text")
        self.image_projection = Linear(p.vision.layers.d, p.p, bias=False, component="vision")
        self.text_projection = Linear(p.text.layers.d, p.p, bias=False, component="text")
        self.logit_scale = Parameter((), init=lambda rng, shape: LOGIT_SCALE)

    def specs(self, names: tuple[str, ...]) -> dict[str, Spec]:
        images = "B" if "return_loss" in names else "I"
        return {**self.text.specs(names), "pixel_values": self.plan.vision.image.spec(images, self.dtype)}

    def forward(self, pixel_values: Tensor, return_loss: bool = False, **text: Tensor) -> dict[str, Any]:
        image = self.image_projection(self.vision(pixel_values)["pooler_output"])
        image = normalised(image).named("image_embeds")
        words = normalised(self.text_projection(self.text(**text)["pooler_output"])).named("text_embeds")
        per_text = ((words @ image.T) * exp(self.logit_scale.__tensor__())).named("logits_per_text")
        per_image = swapaxes(per_text, 0, 1).named("logits_per_image")
        out = {"logits_per_image": per_image, "logits_per_text": per_text, "text_embeds": words, "image_embeds": image}
        return {"loss": contrastive(per_text, per_image).named("loss"), **out} if return_loss else out


def normalised(x: Tensor) -> Tensor:
    """Vectors of length 1 along the last axis."""
    with scope("normalise", kind="Normalise"):  # a step of the picture, as norms are
        return x / sum(x.square(), -1, keepdims=True).sqrt()


def contrastive(per_text: Tensor, per_image: Tensor) -> Tensor:
    """Each text chooses its image among all, and each image its text: the mean of both cross-entropies."""
    right = arange(size=per_text.shape[0])
    both = [cross_entropy(upcast(logits), right, ignore=None) for logits in (per_text, per_image)]
    return (both[0] + both[1]) / 2.0


ARCHITECTURES = {
    "CLIPModel": Architecture("clip", CLIP, plan, NAMES, buffers=BUFFERS, model=Clip),
    "CLIPVisionModel": Architecture(
        "clip_vision_model",
        VISION,
        vision_plan,
        VISION_NAMES,
        prefix="vision_model.",
        buffers=BUFFERS,
        model=ClipVision,
    ),
    "CLIPTextModel": Architecture(
        "clip_text_model", TEXT, text_plan, TEXT_NAMES, prefix="text_model.", buffers=BUFFERS, model=ClipText
    ),
}
build = builder(ARCHITECTURES)
