"""Training on a text: the corpus and its bigram model, the loop, resuming to the bit, what is written and read."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorgraph as tg
from tensorgraph.cli import main
from tensorgraph.errors import CheckpointError, DataError, ModelError, StateError
from tensorgraph.models import from_pretrained, presets
from tensorgraph.models.train import Corpus, Settings, Trainer, fresh, read_text, split_text, word_tokenizer
from tensorgraph.visualize.curve import curve, sparkline, ticks

CAT = "The cat sat on a mat .\n" * 60


def trainer(steps: int = 40, seed: int = 3, lr: float = 0.01, text: str = CAT) -> Trainer:
    net = fresh(presets.config("mini-268"), text).init(seed)
    corpus = Corpus.of(text, net.need_tokenizer())
    settings = Settings(steps, batch=8, length=6, lr=lr, seed=seed)
    return Trainer(net.model, net.state, corpus, settings, dict(net.model.binding))


def finish(t: Trainer) -> Trainer:
    for _ in t.run():
        pass
    return t


# ------------------------------------------------------------------------------------------------------- text


def test_bigram_loss_is_that_of_counting() -> None:
    rng = np.random.default_rng(0)
    corpus = Corpus(rng.integers(0, 7, 200).astype(np.int32), rng.integers(0, 9, 50).astype(np.int32), 9)
    pairs = Counter(zip(corpus.train.tolist(), corpus.train.tolist()[1:], strict=False))
    firsts = Counter(corpus.train.tolist()[:-1])
    held = corpus.held.tolist()
    losses = [-math.log((pairs[a, b] + 1) / (firsts[a] + 9)) for a, b in pairwise(held)]
    assert corpus.bigram_loss() == pytest.approx(sum(losses) / len(losses), rel=1e-12)


def test_a_bigram_model_is_a_distribution() -> None:
    train = np.array([0, 1, 1, 2, 0, 1], np.int32)
    total = sum(math.exp(-Corpus(train, np.array([1, b], np.int32), 5).bigram_loss()) for b in range(5))
    assert total == pytest.approx(1.0, rel=1e-12)


def test_the_text_is_cut_where_a_word_ends_and_nothing_is_lost() -> None:
    text = "one two three four five six seven eight nine ten"
    train, held = split_text(text)
    assert train + held == text
    assert held == " ten"
    assert split_text("abc") == ("abc", "")


def test_batches_are_windows_and_the_tokens_after_them() -> None:
    corpus = Corpus(np.arange(100, dtype=np.int32), np.arange(5, dtype=np.int32), 100)
    tokens, targets = corpus.batch(4, 10, seed=1, step=7)
    assert tokens.shape == targets.shape == (4, 10)
    assert (targets == tokens + 1).all()
    assert (corpus.batch(4, 10, 1, 7)[0] == tokens).all()
    assert not (corpus.batch(4, 10, 1, 8)[0] == tokens).all()
    everywhere = {int(w[0]) for step in range(200) for w in corpus.batch(4, 10, 1, step)[0]}
    assert everywhere == set(range(90))  # the first window and the last one, too


def test_pydoc_is_there_without_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    assert len(read_text("pydoc")) > 400_000
    (tmp_path / "pydoc").write_text("a file of that name comes first", encoding="utf-8")
    assert read_text("pydoc").startswith("a file")


def test_words_that_a_vocabulary_lacks_are_named() -> None:
    tokenizer = word_tokenizer(["The", "cat", "."])
    assert tokenizer.encode("The cat.") == [0, 1, 2]
    with pytest.raises(DataError) as error:
        tokenizer.encode("The dog .")
    assert error.value.report() == "DataError[TG582] the vocabulary has no word 'dog': it has The, cat, ."


def test_texts_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    latin, nix = str(tmp_path / "latin.txt"), str(tmp_path / "nix")
    hint = '\n  hint: the text "pydoc" is always there'
    for read, said in (
        (lambda: read_text(latin), f"DataError[TG521] {latin} is not UTF-8 text: byte 3 is wrong"),
        (lambda: read_text(nix), f"DataError[TG521] cannot read {nix}: No such file or directory{hint}"),
        (
            lambda: Corpus.of("The cat .", word_tokenizer(["The", "cat", "."])),
            "DataError[TG523] the text is too short: 3 tokens to train on, 0 held out\n"
            "  hint: each part needs two at least, and training some thousands",
        ),
        (
            lambda: Corpus(np.arange(5), np.arange(2), 5).batch(2, 5, 0, 0),
            "DataError[TG523] windows of 5 tokens, and the one after each, do not fit in 5\n"
            "  hint: a longer text, or windows of 4 at most: -d T=4",
        ),
    ):  # fmt: skip
        with pytest.raises(DataError) as error:
            read()
        assert error.value.report() == said


# ---------------------------------------------------------------------------------------------------- the loop


def test_held_out_loss_of_a_model_that_knows_nothing_is_log_v() -> None:
    t = trainer()
    t.state = t.step.init({n: np.zeros_like(a) for n, a in t.params.items()})
    assert t.held_out() == pytest.approx(math.log(8), rel=1e-6)


def test_held_out_loss_counts_every_token_once() -> None:
    t = trainer()
    ids, T = t.corpus.held, t.settings.length
    loss = 0.0
    for at in range(0, len(ids) - 1, T):
        x, y = ids[None, at : at + T][:, : len(ids) - 1 - at], ids[at + 1 : at + 1 + T]
        logits = fresh(presets.config("mini-268"), CAT).init(3)(input_ids=x)["logits"][0].astype(np.float64)
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        loss -= float(log_p[np.arange(len(y)), y].sum())
    assert t.held_out() == pytest.approx(loss / (len(ids) - 1), rel=1e-5)


def test_it_learns_to_say_mat_and_then_a_stop() -> None:
    t = finish(trainer(400))
    assert t.held_out() < t.corpus.bigram_loss()
    net = fresh(presets.config("mini-268"), CAT).init(3)
    net.state = t.state.params
    assert "".join(net.stream("The cat sat on a", 2)) == " mat ."
    assert [p.step for p in t.curve] == list(range(20, 401, 20))


def test_speed_is_that_of_the_steps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step, which plans and compiles, evaluations, and what the caller does in between take 100 s each."""
    t, clock = trainer(steps=5), [0.0]
    monkeypatch.setattr("tensorgraph.models.train.time.perf_counter", lambda: clock[0])
    step, held_out = t.step, t.held_out

    class Slow:
        params = step.params

        def __call__(self, *args: Any, **inputs: Any) -> Any:
            clock[0] += 2.0 if t.done else 100.0
            return step(*args, **inputs)

    def evaluate() -> float:
        clock[0] += 100.0
        return held_out()

    monkeypatch.setattr(t, "step", Slow())
    monkeypatch.setattr(t, "held_out", evaluate)
    speeds = []
    for p in t.run():
        clock[0] += 100.0
        speeds.append(p.tokens_per_second)
    assert speeds == [8 * 6 / 100.0] + [8 * 6 / 2.0] * 4


