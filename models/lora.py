"""Low-rank adapters: W x + s·B A x with W frozen; as a change of a model, and as peft's adapter folders.

Sources: Hu et al. 2021; Kalajdzievski 2023 (s = alpha/sqrt(r)); the format: github.com/huggingface/peft.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from tensorgraph.errors import ModelError
from tensorgraph.io.files import Array
from tensorgraph.nn import Embedding, Linear, Module, Parameter
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
    "use_dora": (False, None),
    "lora_bias": (False, None),
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
    `layers`: numbers of the layers that have one, None: all; a target named in full has one wherever it stands.
    `within`: what layers are called (`h`), where several lists are numbered. `whole`: modules, by the end of their
    names, that are trained whole and go with the adapter, copies that leave the base as it is.
    Raises ModelError[TG913] for a rank that is not positive.
    """

    r: int
    alpha: float
    targets: str | tuple[str, ...] = ALL
    excluded: str | tuple[str, ...] = ()
    rslora: bool = False
    ranks: tuple[tuple[str, int], ...] = ()
    alphas: tuple[tuple[str, float], ...] = ()
    layers: tuple[int, ...] | None = None
    within: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()

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


class Copy(Parameter):
    """A parameter trained in the place of another, `source`, which stays as it is."""

    def __init__(self, source: Parameter) -> None:
        super().__init__(source.shape, source.dtype, init=source.init, std=source.std, component=source.component)
        self.reading, self.used, self.source = source.reading, source.used, source


def add(model: Model, lora: LoRA, names: Names | None = None) -> Model:
    """Freeze a model and put adapters on the linear layers that are targets; returns it.

    `names`: the name map by which targets, and the adapter's own tensors, are called; by default the model's.
    Raises ModelError: TG912 for a target that is an embedding, TG922 if no layer is a target or no module of a name is
    there to train whole, TG923 if there are adapters already.
    """
    if adapted(model):
        raise ModelError("TG923", "the model has adapters already", hint="merged() makes one model of both")
    names = model.names if names is None else names
    own, model.names = model.names, names
    layers = [
        (m, attribute, child, model.rename(f"{path}.{attribute}.weight" if path else f"{attribute}.weight"))
        for path, m in model.modules()
        for attribute, child in list(m.__dict__.items())
        if isinstance(child, (Linear, Embedding)) and not attribute.startswith("_")
    ]
    weights = [
        (m, attribute, f"{path}.{attribute}" if path else attribute)
        for path, m in model.modules()
        for attribute, p in list(m.__dict__.items())
        if isinstance(p, Parameter)
    ]
    copied = [(m, attribute, path, model.rename(path)) for m, attribute, path in weights]
    model.names = own
    calls = [(m, attribute, child, name.removesuffix(".weight")) for m, attribute, child, name in layers]
    chosen = [row for row in calls if _chosen(row[3], lora, row[2])]
    if tables := [name for _, _, child, name in chosen if isinstance(child, Embedding)]:
        hint = f"whole=({tables[0].rpartition('.')[2]!r},), in peft modules_to_save, trains it whole"
        raise ModelError("TG912", f"adapters of embeddings are not supported: {tables[0]}", hint=hint)
    if not chosen:
        some = [name for _, _, child, name in calls if isinstance(child, Linear)][:3]
        at = "" if lora.layers is None else f" in layers {', '.join(map(str, lora.layers))}"
        text = f"no linear layer is called {lora.targets!r}{at}"
        raise ModelError("TG922", text, notes=[f"names are like {', '.join(some)}"])
    copied = [row for row in copied if any(_ends(row[3], end) for end in lora.whole)]
    if absent := [end for end in lora.whole if not any(_ends(row[3], end) for row in copied)]:
        raise ModelError("TG922", f"no module is called {absent[0]!r}, to be trained whole")
    model.freeze()
    for m, attribute, child, name in chosen:
        setattr(m, attribute, Adapted(cast("Linear", child), lora.at(name)))
    for m, attribute, _, _ in copied:
        setattr(m, attribute, Copy(getattr(m, attribute)))
    layered = [(ours, theirs) for ours, theirs in names if ours.endswith(".")]
    rules = [(ours + x, f"{PREFIX}{theirs}{x}.weight") for ours, theirs in layered for x in ("lora_A", "lora_B")]
    model.names = (*((path, PREFIX + name) for _, _, path, name in copied), *rules, *own)
    return model


