"""The families that differ from Llama by flags, against transformers: outputs, loss, every gradient, greedy tokens."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="the reference needs torch: make parity")
pytest.importorskip("transformers", reason="the reference needs transformers: make parity")

from .configs import BATCHES
from .configs_families import FAMILIES as CONFIGS
from .parity import BOUNDS, Texts

CASES = [(name, batch) for name, config in CONFIGS.items() for batch in config.batches]


@pytest.fixture(scope="session")
def texts(tmp_path_factory) -> Texts:
    return Texts(CONFIGS, lambda name: tmp_path_factory.mktemp(name))


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize(("name", "batch"), CASES)
def test_outputs_loss_and_gradients(name, batch, dtype, texts):
    net = texts.net(name, dtype)
    trained = texts.check(net, texts.inputs(name, BATCHES[batch]), texts.reference(name, batch), dtype)
    assert set(net.state) == trained


@pytest.mark.parametrize(("B", "T", "padding"), [(1, 3, "none"), (3, 6, "left")])
@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_tokens(name, B, T, padding, texts):
    texts.check_greedy(name, B, T, padding)


@pytest.mark.parametrize("name", ["gemma2", "phi3-window", "qwen3"])
def test_what_is_saved_is_read_back(name, texts, tmp_path):
    texts.check_saved(name, tmp_path)
