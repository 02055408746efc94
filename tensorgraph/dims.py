"""Symbolic sizes: canonical sympy expressions, their order, their values once sizes are chosen.

A dim is a Python int or a canonical sympy expression: a sum of monomials in our own integer symbols, expanded and
interned, so that equal sizes are the *same object*. Exponents may be negative (`H/G`): such a size owes the
obligation that the division is exact. While a graph is built nothing here simplifies, solves or compares truth
values in sympy; sums, products and quotients are memoised by their operands.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeAlias, TypeVar, cast

from .errors import Loc, SizeError, caller, place

if TYPE_CHECKING:
    import sympy

Dim: TypeAlias = "int | sympy.Expr"
Shape: TypeAlias = "tuple[Dim, ...]"


class _Facts(NamedTuple):
    symbol: Any
    min: int
    loc: Loc


class Term(NamedTuple):
    """coef * prod(name ** power), as read off a canonical expression."""

    coef: int | Fraction
    powers: tuple[tuple[str, int], ...]


_facts: dict[str, _Facts] = {}  # what is known of each name; names, not objects, identify symbols
_assumed: dict[str, Dim] = {}  # tg.assume
_interned: dict[Any, Dim] = {}
_memo: dict[tuple[Any, ...], Any] = {}


_P = ParamSpec("_P")
_R = TypeVar("_R")
_MISSING = object()


def memoised(f: Callable[_P, _R]) -> Callable[_P, _R]:
    """A function of sizes that computes each result once, until an assumption is made."""

    @functools.wraps(f)
    def remembered(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        key = (f, *args)
        found = _memo.get(key, _MISSING)
        if found is _MISSING:
            found = _memo[key] = f(*args, **kwargs)
        return cast("_R", found)

    return remembered


# ---------------------------------------------------------------------------------------------- symbols


def dim(name: str, min: int | None = None) -> Dim:
    """An integer size named `name`, at least `min` (0 for what may be empty; by default as declared before, or 1).

    Raises SizeError[TG001] for a malformed name or minimum, [TG002] if the name already has another minimum.
    """
    if not isinstance(name, str) or not name.isidentifier() or len(name) > 100:
        raise SizeError("TG001", f"a size's name must be an identifier, not {str(name)[:100]!r}", hint='tg.dim("T")')
    if min is not None and (type(min) is not int or min < 0):
        raise SizeError("TG001", f"the minimum of size {name!r} must be a non-negative int, not {min!r}")
    known = _facts.get(name)
    if known is None:
        import sympy

        min = 1 if min is None else min
        symbol = sympy.Symbol(name, integer=True, nonnegative=True, positive=True if min >= 1 else None)
        known = _facts[name] = _Facts(symbol, min, caller())
        _interned[symbol] = symbol
    elif min is not None and known.min != min:
        raise SizeError(
            "TG002",
            f"size {name!r} was declared with min={known.min} before, and now with min={min}",
            hint="a name means one size everywhere; choose another name",
        )
    return cast("Dim", known.symbol)


def dims(names: str, min: int | None = None) -> tuple[Dim, ...]:
    """Several sizes at once: `B, T, d = tg.dims("B T d")`."""
    return tuple(dim(n, min) for n in names.replace(",", " ").split())


def assume(symbol: Dim, value: Any) -> None:
    """State that a symbol equals another size from now on: `tg.assume(S, P + T)`.

    The equality is an obligation of every graph in which `symbol` occurs, checked when sizes are bound.
    Raises SizeError[TG003] if `symbol` is not one symbol, occurs in `value`, was assumed otherwise before, or cannot
    be as small as `value`.
    """
    name = symbol_name(symbol)
    if name is None:
        raise SizeError("TG003", f"assume needs one symbol on the left, not {show(symbol)}", hint="tg.assume(S, P + T)")
    value = canon(value)
    if name in free(resolve(value)):
        raise SizeError("TG003", f"assume {name} = {show(value)}: {name} occurs on both sides")
    if name in _assumed and not same(_assumed[name], value):
        raise SizeError("TG003", f"{name} = {show(_assumed[name])} was assumed before, now {name} = {show(value)}")
    if at_least(value, minimum(name)) is False:
        raise SizeError("TG003", f"{name} = {show(value)} is below the minimum of {name}, {minimum(name)}")
    _assumed[name] = value
    _memo.clear()


def assumptions(names: Iterable[str]) -> dict[str, Dim]:
    """The assumed equalities for those of `names` that have one."""
    return {n: _assumed[n] for n in names if n in _assumed}


def symbol_name(d: Any) -> str | None:
    """The name if `d` is a single symbol, else None."""
    return d.name if getattr(d, "is_Symbol", False) else None


def minimum(name: str) -> int:
    return _facts[name].min


def origins(names: Iterable[str]) -> str:
    """Where sizes were first named: `d, f (llama.py:12)  T (train.py:3)`."""
    at: dict[str, list[str]] = {}
    for n in names:
        if n in _facts and (where := place(_facts[n].loc)):
            at.setdefault(where, []).append(n)
    return "  ".join(f"{', '.join(ns)} ({where})" for where, ns in at.items())


# ------------------------------------------------------------------------------------------ normal form


def canon(x: Any) -> Dim:
    """The canonical form of anything that can be a size: int, our symbols, foreign sympy expressions.

    Raises SizeError[TG004] for what cannot be an integer size, [TG005] for an unsupported form.
    """
    if type(x) is int:
        return x
    if isinstance(x, (float, complex, str, bool)) or x is None:
        raise SizeError("TG004", f"{x!r} ({type(x).__name__}) is not a size", hint="sizes are ints or tg.dim symbols")
    try:
        found = _interned.get(x)
    except TypeError:
        found = None
    if found is not None:
        return found
    if not hasattr(x, "free_symbols"):
        try:
            return operator.index(x)
        except TypeError:
            raise SizeError("TG004", f"{x!r} ({type(x).__name__}) is not a size") from None
    import sympy

    swap = {}
    for s in x.free_symbols:
        if s.is_integer is False or s.is_real is False or s.is_negative is True:
            text = f"symbol {s.name!r} is declared not to be a non-negative integer"
            raise SizeError("TG004", text, hint=f'use tg.dim("{s.name}")')
        known = _facts.get(s.name)
        ours = known.symbol if known else dim(s.name, 0 if s.is_nonnegative and s.is_positive is None else 1)
        if ours is not s:
            swap[s] = ours
    expr = sympy.expand(x.xreplace(swap) if swap else x)
    if expr.is_Number:
        if not expr.is_Integer:
            raise SizeError("TG004", f"{expr} is not a whole number")
        result: Dim = int(expr)
    else:
        for node in sympy.preorder_traversal(expr):
            fine = node.is_Symbol or node.is_Rational or node.is_Add or node.is_Mul
            if not fine and not (node.is_Pow and node.base.is_Symbol and node.exp.is_Integer):
                raise SizeError(
                    "TG005",
                    f"{x} is not a size: only sums, products and exact quotients of sizes are",
                    hint="write a/b for a quotient: it obliges b to divide a" if "floor" in str(x) else None,
                )
        result = cast("Dim", _interned.setdefault(expr, expr))
    _interned[x] = result
    return result


def shape(xs: Any) -> Shape:
    """A canonical shape from an int, a size or an iterable of sizes."""
    if isinstance(xs, (tuple, list)):
        return tuple([x if type(x) is int else canon(x) for x in xs])
    return (canon(xs),)


def add(a: Dim, b: Dim) -> Dim:
    if type(a) is int and type(b) is int:
        return a + b
    key = (0, a, b)
    found = _memo.get(key)
    if found is None:
        found = _memo[key] = canon(cast("Any", a) + b)
    return found


def mul(a: Dim, b: Dim) -> Dim:
    if type(a) is int and type(b) is int:
        return a * b
    key = (1, a, b)
    found = _memo.get(key)
    if found is None:
        found = _memo[key] = canon(cast("Any", a) * b)
    return found


def sub(a: Dim, b: Dim) -> Dim:
    return add(a, mul(-1, b))


def div(a: Dim, b: Dim) -> Dim:
    """The exact quotient a / b. Of symbols it may be a Laurent monomial, `H/G`, which owes that G divides H.

    Raises SizeError[TG006] if it is not exact, or if `b` is a sum that does not divide `a`.
    """
    key = (2, a, b)
    found = _memo.get(key)
    if found is not None:
        return cast("Dim", found)
    if b == 0:
        raise SizeError("TG006", f"{show(a)} / 0")
    if type(a) is int and type(b) is int:
        if a % b:
            raise SizeError("TG006", f"{a} is not divisible by {b}")
        return a // b
    import sympy

    if len(terms(b)) == 1:
        quotient = canon(cast("Any", a) / b)
    else:
        quo, rest = sympy.div(a, b, *sorted(cast("Any", b).free_symbols, key=str))
        if rest != 0:
            raise SizeError("TG006", f"{show(a)} is not divisible by {show(b)}")
        quotient = canon(quo)
    _memo[key] = quotient
    return quotient


def size(dims: Sequence[Dim]) -> Dim:
    """The product of a shape's sizes."""
    total: Dim = 1
    for d in dims:
        total = mul(total, d)
    return total


