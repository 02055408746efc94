"""What the fields of a config may hold, in one table for all architectures; checked when a field is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple

from tensorgraph.errors import ModelError
from tensorgraph.io.files import show

from .activations import ACTIVATIONS
from .parts import choose


class Kind(NamedTuple):
    """What a field must be, in words, and whether a value is."""

    words: str
    holds: Callable[[Any], bool]

    def __or__(self, other: Kind) -> Kind:
        return Kind(f"{self.words} or {other.words}", lambda v: self.holds(v) or other.holds(v))


def _number(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda v: type(v) in (int, float) and math.isfinite(v) and holds(v)


def _list(holds: Callable[[Any], bool], least: int = 0) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, (list, tuple)) and len(v) >= least and all(map(holds, v))


NULL = Kind("null", lambda v: v is None)
FLAG = Kind("true or false", lambda v: type(v) is bool)
SIZE = Kind("a positive whole number", lambda v: type(v) is int and v > 0)
COUNT = Kind("a whole number, 0 or more", lambda v: type(v) is int and v >= 0)
WHOLE = Kind("a whole number", lambda v: type(v) is int)
WHOLES = Kind("a list of whole numbers", _list(WHOLE.holds))
POSITIVE = Kind("a positive number", _number(lambda v: v > 0))
NUMBER = Kind("a number, 0 or more", _number(lambda v: v >= 0))
SHARE = Kind("a number, more than 0 and at most 1", _number(lambda v: 0 < v <= 1))
NUMBERS = Kind("a list of positive numbers", _list(POSITIVE.holds, 1))
TEXT = Kind("a text", lambda v: isinstance(v, str))
TEXTS = Kind("a list of texts", _list(TEXT.holds))
OBJECT = Kind("an object", lambda v: isinstance(v, Mapping))
PAIR = Kind("two of them", lambda v: _list(SIZE.holds)(v) and len(v) == 2)
LIST = Kind("a list", _list(lambda v: True, 1))
ACTIVATION = Kind("the name of an activation", TEXT.holds)


def _of(kind: Kind, names: str) -> dict[str, Kind]:
    return dict.fromkeys(names.split(), kind)


FIELDS: dict[str, Kind] = {
    **_of(
        SIZE,
        """vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads max_position_embeddings
        n_positions n_embd n_layer n_head type_vocab_size num_channels projection_dim embed_dim cross_layer_interval
        resampler_n_latents resampler_depth resampler_n_heads resampler_head_dim num_global_layers attention_heads
        vision_output_dim max_num_tiles kv_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim moe_intermediate_size
        n_routed_experts num_local_experts num_experts_per_tok sliding_window_pattern projector_layers
        no_rope_layer_interval""",
    ),
    **_of(
        SIZE | NULL,
        """n_inner num_key_value_heads head_dim sliding_window q_lora_rank n_group topk_group pooler_output_size
        num_labels original_max_position_embeddings""",
    ),
    **_of(SIZE | PAIR, "image_size patch_size"),
    **_of(COUNT, "max_window_layers additional_vocab_size"),
    **_of(COUNT | NULL, "first_k_dense_replace n_shared_experts"),
    **_of(WHOLE, "image_token_id image_token_index"),
    **_of(WHOLE | NULL, "pad_token_id"),
    **_of(WHOLE | WHOLES | NULL, "eos_token_id bos_token_id"),
    **_of(WHOLE | WHOLES, "vision_feature_layer"),
    **_of(WHOLES, "cross_attention_layers intermediate_layers_indices"),
    **_of(NUMBER, "layer_norm_epsilon layer_norm_eps rms_norm_eps norm_eps initializer_range router_aux_loss_coef"),
    **_of(
        POSITIVE,
        """rope_local_base_freq query_pre_attn_scalar routed_scaling_factor embedding_multiplier residual_multiplier
        attention_multiplier logits_scaling""",
    ),
    **_of(POSITIVE | NULL, "rope_theta attn_logit_softcapping final_logit_softcapping"),
    **_of(SHARE | NULL, "partial_rotary_factor"),
    **_of(
        FLAG,
        """tie_word_embeddings attention_bias mlp_bias scale_attn_weights scale_attn_by_inverse_layer_idx
        add_cross_attention is_decoder qkv_bias vision_use_head use_sliding_window output_router_logits
        multimodal_projector_bias qk_layer_norms qk_layer_norms_perceiver freeze_text_layers freeze_lm_head
        freeze_vision_layers use_resampler qk_layernorm use_parallel_residual bias norms final_norm frozen_embedding""",
    ),
    **_of(FLAG | NULL, "norm_topk_prob rope_interleave use_bidirectional_attention"),
    **_of(TEXT, "alpha_type position_embedding_type topk_method vision_feature_select_strategy positions"),
    **_of(TEXT | NULL, "problem_type"),
    **_of(TEXTS, "freeze_text_module_exceptions freeze_vision_module_exceptions"),
    **_of(TEXTS | NULL, "layer_types vocab"),
    **_of(WHOLES | NULL, "no_rope_layers"),
    **_of(LIST, "supported_aspect_ratios"),
    **_of(OBJECT | NULL, "text_config vision_config perceiver_config id2label rope_parameters rope_scaling"),
    **_of(ACTIVATION, "activation_function hidden_act hidden_activation pooler_act projector_hidden_act"),
}
# Fields of rope_parameters and rope_scaling.
ROTATION: dict[str, Kind] = {
    **_of(POSITIVE, "rope_theta factor low_freq_factor high_freq_factor max_position_embeddings"),
    **_of(POSITIVE, "original_max_position_embeddings attention_factor beta_fast beta_slow"),
    **_of(NUMBER, "mscale mscale_all_dim"),  # 0: as if absent
    **_of(NUMBERS, "short_factor long_factor"),
    **_of(SHARE, "partial_rotary_factor"),
    **_of(FLAG, "truncate"),
    **_of(TEXT, "rope_type type"),
    **_of(OBJECT | NULL, "full_attention sliding_attention"),
}


class Settings(dict[str, Any]):
    """A config, each field of which is checked when it is read: what is not read is not asked about.

    `inside` is where it lies: "text_config." in a config of several models.
    Reading raises ModelError: TG913 for a value that the field cannot hold, TG912 for an unknown activation.
    """

    kinds: ClassVar[Mapping[str, Kind]] = FIELDS

    def __init__(self, values: Mapping[str, Any], inside: str = "") -> None:
        super().__init__(values)
        self.inside = inside

    def __getitem__(self, key: str) -> Any:
        value, kind = super().__getitem__(key), self.kinds.get(key)
        if kind is not None and not kind.holds(value):
            raise ModelError("TG913", f"{self.inside}{key} must be {kind.words}, not {show(value)}")
        if kind is ACTIVATION:
            choose(self.inside + key, value, ACTIVATIONS)
        return value

    def get(self, key: str, default: Any = None) -> Any:
        """The field, checked, or `default` where it is not there."""
        try:
            return self[key]
        except KeyError:
            return default

    def changed(self, **fields: Any) -> Settings:
        """The same config with other values of some fields."""
        return type(self)({**self, **fields}, self.inside)

    def check(self, keys: Iterable[str]) -> None:
        """Read fields that the graph does not depend on, to say now what is wrong with them."""
        for key in keys:
            self.get(key)


class Rotation(Settings):
    """The settings of a rotation: rope_parameters, or rope_scaling as older files call it."""

    kinds = ROTATION


__all__ = ["FIELDS", "ROTATION", "Rotation", "Settings"]
