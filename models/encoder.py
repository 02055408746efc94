"""The encoder: blocks of attention and feed-forward that see all positions; and images cut into patches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tensorgraph.dims import Dim, add, dims
from tensorgraph.errors import ModelError
from tensorgraph.nn import LayerNorm, Module, ModuleList, Parameter
from tensorgraph.ops.elementwise import tanh
from tensorgraph.ops.movement import concat, expand, permute, reshape
from tensorgraph.tensor import Tensor

from .decoder import Sizes
from .model import Spec
from .parts import Attention, Context, FeedForward


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that the assembly of an encoder reads: d model, f feed-forward, H heads of size k, n layers."""

    d: Dim
    f: Dim
    H: Dim
    k: Dim
    n: Dim
    activation: str
    norm_eps: float
    post_norm: bool = False  # after each residual sum instead of before each branch
    causal: bool = False
    qkv_bias: bool = True
    out_bias: bool = True
    gated: bool = False  # each branch is weighted by tanh of a number


def plan_of(
    config: Mapping[str, Any],
    size: Sizes,
    width: str = "hidden_size",
    heads: str = "num_attention_heads",
    norm_eps: str = "layer_norm_eps",
    **flags: Any,
) -> Plan:
    """The plan from the fields that BERT, ViT, CLIP and SigLIP name alike; `width`, `heads`: the fields of d and H."""
    d, H, k = size.heads(width, heads, None)
    return Plan(
        d=d,
        H=H,
        k=k,
        f=size("f", "intermediate_size"),
        n=size.layers("num_hidden_layers"),
        activation=config["hidden_act"],
        norm_eps=float(config[norm_eps]),
        **flags,
    )


class Layer(Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)); or norm(x + attention(x)) and so on (BERT)."""

    def __init__(self, p: Plan) -> None:
        super().__init__()
        self.attn_gate = Parameter((1,), init="zeros") if p.gated else None
        self.mlp_gate = Parameter((1,), init="zeros") if p.gated else None
        self.post_norm = p.post_norm
        self.attn_norm = LayerNorm(p.d, p.norm_eps)
        self.attn = Attention(p.d, p.H, p.k, bias=p.qkv_bias, out_bias=p.out_bias, causal=p.causal)
        self.mlp_norm = LayerNorm(p.d, p.norm_eps)
        self.mlp = FeedForward(p.d, p.f, p.activation, bias=True)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        if self.post_norm:
            x = self.attn_norm(x + self.attn(x, context))
            return self.mlp_norm(x + self.mlp(x))
        x = x + gated(self.attn(self.attn_norm(x), context), self.attn_gate)
        return x + gated(self.mlp(self.mlp_norm(x)), self.mlp_gate)


def gated(x: Tensor, gate: Parameter | None) -> Tensor:
    """tanh(gate) · x; x itself without a gate."""
    return x if gate is None else x * tanh(gate)


class Layers(ModuleList):
    """The layers of an encoder: returns the hidden states before each layer and after the last [n + 1]."""

    def __init__(self, p: Plan) -> None:
        super().__init__(p.n, lambda i: Layer(p))

    def forward(self, x: Tensor, context: Context) -> list[Tensor]:  # type: ignore[override]
        if self.loop is not None:
            return [x, super().forward(x, context)]
        states = [x]
        for layer in self:
            states.append(layer(states[-1], context))
        return states


# -------------------------------------------------------------------------------------------------- images


@dataclass(frozen=True)
class Image:
    """How an image is cut: [channels, height, width] into a grid of patches; what is left over is not seen."""

    channels: int
    height: int
    width: int
    patch_height: int
    patch_width: int

    @property
    def grid(self) -> tuple[int, int]:
        return self.height // self.patch_height, self.width // self.patch_width

    @property
    def patches(self) -> int:
        rows, columns = self.grid
        return rows * columns

    def spec(self, batch: str, dtype: Any) -> Spec:
        """The input `pixel_values`."""
        return (*dims(batch), self.channels, self.height, self.width), dtype


def image_of(config: Mapping[str, Any]) -> Image:
    """From num_channels, image_size and patch_size, each an int or [height, width].

    Raises ModelError[TG913] for other values, and for patches larger than the image.
    """
    sizes: dict[str, list[Any]] = {}
    for field in ("image_size", "patch_size"):
        value = config.get(field)
        pair = list(value) if isinstance(value, (list, tuple)) else [value, value]
        if len(pair) != 2 or any(type(v) is not int or v < 1 for v in pair):
            raise ModelError("TG913", f"{field} must be a positive whole number or two, not {value!r}")
        sizes[field] = pair
    channels = config["num_channels"]
    if type(channels) is not int or channels < 1:
        raise ModelError("TG913", f"num_channels must be a positive whole number, not {channels!r}")
    image = Image(channels, *sizes["image_size"], *sizes["patch_size"])
    if not image.patches:
        text = f"patch_size = {config['patch_size']} is larger than image_size = {config['image_size']}"
        raise ModelError("TG913", text)
    return image


class PatchEmbedding(Module):
    """Images [B, c, h, w] -> patches [B, P, d], each flattened and multiplied by the weight [d, c, ph, pw].

    That is a convolution whose stride is its size (Dosovitskiy et al. 2021).
    """

    component = "embedding"

    def __init__(self, d: Dim, image: Image, bias: bool) -> None:
        super().__init__()
        self.image = image
        self.weight = Parameter((d, image.channels, image.patch_height, image.patch_width))
        self.bias = Parameter((d,), init="zeros") if bias else None

    def forward(self, pixels: Tensor) -> Tensor:
        i, (rows, columns) = self.image, self.image.grid
        B, d, flat = pixels.shape[0], self.weight.shape[0], i.channels * i.patch_height * i.patch_width
        if (rows * i.patch_height, columns * i.patch_width) != (i.height, i.width):
            pixels = pixels[:, :, : rows * i.patch_height, : columns * i.patch_width]
        cut = reshape(pixels, (B, i.channels, rows, i.patch_height, columns, i.patch_width))
        patches = reshape(permute(cut, (0, 2, 4, 1, 3, 5)), (B, i.patches, flat))
        y = patches @ reshape(self.weight, (d, flat)).T
        return y if self.bias is None else y + self.bias


class ImageEmbedding(Module):
    """Patches with a class token before them (if `classed`) and a learned position added: [B, P or P + 1, d].

    `lead`: axes of size 1 before those of the table of positions and of the class token.
    """

    component = "embedding"

    def __init__(self, d: Dim, image: Image, *, bias: bool, classed: bool, lead: int = 0) -> None:
        super().__init__()
        self.patches = PatchEmbedding(d, image, bias)
        self.cls = Parameter((1,) * 2 * lead + (d,)) if classed else None
        self.positions = Parameter((1,) * lead + (add(image.patches, int(classed)), d))

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patches(pixels)
        B, _, d = x.shape
        if self.cls is not None:
            x = concat([expand(reshape(self.cls, (1, 1, d)), (B, 1, d)), x], axis=1)
        return x + self.positions


__all__ = ["Image", "ImageEmbedding", "Layer", "Layers", "PatchEmbedding", "Plan", "gated", "image_of", "plan_of"]
