"""ViT: an image cut into patches, a class token, layers with norms before each branch; a pooler or a classifier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tensorgraph.dims import Dim
from tensorgraph.errors import ModelError
from tensorgraph.nn import LayerNorm, Linear
from tensorgraph.ops.elementwise import upcast
from tensorgraph.ops.movement import squeeze
from tensorgraph.ops.nn import cross_entropy, softplus
from tensorgraph.ops.reduce import mean
from tensorgraph.tensor import Tensor

from . import encoder
from .activations import ACTIVATIONS
from .architecture import Architecture, builder
from .decoder import Sizes
from .encoder import Image, ImageEmbedding, image_of
from .model import Model, Spec, under
from .parts import Context, choose

# transformers' ViTConfig
DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "qkv_bias": True,
    "pooler_output_size": None,
    "pooler_act": "tanh",
    "num_labels": None,
    "id2label": None,
    "problem_type": None,
}
NAMES = (
    ("embed.cls", "embeddings.cls_token"),
    ("embed.positions", "embeddings.position_embeddings"),
    ("embed.patches.", "embeddings.patch_embeddings.projection."),
    ("layers.{}.attn_norm.", "encoder.layer.{}.layernorm_before."),
    ("layers.{}.attn.q.", "encoder.layer.{}.attention.attention.query."),
    ("layers.{}.attn.k.", "encoder.layer.{}.attention.attention.key."),
    ("layers.{}.attn.v.", "encoder.layer.{}.attention.attention.value."),
    ("layers.{}.attn.out.", "encoder.layer.{}.attention.output.dense."),
    ("layers.{}.mlp_norm.", "encoder.layer.{}.layernorm_after."),
    ("layers.{}.mlp.up.", "encoder.layer.{}.intermediate.dense."),
    ("layers.{}.mlp.down.", "encoder.layer.{}.output.dense."),
    ("norm.", "layernorm."),
    ("pooler.", "pooler.dense."),
)
CLASSIFIER_NAMES = (*under("vit.", "vit.", NAMES), ("head.", "classifier."))
REGRESSION, ONE_LABEL, MANY_LABELS = "regression", "single_label_classification", "multi_label_classification"
PROBLEMS = (REGRESSION, ONE_LABEL, MANY_LABELS)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The image and the layers; the pooler's size; C classes and what is asked of them."""

    layers: encoder.Plan
    image: Image
    pooled: Dim
    pooler_activation: str
    C: Dim
    problem: str


def plan(config: Mapping[str, Any], size: Sizes) -> Plan:
    """The plan of a ViT config. Raises ModelError[TG913] for an unknown problem_type."""
    named = config["id2label"]
    count = config["num_labels"] or (len(named) if named else 2)
    problem = config["problem_type"] or (REGRESSION if count == 1 else ONE_LABEL)
    if problem not in PROBLEMS:
        raise ModelError("TG913", f"problem_type must be one of {', '.join(PROBLEMS)}, not {problem!r}")
    layers = encoder.plan_of(config, size, qkv_bias=bool(config["qkv_bias"]))
    return Plan(
        layers=layers,
        image=image_of(config),
        pooled=layers.d if config["pooler_output_size"] is None else size("p", "pooler_output_size"),
        pooler_activation=config["pooler_act"],
        C=count,
        problem=problem,
    )


class ViT(Model):
    """The vision transformer (Dosovitskiy et al. 2021): `last_hidden_state` [B, P + 1, d], `pooler_output` [B, p]."""

    needs = ("pixel_values",)

    def __init__(self, p: Plan, pooled: bool = True) -> None:
        super().__init__()
        self.plan = p
        d = p.layers.d
        self.embed = ImageEmbedding(d, p.image, bias=True, classed=True, lead=1)
        self.layers = encoder.Layers(p.layers)
        self.norm = LayerNorm(d, p.layers.norm_eps)
        self.activation = choose("activation", p.pooler_activation, ACTIVATIONS)
        self.pooler = Linear(d, p.pooled, component="pooler") if pooled else None

    def specs(self, names: tuple[str, ...]) -> dict[str, Spec]:
        return {"pixel_values": self.plan.image.spec("B", self.dtype)}

    def forward(self, pixel_values: Tensor) -> dict[str, Any]:
        x = self.layers(self.embed(pixel_values), Context())[-1]
        y = self.norm(x).named("last_hidden_state")
        out = {"last_hidden_state": y}
        if self.pooler is not None:
            out["pooler_output"] = self.activation(self.pooler(y[:, 0])).named("pooler_output")
        return out


class ViTForImageClassification(Model):
    """ViT with a linear layer on the class token: `logits` [B, C], and the `loss` that the config's problem asks for.

    `labels`: ids [B]; numbers [B] or [B, C] for regression; 0 or 1 [B, C] for many labels.
    """

    needs = ("pixel_values",)
    learns = ("labels",)

    def __init__(self, p: Plan) -> None:
        super().__init__()
        self.plan = p
        self.vit = ViT(p, pooled=False)
        self.head = Linear(p.layers.d, p.C, component="head")

    def specs(self, names: tuple[str, ...]) -> dict[str, Spec]:
        specs = self.vit.specs(names)
        (B, *_), dtype = specs["pixel_values"]
        if self.plan.problem == ONE_LABEL:
            return {**specs, "labels": ((B,), "int32")}
        single = self.plan.problem == REGRESSION and self.plan.C == 1
        return {**specs, "labels": ((B,) if single else (B, self.plan.C), dtype)}

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Any]:
        logits = self.head(self.vit(pixel_values)["last_hidden_state"][:, 0]).named("logits")
        if labels is None:
            return {"logits": logits}
        return {"loss": self._loss(upcast(logits), labels).named("loss"), "logits": logits}

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.plan.problem == ONE_LABEL:
            return cross_entropy(logits, labels, ignore=-100)
        if self.plan.problem == REGRESSION:
            return mean(((squeeze(logits, 1) if labels.ndim == 1 else logits) - labels).square())
        return mean(softplus(logits) - logits * labels)  # -log sigmoid of the right answers


def _architecture(model: Any, names: Any, buffers: tuple[str, ...] = ()) -> Architecture:
    return Architecture("vit", DEFAULTS, plan, names, prefix="vit.", buffers=buffers, model=model)


PAIR = ("weight", "bias")
ARCHITECTURES = {
    "ViTModel": _architecture(ViT, NAMES, tuple(f"classifier.{p}" for p in PAIR)),
    "ViTForImageClassification": _architecture(
        ViTForImageClassification, CLASSIFIER_NAMES, tuple(f"vit.pooler.dense.{p}" for p in PAIR)
    ),
}
build = builder(ARCHITECTURES)
