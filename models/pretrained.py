"""Published checkpoints: a model with its values, called as transformers' models are, and saved as they are."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tensorgraph.autodiff import vjp
from tensorgraph.compile import compile
from tensorgraph.dims import Shape, evaluate, show_shape
from tensorgraph.dtypes import dtype as to_dtype
from tensorgraph.errors import CheckpointError, DataError, GradError, ModelError, StateError
from tensorgraph.graph import Graph
from tensorgraph.io import gguf as gguf_files
from tensorgraph.io import safetensors
from tensorgraph.io.files import Array, Entry, fail, open_map, reachable, replacing, show
from tensorgraph.nn import Parameter, match_name
from tensorgraph.ops.leaf import const, input
from tensorgraph.tensor import Tensor

from . import architecture, gguf, lora, modes, packed, presets, stacked
from . import generate as generation
from .architecture import Architecture
from .differences import Difference, summary
from .model import Model, array_of, float_dtype, used, zero_or_one
from .room import Room
from .settings import Settings
from .tokenizer import FILE as TOKENIZER
from .tokenizer import Tokenizer

CONFIG = "config.json"
GENERATION = "generation_config.json"
COPIED = (GENERATION, TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")

WITHOUT_EFFECT = ("use_cache", "return_dict")  # of transformers' forward; what they choose there is always so here


class Net:
    """A model and its values. Call it with what transformers' forward takes; arrays in, a dict of arrays out.

    `config` is the file's, `model` the Module with its symbols bound, `state` the values by the names in the file,
    `tokenizer` the one beside them, or None. `weights`: what products read when generating, "bfloat16" or "int8",
    packed from the values; None: the values. Graphs are made once per set of inputs; sizes may change between calls.
    A `state` that is Unread is read when it is first asked for: generating from packed weights never holds it whole.
    """

    def __init__(
        self,
        model: Model,
        config: Mapping[str, Any],
        state: Mapping[str, Array] | None = None,
        *,
        tokenizer: Tokenizer | None = None,
        folder: Path | None = None,
        names: architecture.Names | None = None,
        defaults: Mapping[str, Any] | None = None,
        adapter: lora.LoRA | None = None,
        backend: str = "auto",
        weights: str | None = None,
    ) -> None:
        packed.check(weights)
        self.weights = weights
        self.model, self.config, self.tokenizer, self.backend = model, dict(config), tokenizer, backend
        self._unread: Unread | None = None
        if isinstance(state, Unread):
            self._unread = state
        else:
            self.state = state or {}
        self.dtype = str(next(iter(model.parameters())).dtype)
        self.adapter = adapter
        self._folder = folder
        self._published = names or model.names
        self._generation = {**config, **(defaults or {})}
        self._compiled: dict[Any, Any] = {}
        self._stacks: stacked.Stacks | None = None
        self.warned = False  # that positions lie beyond those it is made for

    @property
    def state(self) -> dict[str, Array]:
        """The values by the names in the file; given by those of parameters (as a training step holds them), split."""
        if self._unread is not None:
            room = Room()
            read = self._unread.items()
            self.state = {name: a if stacked.HOLE in name else room.copy(a) for name, a in read}
        return self._state

    @state.setter
    def state(self, values: Mapping[str, Array]) -> None:
        self._state, self._unread = stacked.split(values), None

    def source(self) -> Mapping[str, Array]:
        """The values by parameter, without reading them if they have not been. Raises as `values`."""
        return self.values() if self._unread is None else self._unread

    # -- calling
    def __call__(self, *unnamed: Any, **inputs: Any) -> dict[str, Array]:
        """Outputs under transformers' names: `logits`, and `loss` if there are labels.

        `use_cache` and `return_dict` are taken and change nothing.
        Raises DataError: TG512 an unknown input or one without a name, TG501 an absent one, TG502 a shape, TG503 a
        dtype, TG504 an id out of range, TG510 too many positions; StateError[TG610] if there are no values.
        """
        arrays, names = self._arrays(inputs, unnamed)
        step = self.compiled(("outputs", names), lambda: self._compile(self._outputs(names)))
        result: dict[str, Array] = step(self.values(), **used(step, arrays))
        return result

    def value_and_grad(
        self, *unnamed: Any, cotangents: Mapping[str, Any] | None = None, wrt_inputs: Iterable[str] = (), **inputs: Any
    ) -> tuple[float, dict[str, Array]]:
        """The loss, and its gradient in every trained parameter, by the names and in the layout of the file.

        A tied parameter occurs once, its gradient the sum over uses; one that the loss does not depend on is absent.
        `cotangents` {output: R} takes the sum of R · output in place of the loss; `wrt_inputs` adds float inputs.
        Raises as calling, ModelError[TG916] without labels or cotangents, GradError[TG417] where all is frozen.
        """
        arrays, names = self._arrays(inputs, unnamed)
        given, wrt = {k: array_of(k, v) for k, v in (cotangents or {}).items()}, tuple(wrt_inputs)
        key = ("gradients", names, tuple(sorted(given)), wrt)
        step = self.compiled(key, lambda: self._compile(self._gradients(names, tuple(given), wrt)))
        result = step(self.values(), **used(step, arrays), **{f"cotangent.{k}": v for k, v in given.items()})
        return result["value"].item(), stacked.split(result["gradients"])

    def trace(self, *names: str, gradients: bool = False) -> Graph:
        """The graph for a set of inputs (by default those that it needs), with its gradients if asked for."""
        names = names or (*(self.model.usual or self.model.needs), *(self.model.learns if gradients else ()))
        outputs = self._gradients(names, (), ()) if gradients else self._outputs(names)
        flat = {**outputs.get("gradients", {}), **{k: v for k, v in outputs.items() if k != "gradients"}}
        return Graph(flat, name=self._name, aliases=self.model.aliases)

    def _outputs(self, names: Iterable[str], leaves: dict[str, Tensor] | None = None) -> dict[str, Any]:
        return self.model.outputs(**(leaves or self.model.inputs(names)))

    def _gradients(self, names: Iterable[str], cotangents: tuple[str, ...], wrt: tuple[str, ...]) -> dict[str, Any]:
        leaves = self.model.inputs(names)
        outputs = self._outputs(names, leaves)
        if not cotangents and "loss" not in outputs:
            raise ModelError(
                "TG916", "there is no loss to differentiate", hint="give labels=..., or cotangents={output: R}"
            )
        if unknown := [n for n in cotangents if n not in outputs]:
            raise ModelError("TG916", f"there is no output {unknown[0]!r}", hint=f"outputs are {', '.join(outputs)}")
        if cotangents:
            ys = [outputs[n] for n in cotangents]
            seeds = [input(f"cotangent.{n}", y.shape, y.dtype) for n, y in zip(cotangents, ys, strict=True)]
            value: Any = 0.0
            for y, seed in zip(ys, seeds, strict=True):
                value = (y * seed).sum() + value
        else:
            ys, value = [outputs["loss"]], outputs["loss"]
            seeds = [const(1.0, value.dtype)]
        targets = {n: p.__tensor__() for n, p in self.model.named_parameters().items() if p.trained}
        if unknown := [n for n in wrt if not isinstance(leaves.get(n), Tensor) or not leaves[n].dtype.is_float]:
            raise ModelError("TG916", f"there is no float input {unknown[0]!r}", hint="ids have no gradient")
        targets |= {n: leaves[n] for n in wrt}
        if not targets:
            count = len(self.model.parameters())
            raise GradError(
                "TG417", f"all {count} parameters are frozen: there is no gradient", hint="model.unfreeze(pattern)"
            )
        found = vjp(ys, targets, seeds, unused="none")
        return {"value": value, "gradients": {n: g for n, g in found.items() if g is not None}}

    def compiled(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` returns, made once per key (and again after parameters were frozen or unfrozen)."""
        key = (key, tuple(p.trained for p in self.model.parameters()))
        if key not in self._compiled:
            self._compiled[key] = make()
        return self._compiled[key]

    def _compile(self, outputs: Any) -> Any:
        return compile(outputs, binding=self.model.binding, backend=self.backend, name=self._name)

    @property
    def _name(self) -> str:
        return str(self.model.config.get("model_type") or "model")

    def values(self) -> dict[str, Array]:
        """The state by parameter: weights of experts, several tensors in the file, are one array here.

        Raises StateError[TG610] if there is none.
        """
        if not self.state:
            raise StateError(
                "TG610",
                f"this {self._name} model has no values",
                hint="net.init(seed=0) draws them, from_pretrained(folder) loads them",
            )
        if self._stacks is None:
            self._stacks = stacked.Stacks(self.model)
        return self._stacks.join(self.state)

    def init(self, seed: int = 0) -> Net:
        """Draw fresh values. Returns self."""
        self.state = self.model.init(seed, self.model.binding)
        return self

    def _arrays(self, inputs: Mapping[str, Any], unnamed: tuple[Any, ...]) -> tuple[dict[str, Array], tuple[str, ...]]:
        """The arrays, and the names of all inputs: theirs and those of flags that are true."""
        if unnamed:
            hint = f"net({self.model.needs[0]}=...)"
            raise DataError("TG512", "inputs are given by name, as to transformers' forward", hint=hint)
        flags = [name for name in self.model.flags if inputs.get(name)]
        given = {name: value for name, value in inputs.items() if name not in self.model.flags}
        arrays = {n: array_of(n, value) for n, value in given.items() if value is not None and n not in WITHOUT_EFFECT}
        for name, array in arrays.items():
            if not array.size:
                raise DataError("TG502", f"{name} is empty: {list(array.shape)}")
        if "attention_mask" in arrays:
            arrays["attention_mask"] = zero_or_one("attention_mask", arrays["attention_mask"])
        ids, places = arrays.get("input_ids"), arrays.get("position_ids")
        if ids is not None and ids.ndim == 2:
            if places is not None and places.shape == (1, ids.shape[1]):
                arrays["position_ids"] = np.repeat(places, ids.shape[0], 0)
            if places is None:
                generation.check_length(self, ids.shape[1])
            elif places.dtype.kind in "iu":
                generation.warn_length(self, int(places.max(initial=0)) + 1)
        names = tuple(sorted((*arrays, *flags)))
        self.model.check(arrays)
        return arrays, names

    # -- text
    def generate(self, input_ids: Any, max_new_tokens: int = 20, **settings: Any) -> Array:
        """Prompt and continuation, int64 [B, T + new]; greedy, or sampled with temperature, top_k, top_p, seed.

        See `tensorgraph.models.generate.tokens` for the settings and errors.
        """
        return generation.generate(self, input_ids, max_new_tokens, **settings)

    def stream(self, text: str, max_new_tokens: int = 20, **settings: Any) -> Iterator[str]:
        """The continuation of a text, piece by piece as it is made. Settings as of `generate`."""
        return generation.stream(self, text, max_new_tokens, **settings)

    def need_tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises ModelError[TG918] if there is none."""
        if self.tokenizer is None:
            raise ModelError("TG918", f"there is no {TOKENIZER} with this model", hint="generate(input_ids) takes ids")
        return self.tokenizer

    def token_ids(self, field: str) -> list[int]:
        """Ids of a field such as eos_token_id, from the generation config or the config."""
        value = self._generation.get(field)
        return [] if value is None else [int(i) for i in (value if isinstance(value, list) else [value])]

    # -- adapters
    def add_adapter(self, chosen: lora.LoRA, seed: int = 0) -> Net:
        """Freeze the model and put a LoRA on it, which changes nothing yet. Returns self. Raises as `lora.add`."""
        before, values = self.model.named_parameters(), self.values() if self.state else None
        lora.add(self.model, chosen)
        self.adapter, self._published, self._stacks = chosen, self.model.names, None
        self._compiled.clear()
        if values is not None:
            kept = lora.carried(before, self.model, values)
            new = [name for name in lora.parameters(self.model) if name not in kept]
            self.state = kept | self.model.init(seed, self.model.binding, only=new)
        return self

    def mode(self, name: str, adapter: lora.LoRA | None = None, seed: int = 0) -> Net:
        """Train the parts of a mode and freeze the rest; a fresh adapter is put on where it wants one. Returns self.

        Values do not change. Raises as `modes.apply`.
        """
        modes.check(self.model, name, adapter)
        if name in modes.RANKS and (adapter is not None or self.adapter is None):
            self.add_adapter(modes.scoped(self.model, adapter or modes.default_adapter(name)), seed)
        modes.apply(self.model, name)
        return self

    def merged(self) -> Net:
        """A net of the bare model, whose weights have the adapter in them. Raises ModelError: TG924, TG925."""
        if self.adapter is None:
            raise ModelError("TG924", "the model has no adapter")
        uses, values = self.model.uses(), dict(self.values())
        for m in lora.adapted(self.model).values():
            if len(uses[m.weight.name]) > 1:
                text = f"{m.weight.name} is tied: the adapter is on one of its uses, {uses[m.weight.name][0]}, alone"
                raise ModelError("TG925", text, hint="it cannot be merged")
            w = values[m.weight.name]
            values[m.weight.name] = (w + m.delta(values).astype(w.dtype)).astype(w.dtype)
        model, _ = _model(self.config, self.dtype)
        model.names = lora.without(self._published)
        for name, p in lora.parameters(self.model).items():
            if isinstance(p, lora.Copy):
                if p.source in self.model.parameters():
                    text = f"{p.source.name} is tied: one of its uses alone is trained whole"
                    raise ModelError("TG925", text, hint="it cannot be merged")
                values[model.rename(uses[name][0])] = values[name]
        state = {name: values[name] for name in model.named_parameters()}
        return Net(
            model,
            self.config,
            state,
            tokenizer=self.tokenizer,
            folder=self._folder,
            names=model.names,
            defaults=self._generation,
            backend=self.backend,
        )

    def save_adapter(self, folder: str | os.PathLike[str]) -> Path:
        """Write the adapter alone, as peft reads it; returns the folder.

        Raises ModelError: TG924 if there is none, TG948 where other weights are trained beside it.
        """
        folder = Path(folder)
        if self.adapter is None:
            raise ModelError("TG924", "the model has no adapter")
        own = lora.parameters(self.model)
        if others := [n for n, p in self.model.named_parameters().items() if p.trained and n not in own]:
            raise ModelError(
                "TG948",
                f"{len(others)} weights are trained beside the adapter, which its folder has no place for",
                notes=[f"the first is {others[0]}"],
                hint="merged().save_pretrained(folder) writes one model of all",
            )
        values = self.values()
        tensors = {name: values[name] for name in own}
        safetensors.write(folder / lora.FILE, tensors, {"format": "pt"})
        config = lora.to_config(self.model, self.adapter, self._folder)
        _write(folder / lora.CONFIG, json.dumps(config, indent=2) + "\n")
        return folder

    # -- saving
    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Write config.json and model.safetensors, which transformers reads back; returns the folder.

        The config is the file's own, but for its dtype if the values have another now. Files of the tokenizer go along.
        What transformers' class cannot be (a bridge of other than two layers) is said in the log: only we read it back.
        Raises StateError[TG610] without values, CheckpointError[TG807] if the system refuses, ModelError[TG926] for a
        model with an adapter.
        """
        folder = Path(folder)
        for key, theirs in architecture.OURS.items():
            if (value := self.config.get(key, theirs)) != theirs:
                architecture.log.warning("%s is %s: transformers reads it as %s", key, value, theirs)
        if self.adapter is not None:
            hint = "save_adapter(folder) writes it; merged().save_pretrained(folder) writes one model of both"
            raise ModelError("TG926", "the model has an adapter, which a checkpoint has no place for", hint=hint)
        tensors = stacked.split({self._published_name(name): array for name, array in self.values().items()})
        config = dict(self.config)
        if self._folder is None:  # a preset leaves out what is its class's default
            config |= architecture.assumed(config, self.model)
        for key in ("dtype", "torch_dtype"):
            if config.get(key, self.dtype) != self.dtype:
                config[key] = self.dtype
        safetensors.write(folder / safetensors.SINGLE, tensors, {"format": "pt"})
        text = json.dumps(config, indent=2) + "\n"
        if self._folder is not None and config == self.config:
            text = (self._folder / CONFIG).read_text(encoding="utf-8")
        _write(folder / CONFIG, text)
        for name in COPIED:
            if self._folder is not None and self._folder != folder and (self._folder / name).is_file():
                _write(folder / name, (self._folder / name).read_text(encoding="utf-8"))
        if self.tokenizer is not None and not (folder / TOKENIZER).is_file():
            self.tokenizer.save(folder)
        return folder

    def _published_name(self, name: str) -> str:
        if self._published == self.model.names:
            return name
        (path, *_) = self.model.uses()[name]
        own, self.model.names = self.model.names, self._published
        try:
            return self.model.rename(path)
        finally:
            self.model.names = own

    def __repr__(self) -> str:
        count = len(self._state if self._unread is None else self._unread)
        values = f"{count} tensors, {self.dtype}" if count else "without values"
        return f"<Net {self._name}: {values}>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return {**self.model._repr_mimebundle_(include, exclude), "text/plain": repr(self)}