def resolve(d: Dim) -> Dim:
    """`d` with every assumed symbol replaced by what it is assumed to equal."""
    while type(d) is not int and (known := assumptions(free(d))):
        d = substitute(d, known)
    return d


def same(a: Dim, b: Dim) -> bool:
    """Whether two sizes have the same normal form (under the assumptions made so far)."""
    if a is b:
        return True
    if type(a) is int and type(b) is int:
        return a == b
    return bool(_assumed) and _equal(resolve(a), resolve(b))


def _equal(a: Dim, b: Dim) -> bool:
    return a is b or (type(a) is int and type(b) is int and a == b)


def same_shape(a: Shape, b: Shape) -> bool:
    return a is b or (len(a) == len(b) and all(map(same, a, b)))


# ------------------------------------------------------------------------------------- terms and order


def terms(d: Dim) -> tuple[Term, ...]:
    """The monomials of a canonical size, highest degree first."""
    if type(d) is int:
        return (Term(d, ()),)
    key = (3, d)
    found = _memo.get(key)
    if found is None:
        out = []
        for mono, coef in cast("Any", d).as_coefficients_dict().items():
            powers = {s.name: int(e) for s, e in mono.as_powers_dict().items() if s.is_Symbol}
            c = Fraction(int(coef.p), int(coef.q))
            out.append(Term(int(c) if c.denominator == 1 else c, tuple(sorted(powers.items()))))
        out.sort(key=lambda t: (-sum(p for _, p in t.powers), t.powers))
        found = _memo[key] = tuple(out)
    return cast("tuple[Term, ...]", found)


