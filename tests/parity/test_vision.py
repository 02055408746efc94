"""Encoders of images and models that see against transformers: outputs, loss, every gradient, what is saved."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="the reference needs torch: make parity")
pytest.importorskip("transformers", reason="the reference needs transformers: make parity")

from . import reference as R
from .configs_vision import VISION, arrays_of
from .parity import BOUNDS, Suite


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> Suite:
    return Suite(VISION, lambda name: tmp_path_factory.mktemp(name, numbered=False))


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("name", VISION)
def test_outputs_loss_and_gradients(name, dtype, suite):
    suite.check(name, dtype)


SAVED = [("vit-oblong", "AutoModel"), ("classify-numbers", "AutoModelForImageClassification")]


@pytest.mark.parametrize(("name", "auto"), SAVED)
def test_what_is_saved_is_read_back(name, auto, suite, tmp_path):
    suite.net(name, "float32").save_pretrained(tmp_path)
    again = R.run(R.load(tmp_path, auto), arrays_of(VISION[name]), gradients=False)
    R.assert_same(suite.reference(name)[0].outputs, again.outputs, 0.0, gradients=False)
