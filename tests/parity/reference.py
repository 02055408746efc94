"""The reference side of parity: transformers models from a config, with seeded weights, run in true float64.

Law: the weights are numbers that the file's dtype holds exactly, so one reference in float64 judges every dtype.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.initialization import no_init_weights
from transformers.pytorch_utils import Conv1D

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
# The chatter of libraries below transformers (huggingface_hub) goes through logging as well.
logging.getLogger("transformers").setLevel(logging.ERROR)

Array = np.ndarray[Any, Any]
LESS_THAN_DOUBLE = {torch.float32, torch.float16, torch.bfloat16, torch.complex64}
DTYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


# True float64


class LostPrecision(AssertionError):
    """An op of the reference made a tensor of less than double precision."""


class OnlyDouble(TorchDispatchMode):
    """Refuses every op, forward and backward, whose result holds less than double precision."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.dtype in LESS_THAN_DOUBLE:
                raise LostPrecision(f"{func} made {tensor.dtype} {tuple(tensor.shape)}")
        return result


@contextlib.contextmanager
def true_float64(patch: bool = True, strict: bool = True) -> Iterator[None]:
    """Inside, torch computes in float64 alone: `torch.float32`, `torch.float`, `Tensor.float` mean double.

    transformers casts to float32 inside norms, softmax, RoPE and the loss; those names are looked up when the line
    runs, so replacing them reaches every cast. The default dtype changes too, for literals. `strict` proves it:
    any op that yet makes less than double raises LostPrecision. `patch=False` leaves the casts in (for the proof).
    """
    single, default = torch.float32, torch.get_default_dtype()
    with contextlib.ExitStack() as stack:
        torch.set_default_dtype(torch.float64)
        stack.callback(torch.set_default_dtype, default)
        if patch:
            for name in ("float32", "float"):
                setattr(torch, name, torch.float64)
                stack.callback(setattr, torch, name, single)
            torch.Tensor.float = torch.Tensor.double
            stack.callback(delattr, torch.Tensor, "float")  # the inherited method shows again
        if strict:
            stack.enter_context(OnlyDouble())
        yield


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The warnings of torch and transformers are theirs, not ours to turn into errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# Building


def build(class_name: str, config: Mapping[str, Any], seed: int, weights: str = "float32") -> Any:
    """`transformers.<class_name>` from keyword arguments of its config: float64, eager, eval mode.

    Every parameter and persistent float buffer is drawn anew, so that no bias is 0 and no norm is 1, and rounded to
    the dtype `weights`. Sub-configs may be plain dicts. Tied weights stay tied.
    """
    cls = getattr(transformers, class_name)
    model = _from_config(cls, cls.config_class(**copy.deepcopy(dict(config))))
    redraw(model, seed, weights)
    return model


def load(folder: Path, auto_class: str = "AutoModelForCausalLM", **options: Any) -> Any:
    """transformers' own loading of a directory (or, with `gguf_file=`, of a GGUF file), in float64 as `build` gives it.

    The file is read before float32 is replaced, for safetensors looks dtypes up by the same names; the values then
    move into a model whose computed buffers (RoPE's frequencies) were made in float64.
    """
    with quiet():
        loaded = getattr(transformers, auto_class).from_pretrained(folder, dtype=torch.float64, **options)
    with no_init_weights():
        model = _from_config(type(loaded), loaded.config)
    model.tie_weights()  # what skips the drawing of initial weights skips the tying too
    model.load_state_dict(loaded.state_dict())
    return model


def _from_config(cls: Any, config: Any) -> Any:
    with quiet(), true_float64(strict=False):
        # The other implementations of attention and experts have kernels for at most single precision.
        return cls._from_config(config, attn_implementation="eager", experts_implementation="eager").double().eval()


def redraw(model: Any, seed: int, dtype: str = "float32") -> None:
    """Draws every parameter and persistent float buffer (a tied one once), rounded to `dtype`."""
    rng = np.random.default_rng(seed)
    owners = dict(model.named_modules())
    drawn: set[int] = set()
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            if not tensor.is_floating_point() or id(tensor) in drawn:
                continue
            drawn.add(id(tensor))
            module, _, leaf = name.rpartition(".")
            values = _draw(rng, owners[module], leaf, tuple(tensor.shape))
            tensor.copy_(torch.from_numpy(np.asarray(values)).to(DTYPES[dtype]).to(tensor.dtype))