def free(d: Dim) -> frozenset[str]:
    """Names of the symbols in a size."""
    return frozenset() if type(d) is int else frozenset(n for t in terms(d) for n, _ in t.powers)


def at_least(a: Dim, b: Dim) -> bool | None:
    """Whether a >= b for every admissible binding: True, False (never), or None (it depends).

    Decided by the signs of the expanded difference after each symbol is shifted by its minimum.
    """
    if type(a) is int and type(b) is int:
        return a >= b
    key = (4, a, b)
    if key not in _memo:
        diff = resolve(sub(a, b))
        verdict: bool | None = None
        if type(diff) is int:
            verdict = diff >= 0
        elif all(t.coef > 0 for t in terms(diff)):
            verdict = True
        elif all(p > 0 for t in terms(diff) for _, p in t.powers):
            grown = {_facts[n].symbol: _facts[n].symbol + _facts[n].min for n in free(diff)}
            shifted = canon(cast("Any", diff).xreplace(grown))
            coefs = {t.powers: t.coef for t in terms(shifted)}
            if all(c >= 0 for c in coefs.values()):
                verdict = True
            elif all(c <= 0 for c in coefs.values()) and coefs.get((), 0) < 0:
                verdict = False
        _memo[key] = verdict
    return cast("bool | None", _memo[key])


