"""BERT: embedded tokens, positions and segments, layers with norms after the sums; a pooler, or a head for words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import tokenizers

from tensorgraph.dims import Dim
from tensorgraph.errors import ModelError
from tensorgraph.nn import Embedding, LayerNorm, Linear, Module, Parameter
from tensorgraph.ops.elementwise import tanh, upcast
from tensorgraph.ops.nn import cross_entropy
from tensorgraph.tensor import Tensor

from . import encoder
from .activations import ACTIVATIONS
from .architecture import Architecture, builder
from .decoder import PositionTable, Sizes, key_mask, padding_row, whole
from .model import Model, Spec, belongs, ids, under
from .parts import Context, choose

if TYPE_CHECKING:
    from .pretrained import Array, Net

# transformers' BertConfig
DEFAULTS: dict[str, Any] = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "is_decoder": False,
    "position_embedding_type": "absolute",
    "tie_word_embeddings": True,
}
NAMES = (
    ("embed.tokens.", "embeddings.word_embeddings."),
    ("embed.positions.", "embeddings.position_embeddings."),
    ("embed.types.", "embeddings.token_type_embeddings."),
    ("embed.norm.", "embeddings.LayerNorm."),
    ("layers.{}.attn.q.", "encoder.layer.{}.attention.self.query."),
    ("layers.{}.attn.k.", "encoder.layer.{}.attention.self.key."),
    ("layers.{}.attn.v.", "encoder.layer.{}.attention.self.value."),
    ("layers.{}.attn.out.", "encoder.layer.{}.attention.output.dense."),
    ("layers.{}.attn_norm.", "encoder.layer.{}.attention.output.LayerNorm."),
    ("layers.{}.mlp.up.", "encoder.layer.{}.intermediate.dense."),
    ("layers.{}.mlp.down.", "encoder.layer.{}.output.dense."),
    ("layers.{}.mlp_norm.", "encoder.layer.{}.output.LayerNorm."),
    ("pooler.", "pooler.dense."),
)
MASKED_NAMES = (
    *under("bert.", "bert.", NAMES),
    ("head.dense.", "cls.predictions.transform.dense."),
    ("head.norm.", "cls.predictions.transform.LayerNorm."),
    ("head.bias", "cls.predictions.bias"),
    ("head.decoder.", "cls.predictions.decoder."),
)
PAIR = ("weight", "bias")
POOLER = tuple(f"bert.pooler.dense.{p}" for p in PAIR)
NEXT_SENTENCE = tuple(f"cls.seq_relationship.{p}" for p in PAIR)
HEAD = (
    "cls.predictions.bias",
    *(f"cls.predictions.{m}.{p}" for m in ("transform.dense", "transform.LayerNorm", "decoder") for p in PAIR),
)
POSITIONS = "bert.embeddings.position_ids"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """V vocabulary, P positions, S segments, and the layers."""

    layers: encoder.Plan
    V: Dim
    P: Dim
    S: int
    padding: int | None
    tied: bool
    longest: int
    renewed_after: None = None


def plan(config: Mapping[str, Any], size: Sizes) -> Plan:
    """The plan of a BERT config. Raises ModelError[TG912] for a decoder and for relative positions."""
    if config["is_decoder"]:
        raise ModelError("TG912", "is_decoder: BERT as a decoder is not supported")
    if config["position_embedding_type"] != "absolute":
        raise ModelError("TG912", f"position_embedding_type {config['position_embedding_type']!r} is not supported")
    return Plan(
        V=size("V", "vocab_size"),
        P=size("P", "max_position_embeddings"),
        S=whole(config, "type_vocab_size"),
        layers=encoder.plan_of(config, size, post_norm=True),
        padding=padding_row(config),
        tied=bool(config["tie_word_embeddings"]),
        longest=whole(config, "max_position_embeddings"),
    )


class BertEmbedding(Module):
    """norm(token + segment + position): [B, T] -> [B, T, d]."""

    component = "embedding"

    def __init__(self, p: Plan) -> None:
        super().__init__()
        d = p.layers.d
        self.tokens = Embedding(p.V, d, padding=p.padding)
        self.positions = PositionTable(p.P, d)
        self.types = Embedding(p.S, d)
        self.norm = LayerNorm(d, p.layers.norm_eps)

    def forward(self, tokens: Tensor, types: Tensor | None, places: Tensor | None) -> Tensor:
        x = self.tokens(tokens) + (self.types.weight.__tensor__()[:1] if types is None else self.types(types))
        return self.norm(x + self.positions(places, tokens.shape[1]))


class Bert(Model):
    """BERT (Devlin et al. 2019): `last_hidden_state` [B, T, d] and `pooler_output` [B, d]."""

    needs = ("input_ids",)

    def __init__(self, p: Plan, pooled: bool = True) -> None:
        super().__init__()
        self.plan = p
        self.embed = BertEmbedding(p)
        self.layers = encoder.Layers(p.layers)
        self.pooler = Linear(p.layers.d, p.layers.d, component="pooler") if pooled else None

    def specs(self, names: tuple[str, ...]) -> dict[str, Spec]:
        return ids("input_ids", "attention_mask", "token_type_ids", "position_ids")

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> dict[str, Any]:
        x = self.embed(input_ids, token_type_ids, position_ids)
        y = self.layers(x, Context(mask=key_mask(attention_mask)))[-1].named("last_hidden_state")
        out = {"last_hidden_state": y}
        if self.pooler is not None:
            out["pooler_output"] = tanh(self.pooler(y[:, 0])).named("pooler_output")
        return out


class MaskedHead(Module):
    """Logits of every token from hidden states: norm(act(dense x)) times the embedding, plus a bias."""

    def __init__(self, p: Plan) -> None:
        super().__init__()
        d = p.layers.d
        self.activation = choose("activation", p.layers.activation, ACTIVATIONS)
        self.dense = Linear(d, d)
        self.norm = LayerNorm(d, p.layers.norm_eps)
        # Two names of one bias where the weight is tied; where it is not, the reference keeps the first and does not
        # use it.
        self.bias = Parameter((p.V,), init="zeros")
        self.decoder = Linear(d, p.V)
        if p.tied:
            self.decoder.bias = self.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.norm(self.activation(self.dense(x))))


class BertForMaskedLM(Model):
    """BERT that fills in masked words: `logits` [B, T, V], `loss` over labels that are not -100 (not shifted)."""

    needs = ("input_ids",)
    learns = ("labels",)

    def __init__(self, p: Plan) -> None:
        super().__init__()
        self.plan = p
        self.bert = Bert(p, pooled=False)
        self.head = belongs(MaskedHead(p), "head")
        if p.tied:
            self.head.decoder.weight = self.bert.embed.tokens.weight

    def specs(self, names: tuple[str, ...]) -> dict[str, Spec]:
        return {**self.bert.specs(names), **ids("labels")}

    def forward(self, labels: Tensor | None = None, **inputs: Tensor) -> dict[str, Any]:
        logits = self.head(self.bert(**inputs)["last_hidden_state"]).named("logits")
        if labels is None:
            return {"logits": logits}
        return {"loss": cross_entropy(upcast(logits), labels, ignore=-100).named("loss"), "logits": logits}


def sentences(net: Net, texts: Sequence[str], max_length: int = 256) -> Array:
    """One vector of length 1 per text [B, d]: the mean of its tokens' last hidden states (Reimers and Gurevych 2019).

    Texts are cut after `max_length` tokens. Raises ModelError[TG918] if there is no tokenizer.
    """
    backend = tokenizers.Tokenizer.from_str(net.need_tokenizer().backend.to_str())
    backend.enable_truncation(max_length)
    backend.enable_padding()
    found = backend.encode_batch(list(texts))
    mask = np.array([e.attention_mask for e in found], np.int32)
    y = net(input_ids=np.array([e.ids for e in found], np.int32), attention_mask=mask)["last_hidden_state"]
    total = (y * mask[..., None].astype(y.dtype)).sum(1)  # its direction is the mean's
    return total / np.linalg.norm(total, axis=-1, keepdims=True)


ARCHITECTURES = {
    "BertModel": Architecture(
        "bert",
        DEFAULTS,
        plan,
        NAMES,
        prefix="bert.",
        buffers=(POSITIONS, *HEAD, *NEXT_SENTENCE),
        model=Bert,
    ),
    "BertForMaskedLM": Architecture(
        "bert",
        DEFAULTS,
        plan,
        MASKED_NAMES,
        prefix="bert.",
        buffers=(POSITIONS, *POOLER, *NEXT_SENTENCE),
        model=BertForMaskedLM,
    ),
}
build = builder(ARCHITECTURES)