def test_frozen_weights_stay_as_they_were() -> None:
    t = finish(trainer(10))
    same = {n for n, a in t.params.items() if (t.state.params[n] == a).all()}
    assert same == {"embed.weight"}


def test_a_run_that_was_interrupted_ends_in_the_same_bits(tmp_path: Path) -> None:
    whole = finish(trainer())
    first = trainer()
    for progress in first.run():
        if progress.step == 17:
            break
    first.save(tmp_path)
    second = trainer()
    assert second.resume(tmp_path)
    assert second.done == 17
    finish(second)
    assert second.curve == whole.curve
    for name, array in whole.state.items():
        assert array.tobytes() == second.state[name].tobytes(), name


def test_a_run_goes_on_only_as_itself(tmp_path: Path) -> None:
    assert not trainer().resume(tmp_path)
    first = trainer(2)
    finish(first).save(tmp_path)
    assert trainer(40).resume(tmp_path)  # more steps are the same run
    with pytest.raises(StateError) as error:
        trainer(lr=0.5).resume(tmp_path)
    assert error.value.report() == (
        f"StateError[TG620] {tmp_path} holds another run\n"
        "  lr: 0.01 then, 0.5 now\n"
        "  hint: --restart begins anew there; or choose another --out"
    )
    with pytest.raises(StateError, match=r"text: '379 \+ 41 tokens, .* then, '190 \+ 20 tokens"):
        trainer(text=CAT[: len(CAT) // 2]).resume(tmp_path)


def test_what_is_no_language_model_is_refused() -> None:
    class Sum(tg.Module):
        def __init__(self) -> None:
            self.embed = tg.nn.Embedding(8, 4)

        def forward(self, tokens: Any) -> Any:
            return self.embed(tokens).sum()

    model = Sum()
    corpus = Corpus(np.zeros(9, np.int32), np.zeros(9, np.int32), 8)
    with pytest.raises(ModelError) as error:
        Trainer(model, model.init(), corpus, Settings(1))
    assert error.value.report() == (
        "ModelError[TG936] Sum is no language model: tokens i32[B, T] must give logits [B, T, V]\n  it returns f32[]"
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps must be a whole number, 1 or more, not 0"),
        ({"batch": 1.5}, "batch must be a whole number, 1 or more, not 1.5"),
        ({"seed": -1}, "seed must be a whole number, 0 or more, not -1"),
        ({"lr": float("nan")}, "lr must be a number, more than 0, not nan"),
        ({"lr": "x"}, "lr must be a number, more than 0, not 'x'"),
        ({"weight_decay": -0.1}, "weight_decay must be a number, 0 or more, not -0.1"),
    ],
)
def test_settings_out_of_range(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as e:
        Settings(**{"steps": 1, **wrong})
    assert e.value.report() == f"ModelError[TG944] {message}"


def test_memory_is_known_before_anything_runs() -> None:
    t = trainer()
    report = t.memory()
    params = sum(a.nbytes for a in t.params.values())
    assert report.given >= params
    assert report.peak == report.arena + report.given + report.returned + report.tables + report.scratch


# ------------------------------------------------------------------------------------------------- the command


def run(*args: str) -> int:
    return main(["train", *args])


def test_what_is_written_reads_back_to_the_bit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, out = tmp_path / "cat.txt", tmp_path / "out"
    text.write_text(CAT * 4, encoding="utf-8")
    sizes = ["-d", "d=8", "-d", "H=2", "-d", "n=1", "-d", "T=8", "-d", "B=4"]
    assert run("gpt2", "--text", str(text), "--steps", "5", "--out", str(out), "--vocab", "300", "--json", *sizes) == 0
    captured = capsys.readouterr()
    done = json.loads(captured.out)
    assert done["steps"] == 5
    assert f"held-out loss {done['held_out']:.3f} nats per token" in captured.err
    assert f"add-one bigram's {done['bigram']:.3f}" in captured.err
    written = "checkpoint.safetensors config.json curve.svg model.safetensors tokenizer.json tokenizer_config.json"
    assert sorted(p.name for p in out.iterdir()) == written.split()
    net = from_pretrained(out)
    assert net.config["n_positions"] == 8  # no rows that training never sees
    assert net.config["vocab_size"] == net.need_tokenizer().vocab_size
    ids = np.array([net.need_tokenizer().encode("The cat sat")[:8]], np.int32)
    again = from_pretrained(out)
    assert net(input_ids=ids)["logits"].tobytes() == again(input_ids=ids)["logits"].tobytes()
    saved = tg.io.checkpoint.load(out)[0]
    assert {n: a.tobytes() for n, a in net.state.items()} == {
        n[7:]: a.tobytes() for n, a in saved.items() if n.startswith("params/")
    }
    # the run that just ended held these weights: its last held-out loss is the one of the file
    fresh_trainer = Trainer(
        net.model, net.state, Corpus.of(CAT * 4, net.need_tokenizer()), Settings(5, 4, 8), dict(net.model.binding)
    )
    assert fresh_trainer.held_out() == done["held_out"]


def test_the_same_command_goes_on_and_another_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, out = tmp_path / "cat.txt", tmp_path / "out"
    text.write_text(CAT, encoding="utf-8")
    first = ["mini-268", "--text", str(text), "--out", str(out)]
    assert run(*first, "--steps", "4") == 0
    assert run(*first, "--steps", "6") == 0
    assert "goes on from step 4" in capsys.readouterr().err
    assert run(*first, "--steps", "6", "--lr", "0.5") == 2
    assert "holds another run" in capsys.readouterr().err
    assert run(*first, "--steps", "6", "--lr", "0.5", "--restart") == 0


def test_training_goes_on_from_a_checkpoint_s_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "cat.txt"
    text.write_text(CAT, encoding="utf-8")
    assert run("mini-268", "--text", str(text), "--steps", "300", "--lr", "0.01", "--out", str(tmp_path / "a")) == 0
    capsys.readouterr()
    more = [str(tmp_path / "a"), "--text", str(text), "--steps", "1", "--lr", "1e-9", "--out", str(tmp_path / "b")]
    assert run(*more, "--json") == 0
    done = json.loads(capsys.readouterr().out)
    assert done["held_out"] < 0.2
    assert run(str(tmp_path / "a"), "--text", str(text), "--steps", "1", "-d", "f=8") == 2
    assert capsys.readouterr().err == "ModelError[TG939] a has its values, so its sizes cannot change: f\n"


def test_one_s_own_module_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "own.py"
    file.write_text(
        "import tensorgraph as tg\n"
        "V, d = tg.dims('V d')\n"
        "class Bigram(tg.Module):\n"
        "    def __init__(self):\n"
        "        self.embed, self.head = tg.nn.Embedding(V, d), tg.nn.Linear(d, V)\n"
        "    def forward(self, tokens):\n"
        "        return self.head(self.embed(tokens))\n",
        encoding="utf-8",
    )
    text = tmp_path / "cat.txt"
    text.write_text(CAT, encoding="utf-8")
    args = [f"{file}:Bigram", "--text", str(text), "--steps", "3", "-d", "d=4", "-d", "T=6"]
    assert run(*args, "--out", str(tmp_path / "out")) == 0
    stored = tg.io.safetensors.read(tmp_path / "out" / "model.safetensors")
    assert sorted(stored) == ["embed.weight", "head.bias", "head.weight"]
    assert stored["embed.weight"].shape[1] == 4


@pytest.mark.slow
def test_a_gpt2_shape_beats_the_bigram_model_of_its_own_tokens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pydoc"
    sizes = ["-d", "d=64", "-d", "H=4", "-d", "n=2", "-d", "T=64"]
    assert run("gpt2", "--text", "pydoc", "--steps", "400", "--lr", "3e-3", "--out", str(out), "--json", *sizes) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["held_out"] < done["bigram"] - 0.1
    net, again = from_pretrained(out), from_pretrained(out)
    ids = np.array([net.need_tokenizer().encode("The following operators")], np.int32)
    assert net(input_ids=ids)["logits"].tobytes() == again(input_ids=ids)["logits"].tobytes()


# ------------------------------------------------------------------------------------------------------- curve


def test_a_curve_is_well_formed_whatever_its_names() -> None:
    text = curve('<b>&"', {"a<b": [(0.0, 1.0), (1.0, math.nan), (2.0, 3.0)]}, {"c&d": 2.0, "e": math.inf}, y="]]>")
    root = ET.fromstring(text)
    space = "{http://www.w3.org/2000/svg}"
    (line,) = root.findall(f"{space}polyline")
    assert len(line.attrib["points"].split()) == 2
    said = [t.text for t in root.iter(f"{space}text")]
    assert '<b>&"' in said
    assert "a<b: 3.000" in said
    assert "c&d: 2.000" in said
    assert "prefers-color-scheme: dark" in text
    assert "nan" not in text
    assert "inf" not in text


@pytest.mark.parametrize("points", [[], [(5.0, 1.0)], [(1.0, 2.0), (2.0, 2.0)], [(1.0, 1e-9), (2.0, 1e9)]])
def test_curves_of_few_or_equal_points(points: list[tuple[float, float]]) -> None:
    ET.fromstring(curve("t", {"a": points}))


def test_points_lie_where_they_belong() -> None:
    root = ET.fromstring(curve("t", {"a": [(0.0, 0.0), (50.0, 5.0), (100.0, 10.0)]}))
    (line,) = root.findall("{http://www.w3.org/2000/svg}polyline")
    places = [tuple(map(float, p.split(","))) for p in line.attrib["points"].split()]
    (x0, y0), (x1, y1), (x2, y2) = places
    assert x0 == 64
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert y0 > y2


def test_ticks_enclose_and_are_round() -> None:
    assert ticks(0, 400) == [0, 100, 200, 300, 400]
    assert ticks(3.3, 6.2) == [3.0, 3.5, 4.0, 4.5, 5.0, 5.5, 6.0, 6.5]
    for low, high in ((0.0, 0.0), (2.0, 2.0), (-1e-12, 1e-12), (1e8, 1e8 + 1)):
        found = ticks(low, high)
        assert found[0] <= low + 1e-9 * abs(low)
        assert found[-1] >= high - 1e-9 * abs(high)
        assert len(found) >= 2


def test_sparklines() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([1.0, math.nan, 1.0]) == "▁ ▁"
    assert sparkline([]) == ""


def test_what_may_not_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "stat", refuse)
    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(DataError) as e:
        read_text("secret.txt")
    assert str(e.value) == "[TG521] cannot read secret.txt: Permission denied"
    with pytest.raises(CheckpointError) as f:
        from_pretrained("secret")
    assert str(f.value) == "[TG801] secret: cannot be opened: Permission denied"