def adapted(model: Module) -> dict[str, Adapted]:
    """The layers that have adapters, by path."""
    return {path: m for path, m in model.modules() if isinstance(m, Adapted)}


def parameters(model: Module) -> dict[str, Parameter]:
    """The parameters of all adapters, and those trained whole beside them, by name."""
    own = {p for m in adapted(model).values() for p in (m.lora_A, m.lora_B)}
    return {n: p for n, p in model.named_parameters().items() if p in own or isinstance(p, Copy)}


def carried(before: Mapping[str, Parameter], model: Module, values: Mapping[str, Array]) -> dict[str, Array]:
    """Values of the parameters of `before`, under the names that they and their copies have beside adapters."""
    names = {p: name for name, p in before.items()}
    now = {n: p.source if isinstance(p, Copy) else p for n, p in model.named_parameters().items()}
    return {n: values[names[p]] for n, p in now.items() if p in names}


def without(names: Names) -> Names:
    """A name map less the rules for adapters."""
    return tuple(rule for rule in names if not rule[1].startswith(PREFIX))


def _chosen(name: str, lora: LoRA, layer: Module) -> bool:
    """Whether a layer is a target: by its name, and the number of the first numbered list that it stands in."""
    if not _fits(name, lora.targets, layer) or _fits(name, lora.excluded, layer):
        return False
    if any(re.match(rf"(^|.*\.){end}($|\..*)", name) for end in lora.whole):
        return False
    if lora.layers is None or (not isinstance(lora.targets, str) and name in lora.targets):
        return True
    patterns = [rf"(?:^|.*?\.){p}\.(\d+)\." for p in lora.within] or [r".*?\.[^.]*\.(\d+)\."]
    found = next((m for p in patterns if (m := re.match(p, name))), None)
    return found is not None and int(found[1]) in lora.layers


def _ends(parameter: str, end: str) -> bool:
    """Whether a parameter belongs to a module whose name ends so."""
    parts = parameter.split(".")
    return any(".".join(parts[:i]).endswith(end) for i in range(1, len(parts)))


def _fits(name: str, patterns: str | Iterable[str], layer: Module) -> bool:
    if patterns == ALL:
        return isinstance(layer, Linear) and layer.component != "head"
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

    def numbered(field: str) -> tuple[int, ...] | None:
        value = config.get(field)
        several = [value] if type(value) is int else value
        if not several:
            return None
        if not isinstance(several, (list, tuple)) or not all(type(v) is int for v in several):
            raise ModelError("TG913", f"{field} must be a whole number or a list of them, not {value!r}")
        if isinstance(config.get("target_modules"), str):
            raise ModelError("TG913", f"{field} goes with a list of target_modules, not with one string")
        return tuple(several)

    def names(field: str) -> tuple[str, ...]:
        found = patterns(field)
        for text in (found := (found,) if isinstance(found, str) else found):
            expression(field, text)
        return found

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
        layers=numbered("layers_to_transform"),
        within=names("layers_pattern"),
        whole=names("modules_to_save"),
    )


def number(value: Any) -> bool:
    """Whether a value of a config is a number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def to_config(model: Model, lora: LoRA, base: Path | None = None) -> dict[str, Any]:
    """What peft reads back."""
    layers = adapted(model).values()
    targets: Any = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    numbers = lora.layers
    if isinstance(targets, str) and numbers is not None:  # peft does not take both: every layer by its full name
        model.assign_names()
        targets = [m.lora_A.name.removeprefix(PREFIX).removesuffix(".lora_A.weight") for m in layers]
        numbers = None
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
        "target_modules": targets,
        "exclude_modules": (lora.excluded if isinstance(lora.excluded, str) else list(lora.excluded)) or None,
        "layers_to_transform": None if numbers is None else list(numbers),
        "layers_pattern": (list(lora.within) or None) if numbers is not None else None,
        "modules_to_save": list(lora.whole) or None,
        "fan_in_fan_out": any(m.transposed for m in layers),
        "bias": "none",
    }


__all__ = ["Copy", "LoRA", "adapted", "add", "carried", "from_config", "parameters", "to_config", "without"]
