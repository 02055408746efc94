"""The C-family core: what an element, a row and a region are in C. Loops and threads are the backend's.

A region is walked row by row in passes: a pass reads the row's columns, sums them up or stores them; between passes
stand statements on row values. What a later pass needs again is computed again if cheap, else kept in a row buffer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ..dims import Dim
from ..dtypes import DType
from ..passes.fuse import Piece, Step
from ..passes.layout import Access, one, zero
from ..passes.program import Buffer, Value

TYPES = {
    "bool": "uint8_t",
    "int8": "int8_t",
    "uint8": "uint8_t",
    "int32": "int32_t",
    "int64": "int64_t",
    "float32": "float",
    "float64": "double",
}

# Errors of the polynomials are stated and tested: exp, tanh and erf in float32 are within 2, 3 and 2 units in the last
# place.
MATHS = """
#if !defined(TG_STRICT) && (defined(__FMA__) || defined(__ARM_FEATURE_FMA))
#define tg_fma_f __builtin_fmaf
#define tg_fma_d __builtin_fma
#else
#define tg_fma_f(x, y, z) ((x) * (y) + (z))
#define tg_fma_d tg_fma_f
#endif
#ifdef TG_STRICT
TG_FN float tg_exp_f(float x) { return expf(x); }
TG_FN float tg_tanh_f(float x) { return tanhf(x); }
TG_FN float tg_erf_f(float x) { return erff(x); }
#else
TG_FN float tg_bits_f(int32_t i) { union { int32_t i; float f; } u; u.i = i; return u.f; }
TG_FN float tg_exp_f(float x) {
    float c = x > 89.0f ? 89.0f : x;
    c = c < -104.0f ? -104.0f : c;
    const float n = tg_fma_f(c, 0x1.715476p+0f, 0x1.8p+23f) - 0x1.8p+23f;
    float r = tg_fma_f(-n, 0x1.62e400p-1f, c);
    r = tg_fma_f(-n, 0x1.7f7d1cp-20f, r);
    float q = 0x1.6a1b94p-10f;
    q = tg_fma_f(q, r, 0x1.123fc2p-7f);
    q = tg_fma_f(q, r, 0x1.555916p-5f);
    q = tg_fma_f(q, r, 0x1.55548ap-3f);
    q = tg_fma_f(q, r, 0x1.fffffcp-2f);
    q = tg_fma_f(q, r * r, r) + 1.0f;
    const int32_t k = (int32_t)n, h = k >> 1;
    return q * tg_bits_f((h + 127) << 23) * tg_bits_f((k - h + 127) << 23);
}
TG_FN float tg_tanh_f(float x) {
    const float a = x < 0.0f ? -x : x;
    const float e = tg_exp_f(2.0f * (a > 12.0f ? 12.0f : a));
    const float far = 1.0f - 2.0f / (e + 1.0f);
    const float z = a * a;
    float p = -0x1.76abbcp-8f;
    p = tg_fma_f(p, z, 0x1.5256bep-6f);
    p = tg_fma_f(p, z, -0x1.b84444p-5f);
    p = tg_fma_f(p, z, 0x1.110768p-3f);
    p = tg_fma_f(p, z, -0x1.555534p-2f);
    const float near = tg_fma_f(a, z * p, a);
    float y = a < 0.625f ? near : far;
    y = x != x ? x : y;
    return x < 0.0f ? -y : y;
}
TG_FN float tg_erf_f(float x) {
    const float a = x < 0.0f ? -x : x;
    const float z = a * a, t = a > 4.0f ? 4.0f : a;
    float p = 0x1.603532p-14f;
    p = tg_fma_f(p, z, -0x1.ab4742p-11f);
    p = tg_fma_f(p, z, 0x1.54e624p-8f);
    p = tg_fma_f(p, z, -0x1.b811bep-6f);
    p = tg_fma_f(p, z, 0x1.ce2e30p-4f);
    p = tg_fma_f(p, z, -0x1.812744p-2f);
    p = tg_fma_f(p, z, 0x1.06eba8p-3f);
    const float near = tg_fma_f(a, p, a);
    float q = -0x1.6377ecp-18f; /* of ln(erfc(t)) / t */
    q = tg_fma_f(q, t, 0x1.a2ebc2p-15f);
    q = tg_fma_f(q, t, 0x1.cc613cp-16f);
    q = tg_fma_f(q, t, -0x1.781032p-9f);
    q = tg_fma_f(q, t, 0x1.71e116p-6f);
    q = tg_fma_f(q, t, -0x1.aec63ap-4f);
    q = tg_fma_f(q, t, -0x1.4576f4p-1f);
    q = tg_fma_f(q, t, -0x1.20e818p+0f);
    const float far = 1.0f - tg_exp_f(q * t);
    float y = a < 0.9f ? near : far;
    y = x != x ? x : y;
    return x < 0.0f ? -y : y;
}
#endif
TG_FN double tg_erf_d(double x) { return erf(x); }
TG_FN double tg_exp_d(double x) { return exp(x); }
TG_FN double tg_tanh_d(double x) { return tanh(x); }
TG_FN float tg_sigmoid_f(float x) {
#ifdef TG_STRICT
    return (tanhf(x * 0.5f) + 1.0f) * 0.5f;
#else
    return 1.0f / (1.0f + tg_exp_f(-x));
#endif
}
TG_FN double tg_sigmoid_d(double x) { return (tanh(x * 0.5) + 1.0) * 0.5; }
"""


def c_type(dtype: DType) -> str:
    """How an element is stored."""
    return TYPES[dtype.name]


def register(dtype: DType) -> str:
    """How an element is computed with: truth values as int."""
    return "int" if dtype.kind == "b" else TYPES[dtype.name]


def literal(value: object, dtype: DType) -> str:
    """A number, exactly as the dtype holds it."""
    x = np.asarray(value).astype(dtype.np).item()
    if dtype.kind == "b":
        return "1" if x else "0"
    if dtype.kind == "i":
        low = "INT32_MIN" if dtype.size == 4 else "INT64_MIN"
        return (
            low if x == np.iinfo(dtype.np).min and dtype.size >= 4 else f"({x})" if abs(x) < 2**31 else f"INT64_C({x})"
        )
    suffix = "f" if dtype.size == 4 else ""
    if math.isnan(x):
        return f"(({c_type(dtype)})NAN)"
    if math.isinf(x):
        return f"(({c_type(dtype)})({'-' if x < 0 else ''}INFINITY))"
    return f"{float(x).hex()}{suffix}" if x >= 0 and math.copysign(1, x) > 0 else f"({float(x).hex()}{suffix})"


def _libm(name: str) -> Callable[[DType, list[str]], str]:
    return lambda t, a: f"{name}{'f' if t.size == 4 else ''}({a[0]})"


def _own(name: str) -> Callable[[DType, list[str]], str]:
    return lambda t, a: f"tg_{name}_{'f' if t.size == 4 else 'd'}({a[0]})"


def _infix(sign: str) -> Callable[[DType, list[str]], str]:
    return lambda t, a: f"({a[0]} {sign} {a[1]})"


def _extreme(sign: str) -> Callable[[DType, list[str]], str]:
    """NaN wins, as in NumPy."""
    return lambda t, a: f"({a[0]} {sign} {a[1]}{f' || {a[0]} != {a[0]}' if t.is_float else ''} ? {a[0]} : {a[1]})"


def _sign(t: DType, a: list[str]) -> str:
    text = f"(({c_type(t)})(({a[0]} > 0) - ({a[0]} < 0)))"
    return f"({a[0]} != {a[0]} ? {a[0]} : {text})" if t.is_float else text


# (dtype of the arithmetic, arguments already of that dtype) -> expression
EXPRESSIONS: dict[str, Callable[[DType, list[str]], str]] = {
    "neg": lambda t, a: f"(-{a[0]})",
    "abs": lambda t, a: _libm("fabs")(t, a) if t.is_float else f"({a[0]} < 0 ? -{a[0]} : {a[0]})",
    "sign": _sign,
    "floor": _libm("floor"), "log": _libm("log"), "sqrt": _libm("sqrt"), "sin": _libm("sin"), "cos": _libm("cos"),
    "expm1": _libm("expm1"), "log1p": _libm("log1p"), "erf": _own("erf"),
    "exp": _own("exp"), "tanh": _own("tanh"), "sigmoid": _own("sigmoid"),
    "square": lambda t, a: f"({a[0]} * {a[0]})",
    "reciprocal": lambda t, a: f"({literal(1, t)} / {a[0]})",
    "rsqrt": lambda t, a: f"({literal(1, t)} / {_libm('sqrt')(t, a)})",
    "relu": lambda t, a: _extreme(">")(t, [a[0], literal(0, t)]),
    "add": _infix("+"), "sub": _infix("-"), "mul": _infix("*"), "div": _infix("/"),
    "pow": lambda t, a: f"pow{'f' if t.size == 4 else ''}({a[0]}, {a[1]})",
    "maximum": _extreme(">"), "minimum": _extreme("<"),
    "less": _infix("<"), "less_equal": _infix("<="), "greater": _infix(">"), "greater_equal": _infix(">="),
    "equal": _infix("=="), "not_equal": _infix("!="),
    "logical_and": _infix("&&"), "logical_or": _infix("||"), "logical_not": lambda t, a: f"(!{a[0]})",
    "copy": lambda t, a: a[0],
}  # fmt: skip
COMPARISONS = {"less", "less_equal", "greater", "greater_equal", "equal", "not_equal"}
MAPS = {*EXPRESSIONS, "where", "cast", "adamw"}
COST = {
    "exp": 8, "tanh": 12, "log": 12, "sin": 20, "cos": 20, "expm1": 20, "log1p": 20, "erf": 20, "sigmoid": 10,
    "pow": 30, "div": 3, "sqrt": 4, "rsqrt": 6, "reciprocal": 3, "adamw": 20,
}  # fmt: skip
DEAR = 6  # what costs more is kept in a row buffer rather than computed again


def convert(text: str, have: DType, want: DType) -> str:
    if have == want:
        return text
    if want.kind == "b":
        return f"({text} != 0)"
    return f"(({register(want)}){text})"


@dataclass
class Stage:
    """Row statements, then a pass: its reductions (accumulator, dtype, name), statements for column j, and stores."""

    rows: list[str] = field(default_factory=list)
    reductions: list[tuple[str, DType, str]] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    stores: list[str] = field(default_factory=list)


@dataclass
class Across:
    """A sum over rows: per column, or one in all. `text` accumulates into `acc`."""

    value: Value
    name: str
    column: bool
    acc: str


class Region:
    """A region as C text: `pointers` to what it reads and writes, `base` pointers per row, stages, sums across rows."""

    def __init__(self, step: Step, size: Callable[[Dim], str]) -> None:
        self.step, self.size = step, size
        self.made = {v: p for p in step.pieces for v in p.outputs if v.kind == "arena"}
        self.roots: list[Value | Buffer] = []  # what the function is given a pointer to, in order
        self.pointers: list[str] = []  # once per call
        self.base: list[str] = []  # once per row
        self.loaded: list[str] = []  # row values read from memory, once per row
        self.buffers: list[tuple[str, DType]] = []
        self.across: list[Across] = []
        self.stages: list[Stage] = []
        self.flat = one(step.rows) and all(p.kind == "map" for p in step.pieces)
        self.work = 0
        self._known: dict[tuple[object, ...], str] = {}
        self._number: dict[Value, int] = {}
        self._levels()
        self._needs()
        self._write()

    # -- when: the pass at which each value can be computed
    def _levels(self) -> None:
        self.level: dict[Piece, int] = {}
        at: dict[Value, int] = {}
        for p in self.step.pieces:
            level = max((at.get(v.root, 0) for v in p.inputs if v.root in self.made), default=0)
            self.level[p] = level
            for v in p.outputs:
                at[v] = level + 1 if p.kind == "reduce" else level
        whole = [p for p in self.step.pieces if not p.per_row and p.kind != "gather"]
        self.last = max((self.level[p] for p in whole), default=0)

    def _stored(self, p: Piece) -> list[Value]:
        return [v for v in p.outputs if v in self._stored_set]

    def _needs(self) -> None:
        """In which passes each map is needed, and which maps are kept in buffers."""
        self._stored_set = set(self.step.stored)
        self.needed: dict[Piece, set[int]] = {p: set() for p in self.step.pieces}
        self.kept: dict[Piece, str] = {}
        cost: dict[Piece, int] = {}
        for p in self.step.pieces:
            makers = {self.made[v.root] for v in p.inputs if v.root in self.made}
            cost[p] = min(1000, COST.get(p.name, 1) + sum(cost[q] for q in makers if q.kind == "map" and not q.per_row))
            self.work += COST.get(p.name, 1)
        for p in reversed(self.step.pieces):
            passes = self.needed[p]
            if p.per_row or p.kind == "gather":
                continue
            if p.kind == "reduce":
                passes.add(self.level[p])
            elif p.kind in ("column", "total") or self._stored(p):
                passes.add(self.last)
            if p.kind == "map" and len(passes) > 1 and cost[p] > DEAR and p.name != "copy":
                self.kept[p] = f"b{len(self.buffers)}"
                self.buffers.append((self.kept[p], p.outputs[0].dtype))
                passes = {min(passes)}
            for v in p.inputs:
                q = self.made.get(v.root)
                if q is not None and q.kind == "map" and not q.per_row:
                    self.needed[q] |= passes

    # -- what: text
    def _n(self, v: Value) -> int:
        """A value's number within the region: equal regions are equal text, and one function."""
        return self._number.setdefault(v, len(self._number))

    def slot(self, root: Value | Buffer) -> int:
        """Which argument of the function points to it: one slot each, whoever asks, and in whatever order."""
        if root not in self.roots:
            self.roots.append(root)
        return self.roots.index(root)

    def _pointer(self, root: Value) -> str:
        i, t = self.slot(root), c_type(root.dtype)
        text = f"{t} *const q{i} = ({t} *)a[{i}];"
        if text not in self.pointers:
            self.pointers.append(text)
        return f"q{i}"

    def _place(self, a: Access) -> str:
        """A pointer to the start of the row, named once."""
        key = (a.root, a.offset, a.rows, a.column)
        found = self._known.get(key)
        if found is None:
            terms = [self._pointer(a.root)]
            if not zero(a.offset):
                terms.append(self.size(a.offset))
            for i, (inner, size, stride) in enumerate(a.rows):
                if zero(stride):
                    continue
                r = "r" if one(inner) else f"r / {self.size(inner)}"
                r = f"({r}) % {self.size(size)}" if i else r
                terms.append(f"({r}) * {self.size(stride)}" if not one(stride) else f"({r})")
            found = self._known[key] = f"p{len(self._known)}"
            self.base.append(f"{c_type(a.root.dtype)} *const {found} = {' + '.join(terms)};")
        return found

    def _at(self, a: Access, j: str) -> str:
        pointer = self._place(a)
        if zero(a.column):
            return f"*{pointer}"
        return f"{pointer}[{j}]" if one(a.column) else f"{pointer}[({j}) * {self.size(a.column)}]"

    def _operand(self, p: Piece, i: int, j: str, names: dict[Value, str]) -> str:
        v = p.inputs[i]
        if v.root in names:
            return names[v.root]
        if v.root in self.made:
            return f"t{self._n(v.root)}"
        if v.kind == "literal":
            return (
                literal(v.node.attrs["value"], v.dtype)
                if "value" in v.node.attrs and v.node.op.name == "const"
                else self._row_load(Access(v, 0, (), 0))
            )
        if v.root.kind == "literal":
            return self._row_load(Access(v.root, 0, (), 0))
        a = p.read(i, self.step.columns)
        assert a is not None
        if zero(a.column):
            return self._row_load(a)
        text = self._at(a, j)
        return f"({text} != 0)" if v.dtype.kind == "b" else text

    def _row_load(self, a: Access) -> str:
        key = ("row", a.root, a.offset, a.rows)
        if key not in self._known:
            text = self._at(a, "0")
            name = self._known[key] = f"x{len(self._known)}"
            text = f"({text} != 0)" if a.root.dtype.kind == "b" else text
            self.loaded.append(f"const {register(a.root.dtype)} {name} = {text};")
        return self._known[key]

    def _compute(self, p: Piece, j: str, names: dict[Value, str] | None = None) -> list[str]:
        """Statements that declare what a map makes."""
        names = names or {}
        args = [self._operand(p, i, j, names) for i in range(len(p.inputs))]
        kinds = [v.dtype for v in p.inputs]
        out = p.outputs[0]
        target = names.get(out, self._name(p, out))
        if p.name == "adamw":
            return self._adamw(p, args)
        if p.name == "where":
            text = f"({args[0]} ? {convert(args[1], kinds[1], out.dtype)} : {convert(args[2], kinds[2], out.dtype)})"
        elif p.name == "zero":
            text = literal(0, out.dtype)
        elif p.name == "cast":
            text = convert(args[0], kinds[0], out.dtype)
        elif p.name in COMPARISONS:
            kind = _common(kinds)
            text = EXPRESSIONS[p.name](kind, [convert(a, k, kind) for a, k in zip(args, kinds, strict=True)])
        else:
            text = EXPRESSIONS[p.name](out.dtype, [convert(a, k, out.dtype) for a, k in zip(args, kinds, strict=True)])
            if out.dtype.kind in "bi" and out.dtype.size < 4:  # C computes in int: wrapped back to the stored width
                text = f"({text} != 0)" if out.dtype.kind == "b" else f"(({c_type(out.dtype)}){text})"
        return [f"const {register(out.dtype)} {target} = {text};"]

    def _adamw(self, p: Piece, args: list[str]) -> list[str]:
        pd, kind = p.outputs[0].dtype, p.outputs[1].dtype
        n = p.kernel.node.attrs
        lit = lambda x: literal(np.asarray(x, kind.np), kind)  # noqa: E731
        k, i = c_type(kind), self._n(p.outputs[0])
        w, g, m, v, rate, c1, c2 = (convert(x, y.dtype, kind) for x, y in zip(args, p.inputs, strict=True))
        root = f"sqrt{'f' if kind.size == 4 else ''}"
        scale = f"{root}(v{i} * ({lit(1)} / {c2})) + {lit(n['eps'])}"
        new = f"{w} * ({lit(1)} - {rate} * {lit(n['decay'])}) - m{i} / ({scale}) * ({rate} * ({lit(1)} / {c1}))"
        return [
            f"const {k} g{i} = {g};",
            f"const {k} m{i} = {m} * {lit(n['b1'])} + g{i} * {lit(1 - n['b1'])};",
            f"const {k} v{i} = {v} * {lit(n['b2'])} + g{i} * g{i} * {lit(1 - n['b2'])};",
            f"const {c_type(pd)} t{i} = {convert('(' + new + ')', kind, pd)};",
            *[f"const {k} t{self._n(o)} = {x}{i};" for o, x in zip(p.outputs[1:], "mv", strict=True)],
        ]

    def _write(self) -> None:
        self.stages = [Stage() for _ in range(self.last + 2)]
        for n in range(self.last + 1):
            self._pass(n, self.stages[n])
        for p in self.step.pieces:
            if p.per_row or p.kind == "gather":
                self._row(p)

    def _pass(self, n: int, stage: Stage) -> None:
        for p in self.step.pieces:
            if p.kind in ("map",) and not p.per_row and n in self.needed[p]:
                out = p.outputs[0]
                if p in self.kept and n > min(self.needed[p]):
                    stage.columns.append(f"const {register(out.dtype)} t{self._n(out)} = {self.kept[p]}[j];")
                else:
                    stage.columns += self._compute(p, "j")
                    if p in self.kept:
                        stage.columns.append(f"{self.kept[p]}[j] = t{self._n(out)};")
            elif p.kind == "reduce" and self.level[p] == n:
                self._accumulate(p, stage)
            elif p.kind in ("column", "total") and not p.per_row and n == self.last:
                self._sum_across(p, stage)
        if n == self.last:
            for p in self.step.pieces:
                if p.kind == "map" and not p.per_row:
                    stage.columns += self._stores(p, "j")

    def _stores(self, p: Piece, j: str) -> list[str]:
        out = []
        for v in self._stored(p):
            a = p.write(self.step.columns)
            assert a is not None
            out.append(f"{self._at(a._replace(root=v), j)} = {self._name(p, v)};")
        return out

    def _name(self, p: Piece, v: Value) -> str:
        """Several pieces may write parts of one value: each names its own."""
        return f"t{self._n(v)}" if p.place is None and p.name != "zero" else f"u{self.step.pieces.index(p)}"

    def _accumulate(self, p: Piece, stage: Stage) -> None:
        t, acc = self._operand(p, 0, "j", {}), f"s{self._n(p.outputs[0])}"
        stage.reductions.append((acc, p.outputs[0].dtype, p.name))
        stage.columns += combine(p.name, acc, t, p.outputs[0].dtype)
        if p.outputs[0] in self._stored_set:
            stage.stores.append(f"{self._at(self._per_row(p.outputs[0]), '0')} = t{self._n(p.outputs[0])};")

    def finish(self, acc: str, dtype: DType, name: str) -> str:
        """What a row's reduction is called from then on."""
        text = f"(n{acc} ? ({c_type(dtype)})NAN : {acc})" if name != "sum" and dtype.is_float else acc
        return f"const {register(dtype)} t{acc[1:]} = ({register(dtype)}){text};"

    def _sum_across(self, p: Piece, stage: Stage) -> None:
        out = p.outputs[0]
        t = self._operand(p, 0, "j", {})
        if p.kind == "column":
            self.across.append(Across(out, p.name, True, f"c{self._n(out)}"))
            stage.columns.append(merge(p.name, f"c{self._n(out)}[j]", t, out.dtype))
        else:
            acc = f"s{self._n(out)}"
            stage.reductions.append((acc, out.dtype, p.name))
            stage.columns += combine(p.name, acc, t, out.dtype)
            self.across.append(Across(out, p.name, False, f"c{self._n(out)}"))
            self.stages[self.last + 1].rows.append(merge(p.name, f"c{self._n(out)}", f"t{self._n(out)}", out.dtype))

    def _row(self, p: Piece) -> None:
        """A statement on row values, between the passes."""
        stage = self.stages[self.level[p]]
        if p.kind == "total":
            out = p.outputs[0]
            self.across.append(Across(out, p.name, False, f"c{self._n(out)}"))
            stage.rows.append(merge(p.name, f"c{self._n(out)}", self._operand(p, 0, "0", {}), out.dtype))
            return
        if p.kind == "gather":
            stage.rows += self._gather(p)
            if p.outputs[0] in self._stored_set:
                stage.rows.append(f"{self._at(self._per_row(p.outputs[0]), '0')} = t{self._n(p.outputs[0])};")
            return
        stage.rows += self._compute(p, "0")
        stage.rows += self._stores(p, "0")

    def _per_row(self, v: Value) -> Access:
        """A value of one element per row, row after row."""
        return Access(v, 0, () if one(self.step.rows) else ((1, self.step.rows, 1),), 0)

    def _gather(self, p: Piece) -> list[str]:
        """x at the column given as data: what makes x is computed at that column alone."""
        out, x = p.outputs[0], p.inputs[0]
        j = f"i{self._n(out)}"
        lines = [
            f"int64_t {j} = {self._operand(p, 1, '0', {})};",
            f"{j} = tg_index(c, {j}, {self.size(self.step.columns)});",
        ]
        target = f"t{self._n(out)}"
        if x.root not in self.made:
            return [*lines, f"const {register(out.dtype)} {target} = {self._operand(p, 0, j, {})};"]
        needed: set[Piece] = {self.made[x.root]}
        inner: list[str] = []
        names: dict[Value, str] = {}
        for q in reversed(self.step.pieces):
            if q in needed:
                needed |= {
                    self.made[v.root]
                    for v in q.inputs
                    if v.root in self.made and self.made[v.root].kind == "map" and not self.made[v.root].per_row
                }
        for q in self.step.pieces:
            if q in needed:
                names[q.outputs[0]] = f"g{self._n(out)}_{self._n(q.outputs[0])}"
        for q in self.step.pieces:
            if q in needed:
                inner += self._compute(q, j, names)
        return [*lines, *inner, f"const {register(out.dtype)} {target} = {names[x.root]};"]


