"""MODEL as the command line takes it: a preset, checkpoint folder, config.json, GGUF file, or file.py:callable."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tensorgraph.dims import Dim, free, parse_binding
from tensorgraph.dims import binding as bind_sizes
from tensorgraph.errors import ModelError, SizeError
from tensorgraph.graph import Graph
from tensorgraph.nn import Module
from tensorgraph.tensor import Tensor

from .own import call


@dataclass(frozen=True)
class Training:
    """What is trained: a named mode, the settings of its adapter as --lora gives them, patterns of what is frozen."""

    mode: str | None = None
    lora: str | None = None
    freeze: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.mode or self.lora or self.freeze)


@dataclass
class Target:
    """What MODEL names. Of `config` (a published architecture), `module` and `graph`, those that it has.

    `sizes` names those of the model, `binding` holds their values, the given ones among them, `given` only those that
    `-d` names; `path` is the checkpoint, None for presets and one's own models.
    """

    name: str
    module: Module | None = None
    graph: Graph | None = None
    config: Mapping[str, Any] | None = None
    sizes: tuple[str, ...] = ()
    binding: dict[str, int] = field(default_factory=dict)
    given: dict[str, int] = field(default_factory=dict)
    aliases: Mapping[str, Dim] = field(default_factory=dict)
    path: Path | None = None
    training: Training = Training()

    def trace(self, gradients: bool = False) -> Graph:
        """Its graph: the outputs, and with `gradients` those of the loss (or of all outputs, weighted by inputs).

        Raises ModelError[TG932] for a Module that does not say what it is called with.
        """
        if self.graph is not None:
            return self.graph.with_gradients() if gradients else self.graph
        assert self.module is not None
        outputs, inputs = getattr(self.module, "outputs", None), getattr(self.module, "inputs", None)
        if not callable(outputs) or not callable(inputs):
            raise ModelError(
                "TG932",
                f"{self.name} gives a {type(self.module).__name__} and does not say what it is called with",
                hint='return what it returns: return Net()(tg.input("x", (tg.dim("B"), 3)))',
            )
        needs, learns = getattr(self.module, "needs", ("input_ids",)), getattr(self.module, "learns", ("labels",))
        needs = getattr(self.module, "usual", ()) or needs
        found = outputs(**inputs((*needs, *(learns if gradients else ()))))
        if gradients and "loss" in found:
            found = {"loss": found["loss"]}
        graph = Graph(found, name=self.name, aliases=self.aliases)
        return graph.with_gradients() if gradients else graph

    def train(self, mode: str | None = None, lora: str | None = None, freeze: Iterable[str] | None = None) -> Target:
        """Settle what is trained: a named mode, with an adapter where it has one, then less what is frozen by pattern.

        Returns self. Raises ModelError: TG945 for a graph already built, TG946 and TG947 for a mode, TG949 for settings
        of the adapter; GraphError[TG307] for a pattern that fits no name or component.
        """
        self.training = Training(mode, lora, tuple(freeze or ()))
        if self.training and self.module is None:
            raise ModelError("TG945", f"{self.name} gives a graph, in which it is settled what is trained")
        if self.training:
            self.prepare(self.module)
        return self

    def prepare(self, what: Any) -> Any:
        """A module of this kind, or a Net, with what is trained set as `train` settled it."""
        from tensorgraph.models import Net, modes

        module = what.model if isinstance(what, Net) else what
        mode, settings = self.training.mode, self.training.lora
        if settings is not None and mode is None:
            mode = next(n for n in modes.names(module) if n in modes.RANKS)
        if mode is not None:
            modes.check(module, mode)
            adapter = None if settings is None else parse_lora(settings, mode)
            what.mode(mode, adapter) if isinstance(what, Net) else modes.apply(module, mode, adapter)
            self.training = replace(self.training, mode=mode)
        if self.training.freeze:
            module.freeze(*self.training.freeze)
        return what

    def sized(self, graph: Graph) -> Graph:
        """The graph with the sizes that `-d` gives. Raises SizeError[TG014] for one that it does not have."""
        self.check_sizes(graph.symbols)
        sizes = {n: v for n, v in self.given.items() if n in graph.symbols}
        return graph.bind(sizes) if sizes else graph

    def check_sizes(self, symbols: Iterable[str] = ("B", "T")) -> None:
        """Raise SizeError[TG014] if `-d` names what is neither a size of the model nor among `symbols`."""
        if callable(check := getattr(self.module, "check_sizes", None)):
            check(self.binding)
        known = list(dict.fromkeys((*self.sizes, *symbols)))
        for name in self.given:
            if name not in known:
                near = [n for n in known if n.lower() == name.lower()] or difflib.get_close_matches(name, known, 3)
                raise SizeError(
                    "TG014",
                    f"{self.name} has no size called {name!r}",
                    notes=[f"its sizes are {', '.join(known)}" if known else "all its sizes are numbers"],
                    hint=f"did you mean {', '.join(near)}?" if near else None,
                )


def open_target(text: str, sizes: Iterable[str] | None = None, changes: Mapping[str, Any] | None = None) -> Target:
    """What MODEL names, with the sizes of `-d NAME=SIZE` and with fields of the config replaced by `changes`.

    Raises ModelError: TG910 an unknown preset, TG930 a Python file without a callable or without the one named, TG931
    a callable that gives no model, TG933 `changes` of what has no config, TG934 a file of tensors alone;
    CheckpointError as reading does; SizeError for sizes.
    """
    given = parse_sizes(sizes)
    file, colon, attribute = text.rpartition(":")
    if colon and file.endswith(".py"):
        return _own(text, Path(file), attribute, given, changes)
    if text.endswith(".py") and Path(text).is_file():
        raise ModelError("TG930", f"{text} needs the name of what to call in it", hint=f"{text}:build")
    return _published(text, given, dict(changes or {}))


def parse_sizes(sizes: Iterable[str] | None) -> dict[str, Dim]:
    """Sizes of all `-d`, by name. Raises SizeError[TG009] pointing at what cannot be read."""
    return parse_binding(",".join(sizes or ()))


def parse_lora(text: str, mode: str) -> Any:
    """A LoRA of `r=16,alpha=32,targets=q_proj+v_proj,rslora=true`, the rest as the mode has it.

    Raises ModelError: TG949 for what cannot be read, TG947 for a mode without adapters, TG913 for the rank.
    """
    from tensorgraph.models import LoRA, modes

    given: dict[str, Any] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, _, value = part.partition("=")
        try:
            given[name.strip()] = LORA[name.strip()](value.strip())
        except (KeyError, ValueError):
            hint = "write them as r=16,alpha=32,targets=q_proj+v_proj,rslora=true; any may be left out"
            raise ModelError("TG949", f"cannot read {part!r} as a setting of an adapter", hint=hint) from None
    usual = modes.default_adapter(mode, given.pop("r", None)) if mode in modes.RANKS else LoRA(r=1, alpha=1)
    return replace(usual, **given)


def _targets(text: str) -> str | tuple[str, ...]:
    return text if text == "all-linear" else tuple(text.split("+"))


LORA: Mapping[str, Callable[[str], Any]] = {
    "r": int,
    "alpha": float,
    "targets": _targets,
    "rslora": lambda text: {"true": True, "false": False}[text],
}


# ------------------------------------------------------------------------------------- published architectures


def _published(text: str, given: dict[str, Dim], changes: dict[str, Any]) -> Target:
    from tensorgraph import models
    from tensorgraph.io import gguf as gguf_files
    from tensorgraph.io import safetensors
    from tensorgraph.io.files import reachable
    from tensorgraph.models import architecture, gguf, presets
    from tensorgraph.models.pretrained import CONFIG, read_json

    for size, value in given.items():
        if type(value) is int and value < 1:  # their graphs are for one and more of everything
            raise SizeError("TG010", f"-d {size}={value}: a size of {text} is 1 or more")
    path = Path(text)
    reachable(path)
    names = None
    if text in presets.names():
        config, where = presets.config(text), None
    elif path.is_dir():
        config, where = read_json(path / CONFIG), path
    elif path.suffix == ".json":
        config, where = read_json(path), path
    elif path.suffix == ".safetensors" and path.is_file():
        safetensors.open_file(path)  # damaged files are named as such
        raise ModelError("TG934", f"{path.name} holds tensors and no config", hint=f"give its folder: {path.parent}")
    elif path.is_file() or path.suffix == ".gguf" or len(path.parts) > 1:
        file = gguf_files.read(path)
        config, names, where = gguf.config(file), gguf.NAMES, path
    else:
        presets.config(text)  # raises, with the nearest names
        raise AssertionError
    config = {**config, **changes}
    model = models.build(config) if where is None else architecture.of_file(config, models.ARCHITECTURES)[0]
    if fields := _fields(text, model, given):
        model = models.build(config := {**config, **fields})
    if names is not None:
        model.names = names
    return _sized(path.resolve().name if where is not None else text, model, config, given, where)


def _sized(name: str, model: Any, config: Mapping[str, Any], given: Mapping[str, Dim], path: Path | None) -> Target:
    sizes = (*model.fields, *(n for n in model.binding if n not in model.fields))
    values = bind_sizes(model.binding, {n: v for n, v in given.items() if n not in model.aliases})
    chosen = {n: values[n] for n in given if n in values}
    return Target(name, model, None, config, sizes, values, chosen, model.aliases, path)


def _fields(name: str, model: Any, given: Mapping[str, Dim]) -> dict[str, int | None]:
    """Fields of the config for the sizes given of the model itself; others (B, T ...) are left to the graph."""
    known = dict(model.binding)
    for n in given:
        known.pop(n, None)
    values = bind_sizes(known, dict(given))
    own = {n: values[n] for n in given}
    out: dict[str, int | None] = {model.fields[n]: v for n, v in own.items() if n in model.fields}
    if "k" in own and "k" not in model.fields and "k" in model.binding:
        heads = own.get("H", model.binding["H"])
        if own.get("d", heads * own["k"]) != heads * own["k"]:
            raise SizeError("TG015", f"{name} has d = H·k, and {own['d']} is not {heads}·{own['k']}")
        out[model.fields["d"]] = heads * own["k"]
    pad, vocabulary = model.config.get("pad_token_id"), model.fields.get("V", "")
    if isinstance(pad, int) and pad >= own.get("V", pad + 1):  # a smaller vocabulary is without that token
        out[vocabulary.replace("vocab_size", "pad_token_id")] = None
    return out


# -------------------------------------------------------------------------------------------- one's own models


def _own(text: str, file: Path, attribute: str, given: dict[str, Dim], changes: Mapping[str, Any] | None) -> Target:
    made = call(text, file, attribute)
    name = f"{file.name}:{attribute}"
    if getattr(made, "config", None) and getattr(made, "fields", None):  # built from a config: sizes go into it
        from tensorgraph import models

        config = {**made.config, **(changes or {}), **_fields(text, made, given)}
        return _sized(name, models.build(config) if given or changes else made, config, given, None)
    if changes:
        raise ModelError("TG933", f"{text} has no config in which {', '.join(changes)} could be set")
    aliases = getattr(made, "aliases", None) or {}
    values = bind_sizes(getattr(made, "binding", None), given)
    chosen = {n: values[n] for n in given}
    if isinstance(made, Module):
        sizes = {n: None for p in made.parameters() for d in p.shape for n in sorted(free(d))}
        return Target(name, made, None, None, tuple(sizes), values, chosen, aliases)
    if isinstance(made, Graph):
        return Target(name, None, made, None, (), values, chosen, made.aliases)
    tensors = made.values() if isinstance(made, Mapping) else made if isinstance(made, (list, tuple)) else [made]
    if not tensors or not all(isinstance(t, Tensor) for t in tensors):
        raise ModelError(
            "TG931",
            f"{text} gives no model, but an object of type {type(made).__name__}",
            hint="return a Module, a Tensor, several of them, or a Graph",
        )
    return Target(name, None, Graph(made, name=attribute), None, (), values, chosen)


__all__ = ["Target", "open_target", "parse_sizes"]
