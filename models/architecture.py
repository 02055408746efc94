"""What an architecture is: its config's defaults, its plan, its name map; and building a model from one."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tensorgraph.errors import ModelError
from tensorgraph.io.files import show
from tensorgraph.nn import Parameter

from . import presets
from .decoder import Decoder, Planner, Sizes
from .model import Model
from .settings import FIELDS, Settings

log = logging.getLogger("tensorgraph")
Names = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Architecture:
    """One transformers class: how its config reads, and how its tensors are called in files.

    `plan` reads the config and `model` is made of the plan. `names` maps attribute paths to published names (or the
    plan has its own); all those in a file may begin with `prefix` or not; `buffers` are names to ignore, those that
    end in a dot with all below them. `others`: beginnings of names as published, and as some versions of transformers
    write them instead.
    """

    model_type: str
    defaults: Mapping[str, Any]
    plan: Planner
    names: Names
    prefix: str = ""
    buffers: tuple[str, ...] = ()
    synonyms: Mapping[str, str] = field(default_factory=dict)
    model: Callable[[Any], Model] = Decoder
    others: tuple[tuple[str, str], ...] = ()

    def settings(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The config with synonyms resolved and defaults filled in."""
        own = Settings({self.synonyms.get(key, key): value for key, value in config.items()})
        for key in [key for key in own if "." in key]:  # a field of a config inside: vision_config.hidden_size
            outer, _, inner = key.partition(".")
            own[outer] = {**(own.get(outer) or {}), inner: own.pop(key)}
        return {**self.defaults, **own}

    def names_in(self, names: Names, tensors: Iterable[str]) -> Names:
        """The name map for a file with these tensors: with or without the prefix, and as other versions write."""
        tensors = list(tensors)
        for published, other in self.others:
            known, also = (any(name.startswith(start) for name in tensors) for start in (published, other))
            if also and not known:
                names = tuple((ours, replaced(theirs, published, other)) for ours, theirs in names)
        wanted = any(name.startswith(self.prefix) for name in tensors)
        if not self.prefix or wanted == any(theirs.startswith(self.prefix) for _, theirs in names):
            return names
        if wanted:
            return tuple((ours, self.prefix + theirs) for ours, theirs in names)
        return tuple((ours, theirs.removeprefix(self.prefix)) for ours, theirs in names)

    def build(self, config: Mapping[str, Any], *, symbolic: bool = True, layers: Any = None) -> Model:
        """The model of a config. Raises ModelError[TG912] for an unknown setting, [TG913] for a malformed one."""
        settings = self.settings(config)
        sizes = Sizes(settings, symbolic, layers)
        sizes.config.check(("initializer_range", "eos_token_id", "bos_token_id"))
        plan = self.plan(sizes.config, sizes)
        model = self.model(plan)
        model.names, model.config = getattr(plan, "names", self.names), settings
        model.binding, model.aliases, model.fields = sizes.binding, sizes.aliases, sizes.fields
        for _, m in model.modules():  # how `init` draws matrices and tables: the field that transformers reads, too
            for p in vars(m).values():
                if isinstance(p, Parameter) and p.init == "normal":
                    p.std = float(settings.get("initializer_range", p.std))
        return model


def replaced(name: str, start: str, other: str) -> str:
    """The name with another beginning, if it begins with `start`."""
    return other + name.removeprefix(start) if name.startswith(start) else name


def find(config: Mapping[str, Any], table: Mapping[str, Architecture]) -> tuple[str, Architecture]:
    """The architecture of a config, by its "architectures" or its "model_type". Raises ModelError[TG911]."""
    named = config.get("architectures") or []
    if not isinstance(named, str) and not (isinstance(named, list) and all(isinstance(n, str) for n in named)):
        raise ModelError("TG913", f"architectures must be a list of texts, not {show(named)}")
    named = [named] if isinstance(named, str) else named
    for name in named:
        if name in table:
            return name, table[name]
    wanted = named[0] if named else config.get("model_type")
    if not named:
        for name, architecture in table.items():
            if architecture.model_type == config.get("model_type"):
                return name, architecture
    if not wanted:
        raise ModelError("TG911", 'the config names no architecture: it has neither "architectures" nor "model_type"')
    near = difflib.get_close_matches(str(wanted), table, 3, 0.0)
    hint = f"{'nearest' if len(table) > len(near) else 'supported'} are {', '.join(near)}"
    raise ModelError("TG911", f"unknown architecture {wanted!r}", hint=hint)


def assumed(config: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """Sizes that the config does not have, so that the class's defaults stand for them.

    Configs inside leave out what is their class's default as a matter of course.
    """
    return {key: model.config[key] for key in model.fields.values() if "." not in key and key not in config}


OURS = {"projector_layers": 2}  # settings that transformers does not have, and what it takes them to be


def of_file(config: Mapping[str, Any], table: Mapping[str, Architecture]) -> tuple[Model, Architecture]:
    """The model of a file's config, and its architecture; sizes that the config does not say are logged."""
    _, found = find(config, table)
    model = found.build(config)
    unsaid = assumed({found.synonyms.get(key, key): value for key, value in config.items()}, model)
    if unsaid := {key: value for key, value in unsaid.items() if key not in OURS}:
        are, s = ("is", "") if len(unsaid) == 1 else ("are", "s")
        values = ", ".join(map(str, unsaid.values()))
        log.warning("%s %s not in the config: %s, the class's default%s", ", ".join(unsaid), are, values, s)
    return model, found


def builder(table: Mapping[str, Architecture]) -> Callable[..., Model]:
    """The `build` of the architectures of a file."""

    def build(source: str | Mapping[str, Any], *, symbolic: bool = True, layers: Any = None, **changes: Any) -> Model:
        """A model from a preset's name or a config, without values: one symbol per size, bound in `model.binding`.

        `symbolic=False`: ints. `layers`: another number of them, or a symbol (`tg.dim("n")`) for one block that is
        repeated. `changes` replace fields of the config.
        Raises ModelError: TG910 unknown preset, TG911 unknown architecture, TG912 and TG913 settings.
        """
        config = presets.config(source) if isinstance(source, str) else source
        found = find({**config, **changes}, table)[1]
        own = {*config, *found.defaults, *found.synonyms}
        if unknown := [key for key in changes if key.partition(".")[0] not in {*own, *FIELDS, "architectures"}]:
            near = difflib.get_close_matches(unknown[0], own, 3, 0.6)
            hint = f"did you mean {', '.join(near)}?" if near else None
            raise ModelError("TG912", f"{found.model_type} has no setting {unknown[0]!r}", hint=hint)
        return found.build({**config, **changes}, symbolic=symbolic, layers=layers)

    return build