# --------------------------------------------------------------------------------------------- binding


def evaluate(d: Dim, binding: Mapping[str, int]) -> int:
    """The value of a size under a full binding.

    Raises SizeError[TG007] for an unbound symbol, [TG008] for a quotient that is not exact.
    """
    if type(d) is int:
        return d
    total: int | Fraction = 0
    try:
        for coef, powers in terms(d):
            value: int | Fraction = coef
            for name, power in powers:
                b = binding[name]
                if power > 0:
                    value = value * (b if power == 1 else b**power)
                elif b == 0:
                    raise SizeError("TG008", f"{show(d)} divides by {name} = 0")
                else:
                    value = value * Fraction(1, b**-power)
            total = total + value
    except KeyError as missing:
        name = missing.args[0]
        notes, hint = [f"needed for {show(d)}"], f'bind it: "{name}=4"'
        raise SizeError("TG007", f"size {name!r} has no value", notes=notes, hint=hint) from None
    if type(total) is int:
        return total
    if total.denominator != 1:
        values = ", ".join(f"{n}={binding[n]}" for n in sorted(free(d)))
        raise SizeError("TG008", f"{show(d)} is not a whole number for {values}")
    return int(total)


def substitute(d: Dim, values: Mapping[str, Dim]) -> Dim:
    """`d` with symbols replaced by other sizes (ints or expressions)."""
    if type(d) is int:
        return d
    swap = {_facts[n].symbol: values[n] for n in free(d) if n in values}
    return canon(cast("Any", d).subs(swap, simultaneous=True)) if swap else d


def fractional(d: Dim) -> tuple[Term, ...]:
    """The monomials of `d` that are whole only if a division is exact."""
    return tuple(t for t in terms(d) if type(t.coef) is not int or any(p < 0 for _, p in t.powers))


# -------------------------------------------------------------------------------------------- printing

_SUPER = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def show(d: Any, aliases: Mapping[str, Dim] | None = None) -> str:
    """A size as people write it: `12·d² + 13·d`, `H/G`. `aliases` folds products: {"d": H·k} prints H²·k² as d²."""
    if type(d) is int:
        return str(d)
    if not hasattr(d, "free_symbols"):
        return repr(d)
    out: dict[tuple[tuple[str, int], ...], int | Fraction] = {}
    for coef, powers in terms(canon(d)):
        folded = _fold(dict(powers), coef, aliases or {})
        out[folded[0]] = out.get(folded[0], 0) + folded[1]
    text = ""
    rows: list[Any] = sorted(out.items(), key=lambda kv: (-sum(p for _, p in kv[0]), kv[0]))
    if rows[0][1] < 0:  # 1 - d rather than -d + 1
        rows.sort(key=lambda kv: kv[1] < 0)
    for powers, coef in rows:
        body = _monomial(abs(coef), powers)
        text += (" - " if coef < 0 else " + ") + body if text else ("-" if coef < 0 else "") + body
    return text