class Unread(Mapping[str, Array]):
    """Values by parameter, each read from its file when it is looked up, and not kept."""

    def __init__(self, readers: Mapping[str, Callable[[], Array]]) -> None:
        self.readers = readers

    def __getitem__(self, name: str) -> Array:
        return self.readers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self.readers)

    def __len__(self) -> int:
        return len(self.readers)


def _write(path: Path, text: str) -> None:
    with replacing(path) as new:
        new.write_text(text, encoding="utf-8")


# -------------------------------------------------------------------------------------------------- loading


def from_pretrained(
    path: str | os.PathLike[str],
    dtype: Any = "float32",
    *,
    adapter: str | os.PathLike[str] | None = None,
    backend: str = "auto",
    weights: str | None = None,
) -> Net:
    """Open a checkpoint: a Hugging Face folder, a GGUF file, or a config.json (then without values).

    `adapter`: a folder of peft's with a LoRA for a model of a Hugging Face folder; all else is frozen.
    `weights`: "bfloat16" or "int8" (rounded to 255 steps, a scale for each row) to generate with; all else is computed
    in `dtype`, and calls and gradients read the values themselves.
    Values are converted to `dtype`, a float. Raises CheckpointError: TG801 nothing there, TG820 tensors that are
    missing, unexplained, mis-shaped or no floats (all in one), and as reading does; DTypeError: TG206 for another
    dtype; ModelError: TG911 unknown architecture, TG912 and TG913 settings, TG950 unknown `weights`.
    """
    packed.check(weights)
    net = _open(Path(path), float_dtype(dtype), adapter, backend)
    net.weights = weights
    if packed.kind_of(net) is None:
        _ = net.state  # read now
    return net


