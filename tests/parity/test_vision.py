"""Encoders of images and models that see against transformers: outputs, loss, every gradient, what is saved."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch", reason="the reference needs torch: make parity")
pytest.importorskip("transformers", reason="the reference needs transformers: make parity")

from safetensors.torch import load_file, save_file

from tensorgraph.errors import DataError
from tensorgraph.models import Net, digits, from_pretrained, llava

from . import reference as R
from .configs_vision import LEFT, VISION, arrays_of
from .parity import BOUNDS, Suite


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> Suite:
    return Suite(VISION, lambda name: tmp_path_factory.mktemp(name))


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("name", VISION)
def test_outputs_loss_and_gradients(name, dtype, suite):
    suite.check(name, dtype)


SAVED = [
    ("vit-oblong", "AutoModel"),
    ("classify-numbers", "AutoModelForImageClassification"),
    ("clip-pairs", "AutoModel"),
    ("siglip", "SiglipVisionModel"),
    ("llava", "AutoModelForImageTextToText"),
    ("deepseek-vl", "AutoModelForImageTextToText"),
    ("paligemma", "AutoModelForImageTextToText"),
    ("idefics-norms", "AutoModelForImageTextToText"),
    ("mllama", "AutoModelForImageTextToText"),
]


@pytest.mark.parametrize(("name", "auto"), SAVED)
def test_what_is_saved_is_read_back(name, auto, suite, tmp_path):
    suite.net(name, "float32").save_pretrained(tmp_path)
    again = R.run(R.load(tmp_path, auto), arrays_of(VISION[name]), gradients=False)
    R.assert_same(suite.reference(name)[0].outputs, again.outputs, 0.0, gradients=False)


# Names that published files have and transformers 5 does not write: the tower's own prefix; and those that versions
# between wrote.
AGES = {
    "published": (("vision_tower.", "vision_tower.vision_model."),),
    "between": (
        ("language_model.model.", "model.language_model."),
        ("language_model.lm_head.", "lm_head."),
        ("vision_tower.", "model.vision_tower.vision_model."),
        ("multi_modal_projector.", "model.multi_modal_projector."),
    ),
}


@pytest.mark.parametrize("age", AGES)
@pytest.mark.parametrize("name", ["llava", "paligemma"])
def test_names_of_other_versions(name, age, suite, tmp_path):
    R.save(suite.model(name), tmp_path)

    def rename(own: str) -> str:
        for start, other in AGES[age]:
            if own.startswith(start):
                return other + own.removeprefix(start)
        return own

    file = tmp_path / "model.safetensors"
    save_file({rename(n): t for n, t in load_file(file).items()}, file, metadata={"format": "pt"})
    ref, net = suite.reference(name)[0], from_pretrained(tmp_path, dtype="float64")
    _, grads = net.value_and_grad(**arrays_of(VISION[name]), wrt_inputs=("pixel_values",))
    R.assert_same({rename(n): g for n, g in ref.grads.items()}, grads, 1e-9, gradients=True)


def test_image_tokens_are_counted(suite):
    arrays = arrays_of(VISION["llava"])
    with pytest.raises(DataError) as e:
        suite.net("llava", "float32")(**arrays | {"pixel_values": arrays["pixel_values"][:3].astype("float32")})
    assert str(e.value) == (
        "[TG513] input_ids hold 16 image tokens (38), and the images have 12 positions\n  hint: each image takes 4"
    )


SEEING = ("LlavaFor", "DeepseekVL", "PaliGemma", "Idefics", "Mllama")
GENERATING = {name: case for name, case in VISION.items() if case.cls.startswith(SEEING)}
# Where the first layer is one of cross-attention, the reference counts the image's positions as the text's.
GENERATING["mllama-left"] = replace(VISION["mllama"], text=LEFT)


@pytest.fixture(scope="module")
def generating(tmp_path_factory) -> Suite:
    return Suite(GENERATING, lambda name: tmp_path_factory.mktemp(f"generating-{name}"))


@pytest.mark.parametrize("name", GENERATING)
def test_greedy_tokens(name, generating):
    # Prompts are padded on the left or not at all; elsewhere the next token would follow padding.
    arrays = {n: a for n, a in arrays_of(GENERATING[name]).items() if n not in ("labels", "position_ids")}
    if GENERATING[name].text.padding != "left":
        arrays.pop("attention_mask", None)
    ref = R.generate(generating.model(name), **arrays, max_new_tokens=7)
    np.testing.assert_array_equal(generating.net(name, "float64").generate(**arrays, max_new_tokens=7), ref)


def test_the_digits_checkpoint_is_llavas(tmp_path):
    net = Net(llava.build(digits.CONFIG), digits.CONFIG, tokenizer=digits.tokenizer()).init(1)
    net.save_pretrained(tmp_path)
    words = net.tokenizer.encode("which digit is on the left")
    ids = [digits.IMAGE] * digits.PATCHES + words
    arrays = {"input_ids": np.array([ids] * 2), "pixel_values": np.random.default_rng(0).random((2, 1, 20, 20))}
    model, ours = R.load(tmp_path, "AutoModelForImageTextToText"), from_pretrained(tmp_path, dtype="float64")
    R.assert_same(R.run(model, arrays, gradients=False).outputs, ours(**arrays), 1e-9, gradients=False)
    ref = R.generate(model, **arrays, max_new_tokens=4)
    np.testing.assert_array_equal(ours.generate(**arrays, max_new_tokens=4), ref)
