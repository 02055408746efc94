"""PaliGemma: SigLIP's features through one linear layer into Gemma, whose prefix sees itself in both directions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tensorgraph.errors import ModelError
from tensorgraph.ops.elementwise import equal, less_equal, not_equal
from tensorgraph.ops.indexing import update_slice
from tensorgraph.ops.leaf import arange, full
from tensorgraph.ops.movement import reshape, unsqueeze
from tensorgraph.tensor import Tensor

from .architecture import Architecture, builder
from .decoder import Sizes, key_mask, packed, whole
from .llava import OTHERS, Llava, Plan, parts
from .model import Spec, ids, under
from .parts import Cache
from .settings import Settings

# transformers' PaliGemmaConfig
DEFAULTS: dict[str, Any] = {
    "text_config": None,
    "vision_config": None,
    "image_token_index": 256000,
    "projection_dim": 2048,
    "tie_word_embeddings": True,
}
TEXT: dict[str, Any] = {
    "model_type": "gemma",
    "hidden_size": 2048,
    "num_hidden_layers": 18,
    "intermediate_size": 16384,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
    "vocab_size": 257152,
}
VISION: dict[str, Any] = {
    "model_type": "siglip_vision_model",
    "intermediate_size": 4096,
    "hidden_size": 1152,
    "patch_size": 14,
    "image_size": 224,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "vision_use_head": False,
}


def plan(config: Settings, size: Sizes) -> Plan:
    """The plan of a PaliGemmaConfig. Raises ModelError[TG912] for windows, [TG913] for sizes that do not fit."""
    text_config = {**TEXT, **(config["text_config"] or {})}
    # It says that attention goes both ways, and means the prefix.
    text_config["use_bidirectional_attention"] = None
    reader, text, tower, vision = parts(config.changed(text_config=text_config), size, {}, VISION)
    image_token = config.get("image_token_id", config["image_token_index"])
    if text.window is not None:
        raise ModelError("TG912", "a prefix that sees itself, with a sliding window, is not supported")
    if whole(config, "projection_dim") != whole(text_config, "hidden_size"):
        raise ModelError("TG913", f"projection_dim = {config['projection_dim']} is not the text's hidden_size")
    return Plan(
        text=replace(text, tied=bool(config["tie_word_embeddings"]), causal=False),
        vision=vision,
        tower=tower,
        image_token=image_token,
        names=(
            *under("text.", "language_model.", reader.names),
            *under("vision.", "vision_tower.", tower.names),
            ("connector.layers.0.", "multi_modal_projector.linear."),
        ),
        width=vision.layers.d,
        outside=image_token >= whole(text_config, "vocab_size"),
        batched=True,
    )


class PaliGemma(Llava):
    """LLaVA's scheme (Beyer et al. 2024) with `token_type_ids`, 0 in the prefix; positions count from 1."""

    seen = ("pixel_values", "token_type_ids")
    first = 1

    def specs(self, names: tuple[str, ...]) -> dict[str, Spec]:
        return {**super().specs(names), **ids("token_type_ids")}

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        cache: Cache | None = None,
    ) -> dict[str, Any]:
        B, T = input_ids.shape
        S = T if cache is None else cache.capacity
        at = arange(size=T) if cache is None else arange(size=T) + cache.position
        see = less_equal(arange(size=S), unsqueeze(at, 1))
        if attention_mask is None and position_ids is not None and cache is None:
            see = see & packed(position_ids)
        if token_type_ids is not None:
            prefix = keys = equal(token_type_ids, 0).cast("int32")
            if cache is not None:
                keys = update_slice(full((B, S), 0, "int32"), prefix, cache.position, axis=1)
            see = see | not_equal(unsqueeze(prefix, 2) * unsqueeze(keys, 1), 0)
        see = reshape(see, (*(see.shape[:1] if see.ndim == 3 else (1,)), 1, T, S))
        mask = key_mask(attention_mask)
        places = arange(size=T) + 1 if position_ids is None else position_ids
        see = see if mask is None else see & mask
        return super().forward(input_ids, pixel_values, labels, position_ids=places, visible=see, cache=cache)


ARCHITECTURES = {
    "PaliGemmaForConditionalGeneration": Architecture(
        "paligemma",
        DEFAULTS,
        plan,
        (),
        buffers=("vision_tower.vision_model.embeddings.position_ids",),
        model=PaliGemma,
        others=OTHERS,
    )
}
build = builder(ARCHITECTURES)
