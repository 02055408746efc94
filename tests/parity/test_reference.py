"""The reference is itself tested: it is true float64, it names gradients as the file does, and it notices faults."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the reference needs torch: make parity")
pytest.importorskip("transformers", reason="the reference needs transformers: make parity")

import torch

from . import reference as R
from .configs import BATCHES, CONFIGS, inputs

SAMPLE = ["gpt2-tied", "gpt2-reordered", "llama-everything", "llama-yarn", "mistral-window", "qwen2-tied"]


def case(name, batch="plain"):
    config = CONFIGS[name]
    model = R.build(config.cls, config.settings, config.seed)
    return model, inputs(BATCHES[batch], config.settings["vocab_size"], config.seed)


def loss_of(model, arrays, **options):
    tensors = {name: torch.from_numpy(value) for name, value in arrays.items()}
    with R.quiet(), R.true_float64(**options), torch.no_grad():
        return model(**tensors).loss.item()


def directional_error(model, arrays, **options):
    """Relative difference between ⟨gradient, u⟩ and the fourth-order central difference along ±1 directions u."""
    tensors = {name: torch.from_numpy(value) for name, value in arrays.items()}
    parameters = list(model.parameters())
    rng = np.random.default_rng(5)
    directions = [torch.from_numpy(rng.choice([-1.0, 1.0], tuple(p.shape))) for p in parameters]
    with R.quiet(), R.true_float64(**options):
        loss = model(**tensors).loss
        slope = sum((g * u).sum() for g, u in zip(torch.autograd.grad(loss, parameters), directions, strict=True))
    h, values = 2e-5, {}  # times the direction's length, √(number of parameters), 2e-3
    for step in (-2, -1, 1, 2):
        with torch.no_grad():
            for p, u in zip(parameters, directions, strict=True):
                p += step * h * u
        values[step] = loss_of(model, arrays, **options)
        with torch.no_grad():
            for p, u in zip(parameters, directions, strict=True):
                p -= step * h * u
    numeric = (8 * (values[1] - values[-1]) - (values[2] - values[-2])) / (12 * h)
    return abs(numeric - slope.item()) / abs(slope.item())


@pytest.mark.parametrize("name", ["gpt2-tied", "llama-everything", "qwen2-tied"])
def test_central_differences_see_double_precision(name):
    # Rounding gives about 1e-16/h, truncation h⁴ times a fifth derivative; one cast to float32 gives 1e-7/h.
    model, arrays = case(name)
    assert directional_error(model, arrays) < 1e-9
    assert directional_error(model, arrays, patch=False, strict=False) > 1e-6


@pytest.mark.parametrize("name", SAMPLE)
def test_casts_left_in_are_refused(name):
    model, arrays = case(name)
    with pytest.raises(R.LostPrecision, match="float32"):
        loss_of(model, arrays, patch=False)


def test_torch_is_left_as_it_was():
    single, method, default = torch.float32, torch.Tensor.float, torch.get_default_dtype()
    with contextlib.suppress(ZeroDivisionError), R.true_float64():
        assert torch.zeros(1).float().dtype is torch.float32 is torch.float is torch.float64
        raise ZeroDivisionError
    assert (torch.float32, torch.float, torch.Tensor.float, torch.get_default_dtype()) == (
        single,
        single,
        method,
        default,
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_are_redrawn(name):
    model, _ = case(name)
    tied = model.config.tie_word_embeddings
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
    for key, tensor in model.state_dict().items():
        assert tensor.dtype is torch.float64
        assert torch.equal(tensor, tensor.float().double()), f"{key} is not exact in float32"
        if tensor.ndim == 1:
            assert (tensor.abs() > 0.09).all(), key
            assert ((tensor - 1).abs() > 0.09).all() or "bias" in key, key
        assert tensor.numel() == 1 or tensor.unique().numel() > tensor.numel() // 2


@pytest.mark.parametrize("name", SAMPLE)
def test_the_file_gives_the_same_back(name, tmp_path: Path):
    model, arrays = case(name)
    ref = R.run(model, arrays)
    again = R.run(R.load(R.save(model, tmp_path)), arrays)
    R.assert_same(ref.outputs, again.outputs, 0.0, gradients=False)
    R.assert_same(ref.grads, again.grads, 0.0, gradients=True)
    assert set(ref.grads) == R.names_in(tmp_path)


MIXTRAL = {
    "vocab_size": 41, "hidden_size": 48, "intermediate_size": 29, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2,
}  # fmt: skip


def test_fused_parameters_are_split_as_in_the_file(tmp_path: Path):
    # In memory the experts of a layer are one tensor; the file has one per expert, under another name.
    model = R.build("MixtralForCausalLM", MIXTRAL, 3)
    arrays = inputs(BATCHES["plain"], 41, 3)
    ref = R.run(model, arrays)
    R.save(model, tmp_path, "float64")
    assert set(ref.grads) == R.names_in(tmp_path)
    name = "model.layers.1.block_sparse_moe.experts.2.w1.weight"
    written = R.in_file(model, dict(model.named_parameters()))
    assert ref.grads[name].shape == written[name].shape == (29, 48)
    # ⟨gradient, weight⟩ does not depend on how either is laid out, if both are laid out alike.
    direct = sum((p.grad * p).sum().item() for p in _with_grads(model, arrays).parameters())
    assert sum((ref.grads[n] * written[n]).sum() for n in written) == pytest.approx(direct, rel=1e-12)


def _with_grads(model, arrays):
    with R.quiet(), R.true_float64():
        model(**{name: torch.from_numpy(value) for name, value in arrays.items()}).loss.backward()
    return model


def test_parameters_without_a_gradient_have_no_entry():
    model, arrays = case("llama-grouped")
    model.model.layers[0].requires_grad_(False)
    names = set(R.run(model, arrays).grads)
    assert not any(name.startswith("model.layers.0.") for name in names)
    assert "model.layers.1.mlp.up_proj.weight" in names


def test_cotangents_and_float_inputs():
    model, arrays = case("gpt2-tied", "no-labels")
    embeds = model.transformer.wte.weight[torch.from_numpy(arrays["input_ids"])].detach().numpy()
    cotangent = np.random.default_rng(0).standard_normal((5, 7, 37))
    by_ids = R.run(model, arrays, cotangents={"logits": cotangent})
    ref = R.run(model, {"inputs_embeds": embeds}, cotangents={"logits": cotangent}, wrt_inputs=["inputs_embeds"])
    assert ref.loss == pytest.approx((ref.outputs["logits"] * cotangent).sum(), rel=1e-12)
    scattered = np.zeros((37, 15))
    np.add.at(scattered, arrays["input_ids"].ravel(), ref.grads["inputs_embeds"].reshape(-1, 15))
    head = ref.grads["transformer.wte.weight"]  # without ids, the tied table is used by the head alone
    np.testing.assert_allclose(by_ids.grads["transformer.wte.weight"], scattered + head, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "key", ["transformer.h.1.attn.c_attn.bias", "transformer.h.0.mlp.c_fc.bias", "transformer.ln_f.bias"]
)
def test_a_dropped_bias_is_found(key):
    model, arrays = case("gpt2-tied")
    ref = R.run(model, arrays)
    model.get_parameter(key).data.zero_()
    mutant = R.run(model, arrays)
    assert [v.name for v in R.compare(ref.outputs, mutant.outputs, 1e-5, gradients=False)]
    assert len(R.compare(ref.grads, mutant.grads, 1e-4, gradients=True)) > 10


def test_comparison_lists_everything_worst_first():
    ref = {"a": np.ones((2, 3)), "b": np.array([1e-9, 2.0]), "tiny": np.zeros(3), "c": np.ones(2), "d": np.ones(2)}
    ours = {
        "a": np.ones((3, 2)),
        "b": np.array([1e-9, 2.0 + 1e-8]),
        "tiny": np.full(3, 1e-13),
        "c": np.array([1.0, np.nan]),
        "e": np.ones(1),
    }
    found = R.compare(ref, ours, 1e-9, gradients=True)
    assert [v.name for v in found] == ["a", "c", "d", "e", "b"]
    assert [v.why.split()[0] for v in found[:4]] == ["has", "max|b|", "is", "is"]
    assert found[-1].error == pytest.approx(5e-9)
    # Without the floor of the largest gradient, an exact zero must be met exactly.
    assert R.compare(ref, ours, 1e-9, gradients=False)[-1].name == "b"
    assert "tiny" in [v.name for v in R.compare(ref, ours, 1e-9, gradients=False)]
    with pytest.raises(AssertionError, match="5 of 5 gradients differ by more than 1e-09"):
        R.assert_same(ref, ours, 1e-9, gradients=True)
    with pytest.raises(ValueError, match="not finite"):
        R.compare({"a": np.array([np.nan])}, {"a": np.array([np.nan])}, 1.0, gradients=False)


def test_rows_that_see_no_key_average_all_values():
    # The reference adds the most negative finite number to every score: all are equal, the future included.
    model, arrays = case("llama-grouped", "left")
    pad_rows = arrays["attention_mask"] == 0
    changed = dict(arrays, input_ids=arrays["input_ids"].copy())
    changed["input_ids"][:, -1] = (changed["input_ids"][:, -1] + 1) % 41
    before, after = R.run(model, arrays), R.run(model, changed)
    moved = np.abs(before.outputs["logits"] - after.outputs["logits"]).max(-1) > 1e-6
    assert moved[pad_rows].all()
    assert not moved[:, :-1][~pad_rows[:, :-1]].any()


def test_positions_are_not_derived_from_the_mask():
    model, arrays = case("gpt2-tied", "left")
    counted = np.tile(np.arange(7), (5, 1))
    default, given = R.run(model, arrays), R.run(model, dict(arrays, position_ids=counted))
    assert np.array_equal(default.outputs["logits"], given.outputs["logits"])
