"""tensorgraph bench, and the profile under it: figures add up, places are the model's, pictures show them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorgraph as tg
from tensorgraph.backends import cpu
from tensorgraph.cli import bench, main
from tensorgraph.models import presets
from tensorgraph.passes import memory
from tensorgraph.profile import profile
from tensorgraph.visualize import draw

BACKENDS = ["numpy", pytest.param("c", marks=pytest.mark.skipif(cpu.compiler() is None, reason="no compiler"))]


@pytest.fixture(autouse=True)
def quick_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "products", lambda *_: 100.0)
    monkeypatch.setattr(bench, "reading", lambda *_: 10.0)
    monkeypatch.setattr(bench, "REST", 0)


def bench_of(capsys: pytest.CaptureFixture[str], *args: str) -> Any:
    assert main(["bench", *args, "--seconds", "0.05", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("backend", BACKENDS)
def test_time_is_put_where_it_is_spent(backend: str) -> None:
    x = tg.input("x", (512, 512))
    with tg.scope("heavy"):
        y = x @ tg.param("w", (512, 2048))
    with tg.scope("light"):
        z = tg.tanh(y @ tg.param("v", (2048, 1)))
    f = tg.compile(z.sum(), backend=backend)
    rng = np.random.default_rng(0)
    arrays = {
        n: rng.standard_normal(s).astype("f4") for n, s in (("x", (512, 512)), ("w", (512, 2048)), ("v", (2048, 1)))
    }
    found = profile(f, arrays, {}, runs=5)
    by_op = found.by_op()
    assert next(iter(by_op)) == "matmul" and 0 < sum(by_op.values()) <= found.wall
    graph = tg.Graph(z)
    values = found.values(graph)
    assert max(values, key=values.__getitem__).scope.path == "heavy", values


def test_both_are_measured(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = bench_of(capsys, "mini-268", "--backend", "numpy", "-o", str(tmp_path / "p.svg"))
    (train, decode) = found["rows"]
    assert train["what"] == "train" and decode["what"] == "decode" and train["unit"] == "tokens"
    assert (train["gemm_gflops"], decode["read_gbs"]) == pytest.approx((100, 10))
    assert train["gflops"] == pytest.approx(100 * train["share_of_gemm"]) and train["per_s"] > 0
    tokens = train["sizes"]["B"] * train["sizes"]["T"]
    assert train["per_s"] * train["ms"] / 1e3 == pytest.approx(tokens)
    assert decode["gbs"] == pytest.approx(10 * decode["share_of_read"]) and decode["weights"] == "float32"
    svg = (tmp_path / "p.svg").read_text(encoding="utf-8")
    assert "forward and backward, without the update" in svg and "<svg" in svg


class Drifting:
    """A clock, and a machine that runs at another speed after each rest."""

    def __init__(self) -> None:
        self.now, self.speed, self.speeds = 0.0, 1.0, itertools.cycle([0.3, 0.7, 1.0])

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now, self.speed = self.now + seconds, next(self.speeds)

    def call(self) -> None:
        self.now += 0.03 / self.speed


def test_a_share_is_of_the_limit_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Drifting()
    monkeypatch.setattr(bench, "time", machine)
    times, shares = bench.beside(machine.call, lambda: machine.speed, 1.0)
    assert max(times) > 3 * min(times) and len(shares) > 3
    assert shares == pytest.approx([1 / 0.03] * len(shares))


def test_weights_are_counted_as_they_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = [f"-d{k}" for k in ("n=2", "d=64", "H=4", "V=512", "P=64")]
    rows = {w: bench_of(capsys, "gpt2", *sizes, "--only", "decode", "--backend", "numpy", "--weights", w)["rows"][0]
            for w in ("float32", "bfloat16", "int8")}  # fmt: skip
    mb = {w: row["weights_mb"] for w, row in rows.items()}
    assert mb["float32"] > 1.7 * mb["bfloat16"] > 1.7 * 1.5 * mb["int8"]


def test_a_profile_colours_the_picture_of_the_model() -> None:
    from tensorgraph.cli.target import open_target

    target = open_target("mini-268", [])
    graph, where = target.trace(), bench.train(target, "numpy", 0.01)[1]
    picture = draw(graph, values=where.values(graph), values_label="ms")
    coloured = [b for b in picture.view.boxes if b.value is not None]
    assert len(coloured) > len(picture.view.boxes) / 2
    labels = {b.label for b in picture.view.boxes}
    assert "attention" in labels and "softmax" not in labels, "a time is that of the whole op"


SEES_ONLY = ("vit-b-16", "-dn=1", "-dd=8", "-dH=2", "-df=8")


def test_sizes_that_a_model_does_not_have_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for only in ("train", "decode"):
        assert main(["bench", "gpt2", "-dn=1", "-dd=8", "-dH=2", "-dV=16", "-dZ=3", "--only", only]) == 2
        assert "TG014" in capsys.readouterr().err
    assert main(["bench", "gpt2", "-dn=1", "--weights", "int8", "--only", "train"]) == 2
    assert "TG954" in capsys.readouterr().err


def test_what_does_not_generate_is_trained_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *SEES_ONLY, "--backend", "numpy", "--seconds", "0.05"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("vit-b-16 does not generate text: training alone is measured\n") and "\ndecode" not in said


def test_a_context_too_long_is_lowered_in_words(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps({**presets.config("llama-2-7b"), "max_position_embeddings": 64}))
    small = ["-dn=1", "-dd=16", "-dH=2", "-dG=1", "-df=16", "-dV=64"]
    args = ["bench", str(tmp_path / "c.json"), *small, "--only", "decode", "--backend", "numpy", "--seconds", "0.05"]
    assert main(args) == 0
    assert "after 63 of its 64 positions" in capsys.readouterr().out


def test_durations_and_sizes_are_never_zero() -> None:
    assert [bench.duration(ms) for ms in (0.004, 0.25, 1234.5)] == ["4.0 µs", "0.25 ms", "1,234.50 ms"]


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["bert-base", "--only", "decode"], "ModelError[TG954] bert-base does not generate text"),
        (["mini-268", "--backend", "cupy"], "ModelError[TG953] --backend is auto, c, numpy, not cupy"),
        (["mini-268", "-o", "p.jpg"], "GraphError[TG386] no picture format is named '.jpg' (p.jpg)"),
        (["mini-268", "-o", "no/p.svg"], "GraphError[TG387] cannot write no/p.svg: there is no folder no"),
        (["mini-268", "-o", "p.svg", "--only", "decode"], "ModelError[TG954] the picture of -o shows a training step"),
        (["llama-3.1-405b", "--only", "decode"], "BackendError[TG710] llama-3.1-405b needs 1.6 TB, and 21.0 GB are"),
        (["llama-3.1-405b", "--only", "train"], "BackendError[TG710] llama-3.1-405b needs 4.9 TB, and 21.0 GB are"),
        (["mini-268", "--seconds", "0"], "Usage"),
    ],
)
def test_what_cannot_be_measured_is_said_before(
    args: list[str], text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available", lambda: 21 * 10**9)
    monkeypatch.setattr(bench, "limits", lambda: pytest.fail("measured"))
    assert main(["bench", *args]) == 2
    assert text in capsys.readouterr().err


def test_wrong_wishes_are_errors_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "gpt2", "--only", "sleep"]) == 2
    assert capsys.readouterr().err == "ModelError[TG952] --only is train or decode, not sleep\n"
