"""The digits: canvases say what they show, no stage sees a held-out digit, frozen tensors stay, all of it learns."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from tensorgraph.cli.digits import run
from tensorgraph.models import digits, from_pretrained, modes
from tensorgraph.models.digits import ID, NOTHING, QUESTIONS, Data, Digits, Run, Stage

PLAIN = Digits(np.stack([np.full((8, 8), (i + 1) / 10, np.float32) for i in range(10)]), np.arange(10))
FEW = (Stage("words", digits.LLM, 25, 4e-3), Stage("bridge", "bridge-only", 3, 3e-3))


def test_no_held_out_digit_is_among_those_to_train_on():
    pytest.importorskip("sklearn")
    parts = digits.load()
    assert [len(part.numbers) for part in parts] == [1257, 180, 360]
    assert parts.train.images.dtype == np.float32 and 0 <= parts.train.images.min() < parts.train.images.max() == 1
    assert all(set(part.numbers) == set(range(10)) for part in parts)
    for a, b in itertools.combinations(parts, 2):
        assert not {x.tobytes() for x in a.images} & {x.tobytes() for x in b.images}


def test_a_canvas_shows_its_numbers_from_left_to_right():
    made = digits.paste(PLAIN, np.array([1, 2] * 50), np.random.default_rng(0))
    assert made.pixels.shape == (100, 1, 20, 20) and made.patches.shape == (100, 25)
    for pixels, numbers, patches in zip(made.pixels[:, 0], made.numbers, made.patches, strict=True):
        columns = [np.flatnonzero((np.round(pixels * 10) == n + 1).any(0)) for n in numbers]
        assert [np.ptp(c) + 1 for c in columns] == [8] * len(numbers) or numbers[0] == numbers[-1]
        assert all(a.max() < b.min() for a, b in itertools.pairwise(columns)) or numbers[0] == numbers[-1]
        assert set(patches) <= {*numbers, NOTHING} and set(patches) >= set(numbers)
    corners = {tuple(np.argwhere(p)[0]) for p in made.pixels[::2, 0]}
    assert len(corners) > 30  # anywhere


def test_a_prompt_ends_in_what_is_asked_and_only_the_answer_is_learned():
    for prompts, answers in (
        digits.told(list(QUESTIONS) * 20, np.random.default_rng(0)),
        digits.seen(PLAIN, list(QUESTIONS) * 20, np.random.default_rng(0))[1:],
    ):
        made = digits.rows(prompts, answers)
        for prompt, answer, ids, labels in zip(prompts, answers, *made.values(), strict=True):
            assert prompt.split()[-1] in ("this", "left", "right")
            words = [digits.WORDS[i] for i in ids]
            end = len(prompt.split())
            assert words[end : end + 2] == [answer, "<end>"] and set(words[end + 2 :]) <= {"<pad>"}
            assert (
                labels[end : end + 2].tolist() == [ID[answer], ID["<end>"]]
                and (np.delete(labels, [end, end + 1]) == -100).all()
            )
            if "left" in prompt and "<image>" not in prompt:
                side = prompt.split()[-1]
                assert f"{side} {answer}" in prompt


def test_stages_see_no_held_out_digit_and_leave_frozen_tensors_alone():
    """Nor does what is said of progress: they are asked about when all stages are done."""
    watched, held = Digits(PLAIN.images + 5, PLAIN.numbers), Digits(PLAIN.images + 9, PLAIN.numbers)
    run = Run(Data(PLAIN, watched, held), seed=3, stages=FEW, batch=8, asked=5, backend="numpy")
    fed, asked = [], []
    batch, ask = run._batch, run.ask
    run._batch = lambda *given: fed.append(batch(*given)) or fed[-1]
    run.ask = lambda about, *given, **more: asked.append((about is held, len(done))) or ask(about, *given, **more)
    before, done = dict(run.net.state), []
    for p in run.run():
        done.append(p)
    assert asked == [(False, 25), (False, 26), (False, 27), (True, 28), (True, 28)]
    assert [(p.stage, p.step) for p in done] == [(s, i) for s in FEW for i in range(1, s.steps + 1)]
    assert max(b["pixel_values"].max() for b in fed if "pixel_values" in b) == 1.0
    assert not any("pixel_values" in b for b in fed[:25])  # the language model learns from texts alone
    assert np.mean([p.loss for p in done[20:25]]) < 0.8 * done[0].loss
    result = run.results["bridge-only"]
    moved = {n for n, a in run.net.state.items() if not np.array_equal(a, before[n])}
    text, bridge = ({n for n in before if n.startswith(p)} for p in ("language_model.", "multi_modal_projector."))
    assert bridge < moved <= bridge | text
    assert (result.kept, result.moved) == (len(before) - len(bridge), 0)
    assert set(result.right) == set(result.blank) == set(QUESTIONS)
    assert done[-1].accuracy is not None and 0 <= done[-1].accuracy <= 1


def test_encoder_learns_from_patches_alone():
    run = Run(Data(PLAIN, PLAIN, PLAIN), stages=(Stage("digits", digits.VISION, 4, 5e-3),), batch=4, backend="numpy")
    assert set(run._batch(run.stages[0], np.random.default_rng(0))) == {"pixel_values", "patches"}
    before = dict(run.net.state)
    list(run.run())
    moved = {n for n, a in run.net.state.items() if not np.array_equal(a, before[n])}
    assert moved and all(n.startswith("vision_tower.") for n in moved)


@pytest.mark.slow
def test_all_stages_learn_and_are_written(tmp_path):
    """With a third of the steps: far above blank images after stage 1, no worse after stage 2."""
    pytest.importorskip("sklearn")
    short = tuple(replace(s, steps=s.steps // 3) for s in digits.STAGES)
    done = run(Console(quiet=True), tmp_path, stages=short)
    bridge, every = done["results"]["bridge-only"], done["results"][modes.ALL]
    assert bridge["accuracy"] > np.mean(list(bridge["blank"].values())) + 0.3
    assert every["accuracy"] >= bridge["accuracy"] and bridge["moved"] == 0 and done["weights"] < 1_000_000
    net = from_pretrained(tmp_path)
    ids = [[digits.IMAGE] * digits.PATCHES + net.tokenizer.encode("what digit is this")]
    said = net.generate(ids, 3, pixel_values=np.zeros((1, 1, 20, 20), np.float32))
    assert said[0, -1] == digits.END  # a word, and no more
    for name in ("accuracy", "loss", "answers"):
        ET.fromstring((tmp_path / f"{name}.svg").read_text(encoding="utf-8"))
