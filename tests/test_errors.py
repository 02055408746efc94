"""Errors by their full text: the clash underlined, the layer and the user's line, where sizes come from, one hint."""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
from pathlib import Path

import pytest

import tensorgraph as tg
from tensorgraph.errors import MAX_LINES, MAX_WIDTH, Operand, TensorgraphError

HERE = Path(__file__).name
SOURCE = Path(__file__).read_text(encoding="utf-8").splitlines()


def line(mark: str) -> int:
    """The number of the line of this file that ends in `# mark`."""
    (found,) = [i for i, text in enumerate(SOURCE, 1) if text.rstrip().endswith(f"# @{mark}")]
    return found


def told(text: str) -> str:
    """A wanted text, with @marks replaced by places in this file."""
    return re.sub(r"@(\w+)", lambda m: f"{HERE}:{line(m[1])}", text.strip("\n"))


def report(fn) -> str:
    with pytest.raises(TensorgraphError) as info:
        fn()
    text = info.value.report()
    assert len(text.splitlines()) <= MAX_LINES and all(len(s) <= MAX_WIDTH for s in text.splitlines())
    return text


B, T, e1, f1, H, k = tg.dims("B T e1 f1 H k")  # @sizes
x = tg.input("x", (B, T, e1))  # @x
w = tg.input("w", (f1, e1))  # @w
i = tg.input("i", (B, T), "int32")  # @i
q = tg.input("q", (B, 4, T, 8))  # @q
kv = tg.input("kv", (B, 3, T, 8))  # @kv


@pytest.fixture(autouse=True)
def named_here(monkeypatch):
    """A size comes from where it was first named, which other test files may have done before this one."""
    facts = sys.modules["tensorgraph.dims"]._facts
    for name in ("B", "T", "H", "k"):
        monkeypatch.setitem(facts, name, facts[name]._replace(loc=(__file__, line("sizes"))))


