"""Low-rank adapters: W x + s·B A x with W frozen; as a change of a model, and as peft's adapter folders.

Sources: Hu et al. 2021; Kalajdzievski 2023 (s = alpha/sqrt(r)); the format: github.com/huggingface/peft.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tensorgraph.errors import ModelError
from tensorgraph.io.files import Array
from tensorgraph.nn import Linear, Module, Parameter
from tensorgraph.tensor import Tensor

from .architecture import Names
from .model import Model

CONFIG = "adapter_config.json"
FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
ALL = "all-linear"  # every linear layer but the head
# Fields of adapter_config.json that would change the result, with the values at which they do not.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "modules_to_save": (None, []),
    "use_dora": (False, None),
    "lora_bias": (False, None),
    "layers_to_transform": (None, []),
    "layer_replication": (None, []),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, [], {}),
    "alora_invocation_tokens": (None, []),
    "use_qalora": (False, None),
    "use_bdlora": (None,),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
    "velora_config": (None,),
}


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """r: the rank; the scale is alpha/r, or alpha/sqrt(r) if `rslora`.

    `targets`: names of linear layers, or their ends (`q_proj`); a string is a regular expression for the whole name,
    "all-linear" every layer but the head. `excluded`: the same, for layers left as they are. `ranks` and `alphas`:
    other values for some layers, by a regular expression for the end of the name; the first that fits counts.
    Raises ModelError[TG913] for a rank that is not positive.
    """

    r: int
    alpha: float
    targets: str | tuple[str, ...] = ALL
    excluded: str | tuple[str, ...] = ()
    rslora: bool = False
    ranks: tuple[tuple[str, int], ...] = ()
    alphas: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        for r in (self.r, *dict(self.ranks).values()):
            if type(r) is not int or r < 1:
                raise ModelError("TG913", f"the rank r of an adapter must be a positive whole number, not {r!r}")

    def at(self, name: str) -> LoRA:
        """What it is for the layer of this name."""

        def own(patterns: Any, usual: Any) -> Any:
            return next((value for p, value in patterns if re.fullmatch(rf"(.*\.)?({p})", name)), usual)

        return replace(self, r=own(self.ranks, self.r), alpha=own(self.alphas, self.alpha), ranks=(), alphas=())

    @property
    def scale(self) -> float:
        return self.alpha / (self.r**0.5 if self.rslora else self.r)


class Adapted(Linear):
    """A linear layer with an adapter: lora_A [r, in], lora_B [out, r]."""

    def __init__(self, base: Linear, lora: LoRA) -> None:
        Module.__init__(self, base.__dict__.get("component", ""))
        self.transposed, self.weight, self.bias = base.transposed, base.weight, base.bias
        outputs, inputs = reversed(base.weight.shape) if base.transposed else base.weight.shape
        self.scale = lora.scale
        self.lora_A = Parameter((lora.r, inputs), base.weight.dtype, init="uniform", component="lora")
        self.lora_B = Parameter((outputs, lora.r), base.weight.dtype, init="zeros", component="lora")

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (x @ self.lora_A.T) @ self.lora_B.T * self.scale

    def delta(self, state: Mapping[str, Array]) -> Array:
        """What the adapter adds to the weight, in the weight's layout."""
        a, b = (state[p.name] for p in (self.lora_A, self.lora_B))
        wide = np.float64 if a.dtype == np.float64 else np.float32
        product = b.astype(wide) @ a.astype(wide) * wide(self.scale)
        return product.T if self.transposed else product


def add(model: Model, lora: LoRA, names: Names | None = None) -> Model:
    """Freeze a model and put adapters on the linear layers that are targets; returns it.

    `names`: the name map by which targets, and the adapter's own tensors, are called; by default the model's.
    Raises ModelError: TG922 if no layer is a target, TG923 if there are adapters already.
    """
    if adapted(model):
        raise ModelError("TG923", "the model has adapters already", hint="merged() makes one model of both")
    names = model.names if names is None else names
    own, model.names = model.names, names
    layers = [
        (m, attribute, child, model.rename(f"{path}.{attribute}.weight" if path else f"{attribute}.weight"))
        for path, m in model.modules()
        for attribute, child in list(m.__dict__.items())
        if isinstance(child, Linear) and not attribute.startswith("_")
    ]
    model.names = own
    calls = [(m, attribute, child, name.removesuffix(".weight")) for m, attribute, child, name in layers]
    chosen = [row for row in calls if _fits(row[3], lora.targets, row[2]) and not _fits(row[3], lora.excluded, row[2])]
    if not chosen:
        some = ", ".join(name for _, _, _, name in calls[:3])
        raise ModelError("TG922", f"no linear layer is called {lora.targets!r}", notes=[f"names are like {some}"])
    model.freeze()
    for m, attribute, child, name in chosen:
        setattr(m, attribute, Adapted(child, lora.at(name)))
    layered = [(ours, theirs) for ours, theirs in names if ours.endswith(".")]
    rules = [(ours + x, f"{PREFIX}{theirs}{x}.weight") for ours, theirs in layered for x in ("lora_A", "lora_B")]
    model.names = (*rules, *own)
    return model