def _open(path: Path, dtype: Any, adapter: str | os.PathLike[str] | None, backend: str) -> Net:
    reachable(path)
    if path.is_dir():
        return _open_folder(path, dtype, backend, Path(adapter) if adapter is not None else None)
    if adapter is not None:
        raise fail("TG801", path, "is no folder", hint="an adapter goes with the folder of its base model")
    if path.suffix == ".json" and path.is_file():
        return _without_values(read_json(path), dtype, backend, path.parent)
    if path.is_file():
        return _open_gguf(path, dtype, backend)
    hint = (
        f"{path.name} is a preset, without values: models.build({path.name!r})"
        if path.name in presets.names()
        else None
    )
    raise fail("TG801", path, "no such file or folder", hint=hint)


def read_json(path: Path) -> dict[str, Any]:
    """An object from a JSON file. Raises CheckpointError: TG801 no such file, TG803 not an object."""
    try:
        value = json.loads(bytes(open_map(path)))
    except (ValueError, RecursionError) as e:
        if isinstance(e, CheckpointError):
            raise
        raise fail("TG803", path, "not JSON", notes=[str(e)[:100]]) from None
    if type(value) is not dict:
        raise fail("TG803", path, f"expected an object, found {show(value)}")
    return value


def _model(config: Mapping[str, Any], dtype: Any) -> tuple[Model, Architecture]:
    from . import ARCHITECTURES

    model, found = architecture.of_file(config, ARCHITECTURES)
    return model.astype(dtype), found