def _fold(
    powers: dict[str, int], coef: int | Fraction, aliases: Mapping[str, Dim]
) -> tuple[tuple[tuple[str, int], ...], int | Fraction]:
    for name, value in aliases.items():
        if type(value) is int:
            continue
        whole = terms(value)
        if len(whole) != 1 or not whole[0].powers or whole[0].powers == ((name, 1),):
            continue
        times = min(max(powers.get(n, 0) // p, 0) for n, p in whole[0].powers)
        if times > 0:
            for n, p in whole[0].powers:
                powers[n] -= times * p
            powers[name] = powers.get(name, 0) + times
            coef = coef / Fraction(whole[0].coef) ** times
            if coef.denominator == 1:
                coef = int(coef)
    return tuple(sorted((n, p) for n, p in powers.items() if p)), coef


def _monomial(coef: int | Fraction, powers: tuple[tuple[str, int], ...]) -> str:
    def factor(n: str, p: int) -> str:
        return n if p == 1 else n + str(p).translate(_SUPER)

    over = [factor(n, p) for n, p in powers if p > 0]
    under = [factor(n, -p) for n, p in powers if p < 0]
    c = Fraction(coef)
    if c.numerator != 1 or not over:
        over.insert(0, str(c.numerator))
    if c.denominator != 1:
        under.insert(0, str(c.denominator))
    top = "·".join(over)
    return top if not under else f"{top}/{under[0]}" if len(under) == 1 else f"{top}/({'·'.join(under)})"


def show_shape(s: Sequence[Any], aliases: Mapping[str, Dim] | None = None) -> str:
    return "[" + ", ".join(show(d, aliases) for d in s) + "]"


# --------------------------------------------------------------------------------------------- parsing


def parse(text: str) -> Dim:
    """A size from text: integers, names, `+ - * / ^ ** ·` and parentheses. Nothing is evaluated by Python.

    Raises SizeError[TG009] pointing at the place.
    """
    tokens = _tokens(text)
    value, rest = _sum(tokens, 0, text)
    if rest != len(tokens):
        raise _bad(text, tokens[rest][1])
    return value


def parse_binding(text: str) -> dict[str, Dim]:
    """`"B=2,T=4*d"` as {name: size}; separators are commas, semicolons or blanks between pairs."""
    out: dict[str, Dim] = {}
    for part in text.replace(";", ",").split(","):
        if not part.strip():
            continue
        name, eq, value = part.partition("=")
        name = name.strip()
        if not eq or not name.isidentifier() or not value.strip():
            raise SizeError("TG009", f"cannot read {part.strip()!r} as a size", hint='write sizes as "B=2,T=4*d"')
        if name in out:
            raise SizeError("TG009", f"{name!r} is given twice in {text!r}")
        out[name] = parse(value)
    return out


def binding(*given: str | Mapping[str, Any] | None) -> dict[str, int]:
    """One full binding from texts and mappings; values may refer to other bound sizes.

    Raises SizeError[TG010] for a value below the symbol's minimum or a circular definition.
    """
    open_: dict[str, Dim] = {}
    for g in given:
        if g:
            open_.update(parse_binding(g) if isinstance(g, str) else {_name(k): canon(v) for k, v in g.items()})
    done: dict[str, int] = {}
    while open_:
        ready = [n for n, v in open_.items() if free(v) <= done.keys()]
        if not ready:
            n = min(open_)
            unknown = sorted(free(open_[n]) - done.keys())
            lack = "which have no value" if len(unknown) > 1 else "which has no value"
            if set(unknown) <= open_.keys():
                lack = "which needs it in turn" if unknown != [n] else "itself"
            raise SizeError("TG010", f"{n} = {show(open_[n])} needs {', '.join(unknown)}, {lack}")
        for n in ready:
            done[n] = evaluate(open_.pop(n), done)
    check_minima(done)
    return done


def check_minima(values: Mapping[str, int]) -> None:
    """Raise SizeError[TG010] for a value below its symbol's minimum."""
    for n, value in values.items():
        low = _facts[n].min if n in _facts else 0
        if value < low:
            hint = f'tg.dim("{n}", min={value})' if value >= 0 else None
            raise SizeError("TG010", f"{n} = {value} is below its minimum, {low}", hint=hint)


def _name(key: Any) -> str:
    name = key if isinstance(key, str) else symbol_name(key)
    if name is None:
        raise SizeError("TG009", f"{key!r} is not the name of a size", hint='{"B": 2}')
    return name


DIGITS = "0123456789"
LARGEST = 400  # monomials, and decimal digits of a coefficient, that a size read from text may have


def _tokens(text: str) -> list[tuple[str, int]]:
    out, i = [], 0
    while i < len(text):
        c = text[i]
        if c.isspace():
            i += 1
        elif c in DIGITS or c.isidentifier():
            j = i + 1
            while j < len(text) and (
                text[j] in DIGITS + "_" if c in DIGITS else text[j].isidentifier() or text[j] in DIGITS
            ):
                j += 1
            if j - i > 100:
                raise SizeError("TG009", "this size is too long to be one")
            out.append((text[i:j], i))
            i = j
        elif text[i : i + 2] == "**":
            out.append(("^", i))
            i += 2
        elif c in "+-*/^()·":
            out.append(("*" if c == "·" else c, i))
            i += 1
        else:
            raise _bad(text, i)
        if len(out) > 200:
            raise SizeError("TG009", "this size is too long to be one")
    return out


def _bad(text: str, at: int) -> SizeError:
    start = max(0, at - 60)
    line = "".join(c if c.isprintable() else "?" for c in text[start : at + 60])
    notes = ["  " + line, "  " + " " * (at - start) + "^"]
    return SizeError("TG009", "cannot read this as a size", notes=notes, hint='for example "4*d" or "P + T"')


def _times(a: Dim, b: Dim) -> Dim:
    """The product, refused before it grows out of hand."""
    left, right = terms(a), terms(b)
    digits = sum(max(abs(Fraction(t.coef).numerator) for t in ts).bit_length() for ts in (left, right)) * 0.30103
    if len(left) * len(right) > LARGEST or digits > LARGEST:
        raise SizeError("TG009", "this size is too large to be one")
    return mul(a, b)


def _sum(tokens: list[tuple[str, int]], i: int, text: str) -> tuple[Dim, int]:
    value, i = _product(tokens, i, text)
    while i < len(tokens) and tokens[i][0] in "+-":
        right, j = _product(tokens, i + 1, text)
        value = add(value, right if tokens[i][0] == "+" else mul(-1, right))
        i = j
    return value, i


def _product(tokens: list[tuple[str, int]], i: int, text: str) -> tuple[Dim, int]:
    value, i = _power(tokens, i, text)
    while i < len(tokens) and tokens[i][0] in "*/":
        right, j = _power(tokens, i + 1, text)
        value = _times(value, right) if tokens[i][0] == "*" else div(value, right)
        i = j
    return value, i


def _power(tokens: list[tuple[str, int]], i: int, text: str) -> tuple[Dim, int]:
    if i >= len(tokens):
        raise _bad(text, len(text))
    word, at = tokens[i]
    if word == "-":
        value, i = _power(tokens, i + 1, text)
        return mul(-1, value), i
    if word == "(":
        value, i = _sum(tokens, i + 1, text)
        if i >= len(tokens) or tokens[i][0] != ")":
            raise _bad(text, tokens[i][1] if i < len(tokens) else len(text))
        i += 1
    elif word[0] in DIGITS:
        value, i = int(word.replace("_", "")), i + 1
    elif word.isidentifier():
        value, i = (_facts[word].symbol if word in _facts else dim(word)), i + 1
    else:
        raise _bad(text, at)
    if i < len(tokens) and tokens[i][0] == "^":
        if i + 1 >= len(tokens) or tokens[i + 1][0][0] not in DIGITS or int(tokens[i + 1][0].replace("_", "")) > 64:
            raise _bad(text, tokens[i][1])
        base = value
        value = 1
        for _ in range(int(tokens[i + 1][0].replace("_", ""))):
            value = _times(value, base)
        i += 2
    return value, i