def adapted(model: Module) -> dict[str, Adapted]:
    """The layers that have adapters, by path."""
    return {path: m for path, m in model.modules() if isinstance(m, Adapted)}


def parameters(model: Module) -> dict[str, Parameter]:
    """The parameters of all adapters, by name."""
    model.assign_names()
    return {p.name: p for m in adapted(model).values() for p in (m.lora_A, m.lora_B)}


def without(names: Names) -> Names:
    """A name map less the rules for adapters."""
    return tuple(rule for rule in names if not rule[1].startswith(PREFIX))


def _fits(name: str, patterns: str | Iterable[str], layer: Linear) -> bool:
    if patterns == ALL:
        return layer.component != "head"
    if isinstance(patterns, str):
        return re.fullmatch(patterns, name) is not None
    return any(name == p or name.endswith("." + p) for p in patterns)


# ------------------------------------------------------------------------------------------ adapter_config.json


def from_config(config: Mapping[str, Any]) -> LoRA:
    """The adapter of a config. Raises ModelError: TG912 for what is not supported, TG913 for what is malformed."""
    for field, neutral in NEUTRAL.items():
        if config.get(field, neutral[0]) not in neutral:
            raise ModelError("TG912", f"adapters with {field} = {config[field]!r} are not supported")

    def expression(field: str, text: str) -> None:
        try:
            re.compile(text)
        except re.error as e:
            raise ModelError("TG913", f"{field} is no regular expression: {e}") from None

    def numbers(field: str) -> tuple[tuple[str, Any], ...]:
        value = config.get(field) or {}
        if not isinstance(value, Mapping) or not all(number(v) for v in value.values()):
            raise ModelError("TG913", f"{field} must be an object of numbers, not {value!r}")
        for key in value:
            expression(field, key)
        return tuple(value.items())

    def patterns(field: str) -> str | tuple[str, ...]:
        value = config.get(field) or ()
        if not isinstance(value, str) and not (
            isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value)
        ):
            raise ModelError("TG913", f"{field} must be a string or a list of strings, not {value!r}")
        if isinstance(value, str) and value != ALL:
            expression(field, value)
        return value if isinstance(value, str) else tuple(value)

    r, alpha = config.get("r"), config.get("lora_alpha", 8)
    if not number(alpha):
        raise ModelError("TG913", f"lora_alpha must be a number, not {alpha!r}")
    return LoRA(
        r=r,  # type: ignore[arg-type]
        alpha=alpha,
        targets=patterns("target_modules"),
        excluded=patterns("exclude_modules"),
        rslora=bool(config.get("use_rslora")),
        ranks=numbers("rank_pattern"),
        alphas=numbers("alpha_pattern"),
    )


def number(value: Any) -> bool:
    """Whether a value of a config is a number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def to_config(model: Model, lora: LoRA, base: Path | None = None) -> dict[str, Any]:
    """What peft reads back."""
    layers = adapted(model).values()
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": str(base) if base is not None else None,
        "task_type": None,
        "inference_mode": True,
        "r": lora.r,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "use_rslora": lora.rslora,
        "rank_pattern": dict(lora.ranks),
        "alpha_pattern": dict(lora.alphas),
        "target_modules": lora.targets if isinstance(lora.targets, str) else list(lora.targets),
        "exclude_modules": (lora.excluded if isinstance(lora.excluded, str) else list(lora.excluded)) or None,
        "fan_in_fan_out": any(m.transposed for m in layers),
        "bias": "none",
    }


__all__ = ["LoRA", "adapted", "add", "from_config", "parameters", "to_config", "without"]
