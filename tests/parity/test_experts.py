"""Mixtures of experts and latent attention against transformers: outputs, loss, every gradient, greedy tokens."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch", reason="the reference needs torch: make parity")
pytest.importorskip("transformers", reason="the reference needs transformers: make parity")

from . import reference as R
from .configs import BATCHES
from .configs_families import EXPERTS as CONFIGS
from .configs_families import PLAIN
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
    assert set(net.state) == R.names_in(texts.folder(name))
    assert {n for n in net.state if "e_score_correction_bias" not in n} == trained


def test_the_loss_that_balances_experts_is_there_if_asked_for(texts):
    net = texts.net("mixtral", "float64")
    for batch in PLAIN:
        arrays = texts.inputs("mixtral", BATCHES[batch]) | {"output_router_logits": True}
        result = with_flag(texts.model("mixtral"), arrays)
        assert "aux_loss" in result.outputs
        texts.check(net, arrays, result, "float64")
    assert "aux_loss" not in net(**texts.inputs("mixtral", BATCHES["plain"]))


def with_flag(model: Any, arrays: dict[str, Any]) -> R.Reference:
    """`run` with a flag, which is no array."""
    own, model.config.output_router_logits = model.config.output_router_logits, True
    try:
        return R.run(model, {n: a for n, a in arrays.items() if a is not True})
    finally:
        model.config.output_router_logits = own


@pytest.mark.parametrize(("B", "T", "padding"), [(1, 3, "none"), (3, 6, "left")])
@pytest.mark.parametrize("name", [n for n, c in CONFIGS.items() if not c.settings.get("output_router_logits")])
def test_greedy_tokens(name, B, T, padding, texts):
    texts.check_greedy(name, B, T, padding)


@pytest.mark.parametrize("name", ["mixtral", "v2-groups", "v3"])
def test_what_is_saved_is_read_back(name, texts, tmp_path):
    texts.check_saved(name, tmp_path)
