"""Training modes: which parts of a model learn. A part is what lies below a module that declares its component.

A language model learns as a whole, or by adapters alone; a model that sees, in stages: its bridge, and the bridge with
the vision encoder, with the language model, or with adapters on the language model (Liu et al. 2023).
"""

from __future__ import annotations

import re
from dataclasses import replace

from tensorgraph.errors import ModelError
from tensorgraph.nn import Linear, Module, Parameter

from . import lora
from .lora import LoRA
from .model import Model

# Components, as modules declare them, that are a part by themselves; all else is the language model.
PARTS = {"vision": "vision", "connector": "bridge", "cross_attention_blocks": "bridge", "lora": "lora"}
REST = "llm"
ALL = "all"
MODES: dict[str, tuple[str, ...]] = {
    ALL: (REST, "vision", "bridge", "lora"),
    "lora": ("lora",),
    "bridge-only": ("bridge",),
    "bridge+vision": ("bridge", "vision"),
    "bridge+llm": ("bridge", REST),
    "bridge+lora": ("bridge", "lora"),
}
# LLaVA-1.5's (github.com/haotian-liu/LLaVA, scripts/v1_5/finetune_lora.sh: r 128, alpha 256, every linear layer of the
# language model but the head); alone, a smaller rank at the same alpha = 2·r.
RANKS = {"lora": 16, "bridge+lora": 128}


def names(model: Module) -> list[str]:
    """The modes that a model has: "all", and those whose parts it has. A bridge is trained in all others, too."""
    has = set(parts(model).values())
    bridged = "bridge" in has
    fit = [n for n, ps in MODES.items() if ("bridge" in ps) == bridged and set(ps) - {"lora"} <= has]
    return [ALL, *(n for n in fit if n != ALL)]


def apply(model: Model, mode: str, adapter: LoRA | None = None) -> Model:
    """Train the parts of a mode and freeze all else; returns the model.

    The modes with adapters put one on if there is none, by default that of `default_adapter`.
    Raises ModelError: TG946 for a mode that the model does not have, TG947 for an adapter with a mode that trains none,
    and as `lora.add`.
    """
    check(model, mode, adapter)
    if mode in RANKS and (adapter is not None or not lora.adapted(model)):
        lora.add(model, scoped(model, adapter or default_adapter(mode)))
    trained = MODES[mode]
    for p, part in parts(model).items():
        p.trained = p.counted and part in trained
    return model


def check(model: Module, mode: str, adapter: LoRA | None = None) -> None:
    """Raise as `apply` for a mode and its adapter."""
    known = names(model)
    if mode not in known:
        raise ModelError("TG946", f"the model has no training mode {mode!r}", hint=f"its modes are {', '.join(known)}")
    if adapter is not None and mode not in RANKS:
        with_one = [n for n in known if n in RANKS]
        raise ModelError("TG947", f"mode {mode} trains no adapter", hint=f"modes that do: {', '.join(with_one)}")


def default_adapter(mode: str, r: int | None = None) -> LoRA:
    """On every linear layer but the head, alpha = 2·r; r is 128 beside a bridge, as LLaVA-1.5 has it, else 16."""
    r = RANKS[mode] if r is None else r
    return LoRA(r=r, alpha=2 * r)


def scoped(model: Model, adapter: LoRA) -> LoRA:
    """The adapter kept off the vision encoder and the bridge: their linear layers are excluded by name."""
    if "bridge" not in parts(model).values():
        return adapter
    own = part_of_modules(model)
    away = [
        model.rename(f"{path}.weight").removesuffix(".weight")
        for path, m in model.modules()
        if isinstance(m, Linear) and own[path] != REST
    ]
    given = adapter.excluded
    if isinstance(given, str):
        return replace(adapter, excluded="|".join([f"(?:{given})", *map(re.escape, away)]))
    return replace(adapter, excluded=(*given, *(name for name in away if name not in given)))


def parts(model: Module) -> dict[Parameter, str]:
    """The part that each parameter belongs to: "llm", "vision", "bridge" or "lora"; a tied one to its first place."""
    model.assign_names()
    own = part_of_modules(model)
    out: dict[Parameter, str] = {}
    for path, m in model.modules():
        for value in vars(m).values():
            if isinstance(value, Parameter):
                out.setdefault(
                    value, "lora" if value.component == "lora" or isinstance(value, lora.Copy) else own[path]
                )
    return out


def part_of_modules(model: Module) -> dict[str, str]:
    """The part of each module by path: what is declared highest counts for all below."""
    out: dict[str, str] = {}
    for path, m in model.modules():
        above = out.get(path.rpartition(".")[0], REST) if path else REST
        out[path] = PARTS.get(m.component, REST) if above == REST else above
    return out


__all__ = ["MODES", "apply", "check", "default_adapter", "names", "part_of_modules", "parts", "scoped"]