def _draw(rng: np.random.Generator, owner: nn.Module, leaf: str, shape: tuple[int, ...]) -> Array:
    """Matrices keep the scale of what they multiply; vectors and scalars stay at least 0.1 away from 0 (norms: 1)."""
    if len(shape) < 2:
        away = rng.uniform(0.1, 0.5, shape) * rng.choice([-1.0, 1.0], shape)
        is_norm_weight = "Norm" in type(owner).__name__ and "bias" not in leaf
        return away + 1.0 if is_norm_weight else away
    if isinstance(owner, Conv1D):
        fan_in = shape[0]
    elif isinstance(owner, nn.Embedding | nn.Linear) or len(shape) == 3:
        fan_in = shape[-1]
    else:
        fan_in = int(np.prod(shape[1:]))
    return rng.standard_normal(shape) * (1.5 / np.sqrt(fan_in))


# Files


def save(model: Any, folder: Path, dtype: str = "float32", max_shard_size: str | int = "50GB") -> Path:
    """Writes config.json and the weights as `save_pretrained` does, under the published names."""
    with quiet():
        copy.deepcopy(model).to(DTYPES[dtype]).save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def in_file(model: Any, tensors: Mapping[str, torch.Tensor | None]) -> dict[str, Array]:
    """Tensors keyed by the model's own names -> keyed and shaped as `save_pretrained` would write them.

    Renaming, splitting and tying are left to save_pretrained itself. Absent tensors travel as NaN and are dropped.
    """
    kept: dict[int, torch.Tensor] = {}
    storages: set[int] = set()
    state = {}
    for name, own in model.state_dict(keep_vars=True).items():
        if id(own) not in kept:
            value = tensors.get(name)
            value = torch.full(own.shape, torch.nan, dtype=torch.float64) if value is None else value
            # save_pretrained takes what shares memory for tied; two parameters' gradients may share it by chance.
            shared = value.untyped_storage().data_ptr() in storages
            kept[id(own)] = value.clone() if shared else value
            storages.add(kept[id(own)].untyped_storage().data_ptr())
        state[name] = kept[id(own)]
    with tempfile.TemporaryDirectory() as folder, quiet():
        config, generation = copy.deepcopy(model.config), copy.deepcopy(getattr(model, "generation_config", None))
        model.save_pretrained(folder, state_dict=state)
        model.config = config
        if generation is not None:
            model.generation_config = generation
        written = load_file(Path(folder) / "model.safetensors")
    out = {}
    for name, tensor in written.items():
        absent = int(torch.isnan(tensor).sum())
        if absent == 0:
            out[name] = tensor.numpy()
        elif absent < tensor.numel():
            raise ValueError(f"{name}: {absent} of {tensor.numel()} numbers of the reference are NaN or absent")
    return out


def names_in(folder: Path) -> set[str]:
    """Names of all tensors in the safetensors files of a directory."""
    names: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="np") as file:
            names |= set(file.keys())
    return names


def published_style(folder: Path) -> Callable[[str], str]:
    """config.json as published before transformers 5: rope_theta + rope_scaling, torch_dtype, no later fields."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    rope = dict(config.pop("rope_parameters"))
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    if rope["rope_type"] in ("linear", "dynamic"):
        rope["type"] = rope.pop("rope_type")  # the key of Llama-2's time
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.38.0"
    defaults = {"attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0, "pretraining_tp": 1}
    if config["head_dim"] * config["num_attention_heads"] == config["hidden_size"]:
        defaults["head_dim"] = config["head_dim"]
    for key, default in defaults.items():
        if config.get(key) == default:
            config.pop(key)
    path.write_text(json.dumps(config, indent=2))
    return lambda name: name


def gpt2_without_prefix(folder: Path) -> Callable[[str], str]:
    """GPT-2 as first published: no `transformer.`, causal masks `h.N.attn.bias` and `h.N.attn.masked_bias` inside."""
    config = json.loads((folder / "config.json").read_text())
    tensors = {_bare(name): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    size = config["n_positions"]
    for layer in range(config["n_layer"]):
        tensors[f"h.{layer}.attn.bias"] = torch.tril(torch.ones(1, 1, size, size))
        tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return _bare


def _bare(name: str) -> str:
    return name.removeprefix("transformer.")


def llama_with_inv_freq(folder: Path) -> Callable[[str], str]:
    """Llama as converted in 2023: `rotary_emb.inv_freq` in every layer. The values are wrong: they must be ignored."""
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    for layer in range(config["num_hidden_layers"]):
        tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.full((config["head_dim"] // 2,), 7.0)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return lambda name: name


# Running


@dataclass(frozen=True)
class Reference:
    """What the reference computed: outputs by transformers' names, the value differentiated, gradients by file names.

    Float inputs named in `wrt_inputs` have their gradients under their own names. A parameter that the value does not
    depend on has no entry. `loss` is None where nothing was differentiated.
    """

    outputs: dict[str, Array]
    loss: float | None = None
    grads: dict[str, Array] = field(default_factory=dict)


def run(
    model: Any,
    inputs: Mapping[str, Array],
    dtype: str = "float64",
    cotangents: Mapping[str, Array] | None = None,
    wrt_inputs: Sequence[str] = (),
    gradients: bool = True,
) -> Reference:
    """Runs forward and backward of `cotangents`' sum of R · output, else of the loss if labels are given.

    `dtype="float64"` is true float64; "float32" is transformers as it is.
    """
    # A copy, for dynamic RoPE keeps the longest length it saw, and a reference must have no memory.
    model = copy.deepcopy(model).to(DTYPES[dtype])
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in inputs.items()}
    tensors = {n: t.to(DTYPES[dtype]) if t.is_floating_point() else t for n, t in tensors.items()}
    for name in wrt_inputs:
        tensors[name].requires_grad_()
    with quiet(), true_float64() if dtype == "float64" else contextlib.nullcontext():
        result = model(**tensors)
        outputs = {name: value for name, value in result.items() if isinstance(value, torch.Tensor)}
        value = result.get("loss")
        if cotangents is not None:
            terms = [(torch.from_numpy(r).to(outputs[n]) * outputs[n]).sum() for n, r in cotangents.items()]
            value = torch.stack(terms).sum()
        if value is not None and gradients:
            value.backward()
    arrays = {name: output.detach().numpy() for name, output in outputs.items()}
    loss = None if value is None else value.item()
    if value is None or not gradients:
        return Reference(arrays, loss)
    grads = in_file(model, {name: p.grad for name, p in model.named_parameters()})
    grads |= {name: tensors[name].grad.numpy() for name in wrt_inputs}
    return Reference(arrays, loss, grads)


def generate(model: Any, input_ids: Array, max_new_tokens: int, **inputs: Any) -> Array:
    """transformers' greedy tokens, prompt included, in true float64."""
    return generate_with_logits(model, input_ids, max_new_tokens, **inputs)[0]


