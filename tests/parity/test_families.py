"""The families that differ from Llama by flags, against transformers: outputs, loss, every gradient, greedy tokens."""

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
from .configs_families import FAMILIES as CONFIGS

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
def net_of(tmp_path_factory):
    @functools.cache
    def net(name: str, dtype: str) -> Any:
        folder = tmp_path_factory.mktemp(f"{name}-{dtype}", numbered=False)
        return from_pretrained(R.save(model_of(name), folder), dtype=dtype)

    return net


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize(("name", "batch"), CASES)
def test_outputs_loss_and_gradients(name, batch, dtype, net_of):
    arrays, ref, net = inputs_of(name, BATCHES[batch]), reference_of(name, batch), net_of(name, dtype)
    output_bound, grad_bound = BOUNDS[dtype]
    R.assert_same(ref.outputs, net(**arrays), output_bound, gradients=False)
    loss, grads = net.value_and_grad(**arrays)
    R.assert_same({"loss": np.array(ref.loss)}, {"loss": np.asarray(loss)}, output_bound, gradients=False)
    R.assert_same(ref.grads, grads, grad_bound, gradients=True)
    assert set(net.state) == set(grads)


@pytest.mark.parametrize(("B", "T", "padding"), [(1, 3, "none"), (3, 6, "left")])
@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_tokens(name, B, T, padding, net_of):
    batch = replace(BATCHES["no-labels"], B=B, T=T, padding=padding)
    arrays = inputs_of(name, batch)
    ref = R.generate(model_of(name), **arrays, max_new_tokens=9)
    np.testing.assert_array_equal(net_of(name, "float64").generate(**arrays, max_new_tokens=9), ref)


@pytest.mark.parametrize("name", ["gemma2", "phi3-window", "qwen3"])
def test_what_is_saved_is_read_back(name, net_of, tmp_path):
    net, arrays = net_of(name, "float32"), inputs_of(name, BATCHES["plain"])
    net.save_pretrained(tmp_path)
    again = R.run(R.load(tmp_path), arrays)
    R.assert_same(reference_of(name, "plain").outputs, again.outputs, 0.0, gradients=False)
    R.assert_same(reference_of(name, "plain").grads, again.grads, 0.0, gradients=True)