def _without_values(config: dict[str, Any], dtype: Any, backend: str, folder: Path) -> Net:
    model, _ = _model(config, dtype)
    return Net(model, config, folder=folder, backend=backend)


def _open_folder(folder: Path, dtype: Any, backend: str, adapter: Path | None) -> Net:
    config = read_json(folder / CONFIG)
    if not (folder / safetensors.SINGLE).is_file() and not (folder / safetensors.INDEX).is_file():
        if old := sorted(p.name for p in folder.glob("*.bin")):
            raise fail(
                "TG801",
                folder,
                f"{old[0]} is a pickle, which runs code when it is read",
                hint="convert it to safetensors",
            )
        if adapter is not None:
            raise fail("TG801", folder, "has no values for the adapter to change")
        return _without_values(config, dtype, backend, folder)
    model, found = _model(config, dtype)
    published = model.names
    tensors = safetensors.open_checkpoint(folder)
    buffers = (*found.buffers, *(b.removeprefix(found.prefix) for b in found.buffers))
    model.names = found.names_in(model.names, tensors)
    load: Callable[..., Any] = _unread if adapter is None else _load
    state = load(model, tensors.entries, tensors.read, buffers, folder, dtype)
    chosen = None
    if adapter is not None:
        chosen, state = _put_on(model, adapter, found, published, state, dtype)
    tokenizer = Tokenizer.from_file(folder) if (folder / TOKENIZER).is_file() else None
    defaults = Settings(read_json(folder / GENERATION) if (folder / GENERATION).is_file() else {}, f"{GENERATION}: ")
    defaults.check(("eos_token_id", "pad_token_id"))
    return Net(
        model,
        config,
        state,
        tokenizer=tokenizer,
        folder=folder,
        names=model.names,
        defaults=defaults,
        adapter=chosen,
        backend=backend,
    )


