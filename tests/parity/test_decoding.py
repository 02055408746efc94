"""Every step of cached decoding against transformers: logits, under paddings and rotations that change with length."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the reference needs torch: make parity")
pytest.importorskip("transformers", reason="the reference needs transformers: make parity")

from tensorgraph.models import from_pretrained
from tensorgraph.models.generate import Session

from . import reference as R
from . import test_families
from .configs import CONFIGS

ALL = {**test_families.CONFIGS, **CONFIGS}
STEPS = 9
# Masks [2, 8]. The trained length of the dynamic and longrope configurations is 5: some prompts begin below it, some
# cross it while they go on, some begin beyond it though all their rows are padded.
PADDINGS = {
    "none": [[1] * 8, [1] * 8],
    "left": [[0] * 2 + [1] * 6, [1] * 8],
    "left-all-rows": [[0] * 2 + [1] * 6, [0] * 1 + [1] * 7],
    "left-below": [[0] * 5 + [1] * 3, [0] * 4 + [1] * 4],
    "left-at": [[0] * 3 + [1] * 5, [0] * 6 + [1] * 2],
    "right": [[1] * 6 + [0] * 2, [1] * 8],
    "holes": [[1, 1, 0, 1, 1, 0, 1, 1], [0, 1, 1, 1, 0, 1, 1, 1]],
}
NAMES = ["gpt2-untied", "llama-grouped", "llama-dynamic", "phi3-longrope-long"]


@pytest.fixture(scope="module", params=NAMES)
def pair(request, tmp_path_factory) -> tuple[Any, Any, int]:
    config = ALL[request.param]
    model = R.build(config.cls, config.settings, config.seed)
    folder = R.save(model, tmp_path_factory.mktemp(request.param))
    return model, from_pretrained(folder, dtype="float64"), config.settings["vocab_size"]


@pytest.mark.parametrize("padding", PADDINGS)
def test_logits_of_every_step(padding, pair, monkeypatch):
    # A model object of transformers remembers the longest text it has seen and rotates later, shorter ones by that:
    # the reference is a fresh copy each time.
    model, net, V = pair
    ids = np.random.default_rng(1).integers(3, V, (2, 8))
    mask = np.array(PADDINGS[padding])
    tokens, logits = R.generate_with_logits(model, ids, STEPS, attention_mask=mask)
    made = []
    feed = Session.feed
    monkeypatch.setattr(Session, "feed", lambda *a, **k: made.append(feed(*a, **k)) or made[-1])
    np.testing.assert_array_equal(net.generate(ids, max_new_tokens=STEPS, attention_mask=mask), tokens)
    R.assert_same({"logits": logits}, {"logits": np.stack(made)}, 1e-9, gradients=False)
