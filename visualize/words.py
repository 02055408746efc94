"""How counts, names and totals are said."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from tensorgraph.dims import Dim, evaluate, free, mul, show
from tensorgraph.nn import sum_sizes
from tensorgraph.tensor import Tensor

GENERIC = ("weight", "bias", "kernel", "scale")  # last parts of parameters' names that do not say which


def human(n: int) -> str:
    """A count in three figures: `768`, `1.54 k`, `38.6 M`, `405 B`."""
    for power, unit in ((12, "T"), (9, "B"), (6, "M"), (3, "k")):
        if n >= 10**power:
            scaled = n / 10**power
            return f"{scaled:.0f} {unit}" if scaled >= 99.95 else f"{scaled:.3g} {unit}"
    return str(n)


def human4(n: int) -> str:
    """A total in four figures: `124.4 M`, `405.9 B`."""
    for power, unit in ((12, "T"), (9, "B"), (6, "M"), (3, "k")):
        if n >= 10**power:
            return f"{n / 10**power:.4g} {unit}"
    return str(n)


def ranges(numbers: Sequence[int]) -> str:
    """Numbers with those in a row, upwards or downwards, as `3…7`: `1, 4…6, 9`."""
    parts: list[str] = []
    at = 0
    while at < len(numbers):
        step, end = 0, at + 1
        while end < len(numbers) and numbers[end] - numbers[end - 1] in ({1, -1} if end == at + 1 else {step}):
            step = numbers[end] - numbers[end - 1]
            end += 1
        end = end if end - at > 2 else at + 1
        parts.append(str(numbers[at]) if end == at + 1 else f"{numbers[at]}…{numbers[end - 1]}")
        at = end
    return ", ".join(parts)


def span(names: Iterable[str]) -> str:
    """One name for names that differ in numbers: `h.0…11.ln_1.weight`, `h.{0…2, 4…6}.ln_1.weight`."""
    found = list(dict.fromkeys(names))
    columns = [list(dict.fromkeys(column)) for column in zip(*(name.split(".") for name in found), strict=False)]
    parts = []
    for column in columns:
        if len(column) == 1 or not all(part.isdigit() for part in column):
            parts.append(column[0] if len(column) == 1 else f"{column[0]}…{column[-1]}")
            continue
        numbers = sorted(map(int, column))
        said = ranges(numbers).split(", ")
        if len(numbers) == numbers[-1] - numbers[0] + 1:
            parts.append(f"{numbers[0]}…{numbers[-1]}")
        else:
            parts.append(f"{{{', '.join(said if len(said) < 5 else [*said[:2], '…', said[-1]])}}}")
    return ".".join(parts)


def in_order(names: Sequence[str]) -> bool:
    """Whether `span` of names says them in this order: their numbers rise."""
    keys = [[int(part) if part.isdigit() else part for part in name.split(".")] for name in names]
    return all(len(a) == len(b) and all(type(x) is type(y) for x, y in zip(a, b, strict=True)) and a < b
               for a, b in pairwise(keys))  # fmt: skip


def own_name(name: str) -> list[str]:
    """The parts of a parameter's name that say which it is: `h.0.attn.c_attn.weight` -> h, 0, attn, c_attn."""
    parts = name.split(".")
    while len(parts) > 1 and parts[-1] in GENERIC:
        parts.pop()
    return parts


def short_name(name: str) -> str:
    """The telling end of a parameter's name: `h.0.attn.c_attn.weight` -> `c_attn`."""
    parts = [p for p in name.split(".") if not p.isdigit()]
    return own_name(".".join(parts))[-1] if parts else name


def title_of(name: str, weights: Iterable[Tensor], binding: Mapping[str, int], aliases: Mapping[str, Dim]) -> str:
    """`name · 124.4 M parameters`, with how many are trained, if not all."""
    sizes = total_and_trained(weights)
    if not free(sizes[0]) and not sizes[0]:
        return name
    total, trained = (human4(evaluate(d, binding)) if free(d) <= binding.keys() else show(d, aliases) for d in sizes)
    return f"{name} · {total} parameters" + ("" if sizes[1] == sizes[0] else f", {trained} trained")


def mode_text(mode: str, weights: Iterable[Tensor], binding: Mapping[str, int], aliases: Mapping[str, Dim]) -> str:
    """`Mode bridge-only: 20,979,712 of 7,063,427,072 weights are trained`; formulas where sizes are open."""
    sizes = total_and_trained(weights)
    known = all(free(d) <= binding.keys() for d in sizes)
    total, trained = (f"{evaluate(d, binding):,}" if known else show(d, aliases) for d in sizes)
    return f"Mode {mode}: {trained} of {total} weights are trained"


def total_and_trained(weights: Iterable[Tensor]) -> tuple[Dim, Dim]:
    """How many numbers the counted parameters are, and those of them that are trained."""
    counted = [p for p in weights if p.attrs.get("counted", True)]
    total = sum_sizes([mul(p.size, p.scope.times) for p in counted])
    return total, sum_sizes([mul(p.size, p.scope.times) for p in counted if p.attrs.get("trained", True)])


__all__ = [
    "human",
    "human4",
    "in_order",
    "mode_text",
    "own_name",
    "ranges",
    "short_name",
    "span",
    "title_of",
    "total_and_trained",
]