def _put_on(
    model: Model, folder: Path, found: Architecture, names: architecture.Names, state: dict[str, Array], dtype: Any
) -> tuple[lora.LoRA, dict[str, Array]]:
    """Put the adapter of a folder on a model with these values; the adapter, and all values."""
    config = read_json(folder / lora.CONFIG)
    if not (folder / lora.FILE).is_file():
        raise fail("TG801", folder, f"{lora.FILE} is not there")
    tensors = safetensors.open_file(folder / lora.FILE)
    chosen, before = lora.from_config(config), model.named_parameters()
    lora.add(model, chosen, found.names_in(names, [name.removeprefix(lora.PREFIX) for name in tensors]))
    own, state = lora.parameters(model), lora.carried(before, model, state)
    # Beside an adapter of the head peft writes the head itself.
    copies = {m.lora_A.name.replace("lora_A", "base_layer"): m.weight.name for m in lora.adapted(model).values()}
    for copy, name in copies.items():
        if copy in tensors and not np.array_equal(tensors.read(copy, to_dtype(dtype)), state[name]):
            raise fail("TG821", folder / lora.FILE, f"{copy} differs from {name} of the base model")
    return chosen, state | _load(model, tensors.entries, tensors.read, copies, folder / lora.FILE, dtype, own)


