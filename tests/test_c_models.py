"""Every published architecture, small: loss and every gradient in C are those of NumPy, in float64."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest

import tensorgraph as tg
from tensorgraph import autodiff
from tensorgraph.backends import cpu
from tensorgraph.cli.check import scalar, small_images
from tensorgraph.cli.target import open_target
from tensorgraph.gradcheck.sampling import sample_values, small_sizes
from tensorgraph.graph import Graph
from tensorgraph.models import build, presets

pytestmark = pytest.mark.skipif(cpu.compiler() is None, reason="no C compiler")

FAST = ("gpt2", "llama-3.2-1b", "mixtral-8x7b", "mini-268")
LAYERS = ("num_hidden_layers", "num_global_layers", "n_layer")
FITTING = {  # what must fit a depth of two; and an id that a small vocabulary has
    "first_k_dense_replace": 1, "intermediate_layers_indices": [0, 1], "cross_attention_layers": [1],
    "vision_output_dim": 3840, "cross_layer_interval": 1, "resampler_depth": 2, "image_token_index": 1,
    "image_token_id": 1,
}  # fmt: skip


def shallow(config):
    """The same config, two layers deep in all its parts."""
    config = copy.deepcopy(dict(config))
    stack = [config]
    while stack:
        part = stack.pop()
        stack += [v for v in part.values() if isinstance(v, dict)]
        part.update({k: min(2, part[k]) for k in LAYERS if k in part})
        part.update({k: v for k, v in FITTING.items() if k in part})
    return config


def loss_and_gradients(name):
    """The loss of a preset, and its gradient in every parameter, in float64."""
    target = open_target(name, None, None)
    config = shallow(target.config)
    target = small_images(replace(target, config=config, module=build(config)))[0]
    graph = scalar(target).astype("float64")
    loss = tg.mean(next(iter(graph.outputs.values())))
    found = autodiff.grad(loss, list(graph.params.values()), unused="none")
    return {"loss": loss} | {n: g for n, g in zip(graph.params, found, strict=True) if g is not None}


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in presets.names()])
def test_loss_and_every_gradient(name):
    outputs = loss_and_gradients(name)
    graph = Graph(outputs)
    sizes = small_sizes(graph)
    values = {t.label: a for t, a in sample_values(graph, sizes, np.random.default_rng(0)).items()}
    want, have = (tg.compile(outputs, backend=b, binding=sizes)(**values) for b in ("numpy", "c"))
    assert len(outputs) > 5 or name.startswith("mini")
    scale = max(float(np.max(np.abs(a))) for a in want.values())
    for n in outputs:
        assert np.isfinite(want[n]).all(), n
        np.testing.assert_allclose(have[n], want[n], rtol=1e-12, atol=1e-12 * scale, err_msg=n)
    assert sum(bool(np.any(a)) for a in want.values()) > len(want) // 2, "most gradients are not zero"
