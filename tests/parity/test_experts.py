"""Mixtures of experts and latent attention against transformers: outputs, loss, every gradient, greedy tokens."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the reference needs torch: make parity")
pytest.importorskip("transformers", reason="the reference needs transformers: make parity")

from tensorgraph.models import from_pretrained

from . import reference as R
from .configs import BATCHES, Batch, inputs
from .configs_families import EXPERTS as CONFIGS
from .configs_families import PLAIN

CASES = [(name, batch) for name, config in CONFIGS.items() for batch in config.batches]
BOUNDS = {"float64": (1e-9, 1e-9), "float32": (1e-5, 1e-4)}


@functools.cache
def model_of(name: str) -> Any:
    config = CONFIGS[name]
    return R.build(config.cls, config.settings, config.seed)


@functools.cache
def reference_of(name: str, batch: str) -> R.Reference:
    return R.run(model_of(name), inputs_of(name, BATCHES[batch]))


def inputs_of(name: str, batch: Batch) -> dict[str, R.Array]:
    return inputs(batch, CONFIGS[name].settings["vocab_size"], CONFIGS[name].seed)


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    return functools.cache(lambda name: R.save(model_of(name), tmp_path_factory.mktemp(name, numbered=False)))


@pytest.fixture(scope="session")
def net_of(folder_of):
    return functools.cache(lambda name, dtype: from_pretrained(folder_of(name), dtype=dtype))


def check(net: Any, arrays: dict[str, Any], ref: R.Reference, dtype: str) -> set[str]:
    output_bound, grad_bound = BOUNDS[dtype]
    R.assert_same(ref.outputs, net(**arrays), output_bound, gradients=False)
    loss, grads = net.value_and_grad(**arrays)
    R.assert_same({"loss": np.array(ref.loss)}, {"loss": np.asarray(loss)}, output_bound, gradients=False)
    R.assert_same(ref.grads, grads, grad_bound, gradients=True)
    return set(grads)


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize(("name", "batch"), CASES)
def test_outputs_loss_and_gradients(name, batch, dtype, net_of, folder_of):
    net = net_of(name, dtype)
    trained = check(net, inputs_of(name, BATCHES[batch]), reference_of(name, batch), dtype)
    assert set(net.state) == R.names_in(folder_of(name))
    assert {n for n in net.state if "e_score_correction_bias" not in n} == trained


def test_the_loss_that_balances_experts_is_there_if_asked_for(net_of):
    for batch in PLAIN:
        arrays = inputs_of("mixtral", BATCHES[batch]) | {"output_router_logits": True}
        result = with_flag(model_of("mixtral"), arrays)
        assert "aux_loss" in result.outputs
        check(net_of("mixtral", "float64"), arrays, result, "float64")
    assert "aux_loss" not in net_of("mixtral", "float64")(**inputs_of("mixtral", BATCHES["plain"]))


def with_flag(model: Any, arrays: dict[str, Any]) -> R.Reference:
    """`run` with a flag, which is no array."""
    own, model.config.output_router_logits = model.config.output_router_logits, True
    try:
        return R.run(model, {n: a for n, a in arrays.items() if a is not True})
    finally:
        model.config.output_router_logits = own


@pytest.mark.parametrize(("B", "T", "padding"), [(1, 3, "none"), (3, 6, "left")])
@pytest.mark.parametrize("name", [n for n, c in CONFIGS.items() if not c.settings.get("output_router_logits")])
def test_greedy_tokens(name, B, T, padding, net_of):
    batch = replace(BATCHES["no-labels"], B=B, T=T, padding=padding)
    arrays = inputs_of(name, batch)
    ref = R.generate(model_of(name), **arrays, max_new_tokens=9)
    np.testing.assert_array_equal(net_of(name, "float64").generate(**arrays, max_new_tokens=9), ref)


@pytest.mark.parametrize("name", ["mixtral", "v2-groups", "v3"])
def test_what_is_saved_is_read_back(name, net_of, tmp_path):
    net, arrays = net_of(name, "float32"), inputs_of(name, BATCHES["plain"])
    net.save_pretrained(tmp_path)
    again = R.run(R.load(tmp_path), arrays)
    R.assert_same(reference_of(name, "plain").outputs, again.outputs, 0.0, gradients=False)
    R.assert_same(reference_of(name, "plain").grads, again.grads, 0.0, gradients=True)