CASES = {
    "matmul": (
        lambda: x @ w,
        """
ShapeError[TG101] matmul: inner sizes differ: 'e1' of x against 'f1' of w
    x : f32[B, T, e1]    @x
                  ^^
    w : f32[f1, e1]      @w
            ^^
  e1, f1 (@sizes)
  hint: w.T has shape [e1, f1]
""",
    ),
    "matmul of a scalar": (
        lambda: x @ tg.input("s", ()),  # @scalar
        """
ShapeError[TG108] matmul: a scalar has no axes to contract
    x : f32[B, T, e1]    @x
    s : f32[]            @scalar
  hint: multiply with *
""",
    ),
    "add": (
        lambda: x + w,
        """
ShapeError[TG102] add: sizes differ: 'T' of x against 'f1' of w
    x : f32[B, T, e1]    @x
               ^
    w : f32[f1, e1]      @w
            ^^
  T, f1 (@sizes)
  hint: if they are equal, state it: tg.assume(T, f1)
""",
    ),
    "add of a number": (
        lambda: x + tg.input("y", (B, T, 3)),  # @y
        """
ShapeError[TG102] add: sizes differ: 'e1' of x against '3' of y
    x : f32[B, T, e1]    @x
                  ^^
    y : f32[B, T, 3]     @y
                  ^
  e1 (@sizes)
  hint: if e1 is 3, build with that size or state tg.assume(e1, 3)
""",
    ),
    "reshape": (
        lambda: x.reshape(B, e1),
        """
ShapeError[TG106] reshape: B·T·e1 elements do not fit [B, e1], which holds B·e1
    x : f32[B, T, e1]    @x
""",
    ),
    "reshape, no size fits": (
        lambda: x.reshape(-1, 7),
        """
ShapeError[TG106] reshape: no size fits -1 in [-1, 7]
    x : f32[B, T, e1]    @x
""",
    ),
    "reshape, two holes": (
        lambda: x.reshape(-1, -1),
        """
ShapeError[TG106] reshape: only one size may be -1, not 2
    x : f32[B, T, e1]    @x
""",
    ),
    "concat": (
        lambda: tg.concat(x, tg.input("z", (B, f1, e1)), axis=0),  # @z
        """
ShapeError[TG115] concat: axis 1 differs
    x : f32[B, T, e1]     @x
               ^
    z : f32[B, f1, e1]    @z
               ^^
  T, f1 (@sizes)
  hint: if they are equal, state it: tg.assume(T, f1)
""",
    ),
    "axis": (
        lambda: tg.softmax(x, axis=3),
        """
ShapeError[TG110] softmax: axis 3 out of range for 3 axes
    x : f32[B, T, e1]    @x
""",
    ),
    "axis of the wrong kind": (
        lambda: tg.softmax(x, axis="a"),
        "OpError[TG252] softmax: axis must be an int, not 'a'",
    ),
    "unknown argument": (
        lambda: tg.softmax(x, axs=1),
        """
OpError[TG255] softmax: unknown argument axs
  softmax(x: Tensor, axis: int = -1) -> Tensor
""",
    ),
    "argument twice": (
        lambda: tg.softmax(x, 1, axis=1),
        """
OpError[TG255] softmax: argument 'axis' is given twice
  softmax(x: Tensor, axis: int = -1) -> Tensor
""",
    ),
    "argument missing": (
        lambda: tg.softmax(),
        """
OpError[TG255] softmax: argument 'x' is missing
  softmax(x: Tensor, axis: int = -1) -> Tensor
""",
    ),
    "too many arguments": (
        lambda: tg.softmax(x, 1, 2),
        """
OpError[TG255] softmax: 3 arguments given, at most 2 taken
  softmax(x: Tensor, axis: int = -1) -> Tensor
""",
    ),
    "attention, heads": (
        lambda: tg.attention(q, kv, kv, None, None),
        """
ShapeError[TG104] attention: query heads are shared evenly: 4 must be divisible by 3
    q  : f32[B, 4, T, 8]    @q
    kv : f32[B, 3, T, 8]    @kv
""",
    ),
    "attention, mask": (
        lambda: tg.attention(q, q, q, tg.input("m", (B, T, T, T)), None),  # @m
        """
ShapeError[TG121] attention: mask must broadcast to [B, 4, T, T]
    q : f32[B, 4, T, 8]    @q
    q : f32[B, 4, T, 8]    @q
    m : f32[B, T, T, T]    @m
               ^
  T (@sizes)
""",
    ),
    "attention, axes": (
        lambda: tg.attention(x, x, x, None, None),
        """
ShapeError[TG121] attention: q must have the axes [B, H, T, k]
    x : f32[B, T, e1]    @x
""",
    ),
    "cross_entropy": (
        lambda: tg.cross_entropy(x, tg.input("l", (B,), "int32")),  # @l
        """
ShapeError[TG122] cross_entropy: labels must have the shape of logits without the last axis
    x : f32[B, T, e1]    @x
    l : i32[B]           @l
""",
    ),
    "cross_entropy, labels": (
        lambda: tg.cross_entropy(x, tg.input("l", (B, T))),  # @l2
        """
DTypeError[TG202] cross_entropy: l must be integer, not float32
    l : f32[B, T]    @l2
""",
    ),
    "layer_norm": (
        lambda: tg.layer_norm(x, tg.input("g", (T,)), None),  # @g
        """
ShapeError[TG119] layer_norm: weight must have the size of the last axis of x
    x : f32[B, T, e1]    @x
                  ^^
    g : f32[T]           @g
  e1 (@sizes)
""",
    ),
    "dtype": (
        lambda: tg.softmax(i),
        """
DTypeError[TG201] softmax: needs a floating dtype, got int32
    i : i32[B, T]    @i
  hint: x.cast("float32")
""",
    ),
    "slice": (
        lambda: x[:, 2 * T :],
        """
ShapeError[TG104] slice: slice: T must be ≥ 2·T
    x : f32[B, T, e1]    @x
""",
    ),
    "index": (
        lambda: tg.input("z", (3,))[3],  # @z3
        """
ShapeError[TG114] index 3 out of range for size 3
    z : f32[3]    @z3
            ^
""",
    ),
    "index by a tensor": (
        lambda: x[i],
        """
OpError[TG256] a tensor cannot index a tensor
  hint: tg.take(x, ids, axis) gathers rows
""",
    ),
    "split": (
        lambda: tg.split(x, (1, 2)),
        """
ShapeError[TG116] split: parts of 3 do not make up 'e1'
    x : f32[B, T, e1]    @x
                  ^^
  e1 (@sizes)
""",
    ),
    "squeeze": (
        lambda: tg.squeeze(x, 1),
        """
ShapeError[TG112] squeeze: the size of axis 1 is 'T', not 1
    x : f32[B, T, e1]    @x
               ^
  T (@sizes)
""",
    ),
    "stack": (lambda: tg.stack([]), "OpError[TG255] stack: no tensors given"),
    "einsum": (
        lambda: tg.einsum("btd,df->btf", x, w),
        """
ShapeError[TG117] einsum: d is 'e1' and 'f1'
    x : f32[B, T, e1]    @x
                  ^^
    w : f32[f1, e1]      @w
            ^^
  e1, f1 (@sizes)
""",
    ),
    "a product of sizes": (
        lambda: tg.input("h", (B, H * k)) @ w,  # @h
        """
ShapeError[TG101] matmul: inner sizes differ: 'H·k' of h against 'f1' of w
    h : f32[B, H·k]    @h
               ^^^
    w : f32[f1, e1]    @w
            ^^
  H, k, f1 (@sizes)
""",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_full_text(name):
    build, want = CASES[name]
    assert report(build) == told(want)


class Down(tg.Module):
    def __init__(self):
        super().__init__()
        self.w = tg.Parameter((f1, e1))

    def forward(self, x):
        return x @ self.w  # @forward


class Model(tg.Module):
    def __init__(self, n):
        super().__init__()
        self.layers = tg.ModuleList(Down() for _ in range(n))

    def forward(self, x):
        return self.layers(x)


def test_inside_a_module_the_layer_and_its_line_are_named():
    model = Model(4)
    with tg.scope("net"):
        h = tg.sin(x).named("norm")  # @norm
        text = report(lambda: model(h))
    assert text == told(
        """
ShapeError[TG101] matmul: inner sizes differ: 'e1' of norm against 'f1' of layers.0.w
    norm       : f32[B, T, e1]  net  @norm
                           ^^
    layers.0.w : f32[f1, e1]         @forward
                     ^^
  e1, f1 (@sizes)
  hint: layers.0.w.T has shape [e1, f1]
"""
    )


def test_a_clash_in_a_model_of_ours_names_the_model_file():
    """Lines of tensorgraph.models are the user's, like those of any model."""
    from tensorgraph.models import llama

    model = llama.build("llama-3-8b", layers=2)
    y = model(tg.input("tokens", (B, T), "int32"))
    assert y.where.split(":")[0] in {p.name for p in Path(llama.__file__).parent.glob("*.py")}
    places = {t.where.split(":")[0] for t in tg.Graph(y).nodes if t.op.name == "attention"}
    assert places and all(p in {q.name for q in Path(llama.__file__).parent.glob("*.py")} for p in places)


def test_clash_in_layer_125_of_126_is_reported_with_its_path():
    from tensorgraph.models import llama

    model = llama.build("llama-3.1-405b", layers=126)
    names = model.named_parameters()
    (down,) = [p for n, p in names.items() if ".125." in n and n.endswith("down_proj.weight")]
    planted = tg.dim("planted")
    down.shape = (down.shape[0], planted)  # @planted
    text = report(lambda: model(tg.input("tokens", (B, T), "int32")))
    assert "[TG101] matmul: inner sizes differ" in text
    assert "125" in text and "down" in text and "planted" in text
    assert ".124." not in text


# ------------------------------------------------------------------------------------------- the formatter


def test_at_most_twelve_lines_and_the_hint_stays():
    many = [Operand(f"x{i}", "f32[B]", mark=(4, 5)) for i in range(20)]
    error = TensorgraphError("TG999", "too much", operands=many, notes=["n"] * 9, hint="less")
    rows = str(error).splitlines()
    assert len(rows) == 12 and rows[-1] == "  hint: less" and rows[-2].startswith("  ... and ")
    assert len(error.operands) == 20, "nothing is lost"


def test_long_lines_are_cut():
    text = str(TensorgraphError("TG999", "y" * 500))
    assert len(text) == MAX_WIDTH and text.endswith("...")


def test_every_code_has_one_class_and_its_range():
    """Codes are stable names: TG1xx are shapes, and so on; each is raised by one class."""
    ranges = {
        "SizeError": "0",
        "ShapeError": "1",
        "DTypeError": "2",
        "OpError": "2",
        "GraphError": "3",
        "GradError": "4",
        "DataError": "5",
        "StateError": "6",
        "BackendError": "7",
        "CheckpointError": "8",
        "ModelError": "9",
    }
    found: dict[str, set[str]] = {}
    root = Path(tg.__file__).parent
    for path in root.rglob("*.py"):
        for cls, code in re.findall(r"\b(\w+Error)\(\s*\"(TG\d{3})\"", path.read_text(encoding="utf-8")):
            found.setdefault(code, set()).add(cls)
    assert len(found) > 60
    for code, classes in found.items():
        assert len(classes) == 1, (code, classes)
        assert ranges[next(iter(classes))] == code[2], (code, classes)


def test_errors_are_named_after_the_package():
    for cls in TensorgraphError.__subclasses__():
        assert cls.__module__ == "tensorgraph" and cls.__doc__
    names = {m.name for m in pkgutil.iter_modules(tg.__path__)}
    assert "errors" in names and importlib.import_module("tensorgraph.errors").__doc__