def generate_with_logits(model: Any, input_ids: Array, max_new_tokens: int, **inputs: Any) -> tuple[Array, Array]:
    """The tokens of `generate`, and the logits [steps, B, V] that each was chosen from."""
    arrays = {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for name, value in inputs.items()
    }
    with quiet(), true_float64(), torch.no_grad():
        found = copy.deepcopy(model).generate(
            torch.from_numpy(input_ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            **arrays,
        )
    return found.sequences.numpy(), torch.stack(found.logits).numpy()


# Comparing


@dataclass(frozen=True, order=True)
class Violation:
    """One array that is not the reference's: its relative error (infinite where there is none) and why."""

    error: float
    name: str
    why: str

    def __str__(self) -> str:
        return f"{self.error:9.1e}  {self.name}  {self.why}".rstrip()


def relative_error(ours: Array, ref: Array, largest: float = 0.0) -> float:
    """max|a−b| / max(max|b|, 1e-3 · largest): `largest` is the model's largest gradient, 0 for outputs."""
    if ref.size == 0:
        return 0.0
    scale = max(float(np.abs(ref).max()), 1e-3 * largest)
    difference = float(np.abs(np.asarray(ours, np.float64) - ref).max())
    if not np.isfinite(difference):
        return float("inf")
    return difference / scale if scale else (0.0 if difference == 0 else float("inf"))


def compare(ref: Mapping[str, Array], ours: Mapping[str, Any], bound: float, *, gradients: bool) -> list[Violation]:
    """All violations, worst first: missing and unexpected names, wrong shapes, errors above `bound`, NaN.

    For gradients the scale has the floor of `relative_error`; a reference that is itself not finite is an error here.
    """
    largest = max((float(np.abs(b).max()) for b in ref.values() if b.size), default=0.0) if gradients else 0.0
    if not np.isfinite(largest) or not all(np.isfinite(b).all() for b in ref.values()):
        raise ValueError("the reference itself is not finite")
    found = [Violation(float("inf"), name, "is missing") for name in ref.keys() - ours.keys()]
    found += [Violation(float("inf"), name, "is not in the reference") for name in ours.keys() - ref.keys()]
    for name in ref.keys() & ours.keys():
        a, b = np.asarray(ours[name]), ref[name]
        if a.shape != b.shape:
            found.append(Violation(float("inf"), name, f"has shape {a.shape}, the reference {b.shape}"))
        elif not (error := relative_error(a, b, largest)) <= bound:
            found.append(Violation(error, name, f"max|b| = {np.abs(b).max():.1e}"))
    return sorted(found, key=lambda v: (-v.error, v.name))


def assert_same(ref: Mapping[str, Array], ours: Mapping[str, Any], bound: float, *, gradients: bool) -> None:
    """Raises AssertionError listing all violations, worst first."""
    found = compare(ref, ours, bound, gradients=gradients)
    kind = "gradients" if gradients else "outputs"
    lines = "\n".join(map(str, found[:40]))
    assert not found, f"{len(found)} of {len(ref)} {kind} differ by more than {bound:g}:\n{lines}"