def _open_gguf(path: Path, dtype: Any, backend: str) -> Net:
    file = gguf_files.read(path)
    config = gguf.config(file)
    model, found = _model(config, dtype)
    model.names = gguf.NAMES
    state = _unread(model, file.tensors.entries, gguf.reader(file, config), gguf.BUFFERS, path, dtype)
    try:
        tokenizer = Tokenizer.from_gguf(file.metadata)
    except ModelError:  # a kind that cannot be had exactly: the model works all the same
        tokenizer = None
    return Net(model, config, state, tokenizer=tokenizer, names=found.names, backend=backend)


def _load(*args: Any) -> dict[str, Array]:
    """The values of all parameters, or of those `wanted`. Raises as `_unread`, which takes the same."""
    return dict(_unread(*args))


def _unread(
    model: Model,
    entries: Mapping[str, Entry],
    read: Callable[[str, Any], Array],
    buffers: Iterable[str],
    where: Path,
    dtype: Any,
    wanted: Mapping[str, Parameter] | None = None,
) -> Unread:
    """The values of all parameters, or of those `wanted`: that they are there, and fit, is known; none is read yet.

    Raises CheckpointError[TG820] for all tensors that do not fit; its `details` name each.
    """
    wanted = model.named_parameters() if wanted is None else wanted
    tied = {model.rename(path): name for name, paths in model.uses().items() for path in paths[1:]}
    names = {n: stacked.names_of(n, p, model.binding) for n, p in wanted.items()}
    shapes = {n: wanted[own].shape[int(n != own) :] for own, several in names.items() for n in several}
    wrong = [Difference("missing", n, _sizes(shape, model)) for n, shape in shapes.items() if n not in entries]
    for name, entry in entries.items():
        if name in shapes:
            if entry.shape != tuple(evaluate(d, model.binding) for d in shapes[name]):
                has = _sizes(shapes[name], model)
                about = f"is {list(entry.shape)} in the file, the model has {has}"
                wrong.append(Difference("mis-shaped", name, about))
            elif entry.dtype.kind in "biuc":
                wrong.append(Difference("mis-typed", name, f"is {entry.dtype} in the file, the model has floats"))
        elif name not in tied and not any(
            (m := match_name(b, name)) and (not m[1] or b.endswith(".")) for b in buffers
        ):
            wrong.append(Difference("unexplained", name, str(list(entry.shape))))
    if wrong:
        count = "1 tensor does" if len(wrong) == 1 else f"{len(wrong)} tensors do"
        kind, notes = model.config.get("model_type") or "model", summary(wrong)
        raise fail(
            "TG820",
            where,
            f"{count} not fit the {kind} model of the config",
            notes=notes,
            hint="the error's details name each; so does tensorgraph --details" if len(notes) < len(wrong) else None,
            details=map(str, sorted(wrong)),
        )

    def reader(own: str, several: list[str]) -> Callable[[], Array]:
        def values() -> Array:
            arrays = [read(name, to_dtype(dtype)) for name in several]
            return arrays[0] if several == [own] else np.stack(arrays)

        return values

    state = Unread({own: reader(own, several) for own, several in names.items()})
    for name, first in tied.items():
        if name in entries and not np.array_equal(read(name, to_dtype(dtype)), state[first]):
            text = f"{name} differs from {first}, to which the config ties it"
            raise fail("TG821", where, text, hint='if they are two weights, set "tie_word_embeddings": false')
    return state


def _sizes(shape: Shape, model: Model) -> str:
    return f"{[evaluate(d, model.binding) for d in shape]} = {show_shape(shape, model.aliases)}"


__all__ = ["Net", "from_pretrained"]