def _common(kinds: list[DType]) -> DType:
    from ..dtypes import ALL, promote

    a, b = kinds
    if a == b:
        return a
    if a.is_float != b.is_float:
        return ALL["float64"]
    return promote(a, b)


def accumulator(name: str, dtype: DType) -> str:
    """What a row is summed up in: float32 in double, so that a sum is as good as its terms, whatever the order."""
    return "double" if name == "sum" and dtype.is_float else register(dtype)


def start(name: str, dtype: DType) -> str:
    """The neutral element of a reduction."""
    if name == "sum":
        return literal(0, dtype)
    if dtype.is_float:
        return literal(-math.inf if name == "max" else math.inf, dtype)
    info = np.iinfo(dtype.np)
    return literal(info.min if name == "max" else info.max, dtype)


def combine(name: str, acc: str, t: str, dtype: DType) -> list[str]:
    """Statements that take one more element into a row's reduction."""
    if name == "sum":
        return [f"{acc} += {t};"]
    sign = ">" if name == "max" else "<"
    lines = [f"{acc} = {t} {sign} {acc} ? {t} : {acc};"]
    return [*lines, f"n{acc} |= {t} != {t};"] if dtype.is_float else lines


def merge(name: str, acc: str, t: str, dtype: DType) -> str:
    """A statement that takes one more element into a sum across rows; NaN stays."""
    if name == "sum":
        return f"{acc} += {t};"
    sign = ">" if name == "max" else "<"
    nan = f" || {t} != {t}" if dtype.is_float else ""
    return f"{acc} = {t} {sign} {acc}{nan} ? {t} : {acc};"
