"""What a gradient check found: verdicts, a table, JSON, an exception with the same words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import GradError, counted
from ..tensor import Tensor

PASS, WRONG_VJP, WRONG_SUM, KINK = "PASS", "WRONG VJP", "WRONG SUM", "KINK"
PRECISION, NONDETERMINISTIC, NO_PATH, NONFINITE = "PRECISION", "NONDETERMINISTIC", "NO PATH", "NONFINITE"
ACCEPTED = (PASS, KINK)
SHOWN = 12


@dataclass
class Entry:
    """One op of one kind of block: what was found at its representative, and for how many nodes that stands.

    `inputs` holds the residual of each differentiable input; `input` is the wrong one; `inside` the named ops whose
    definition the node is part of; `whole` marks the check of the whole graph.
    """

    verdict: str
    op: str
    residual: float = 0.0
    input: str = ""
    inputs: dict[str, float] = field(default_factory=dict)
    note: str = ""
    layer: str = ""
    block: str = ""
    line: str = ""
    type: str = ""
    count: int = 1
    inside: tuple[str, ...] = ()
    backward: bool = False
    method: str = "complex step"
    node: Tensor | None = None
    whole: bool = False

    @property
    def passed(self) -> bool:
        return self.verdict in ACCEPTED

    @property
    def place(self) -> str:
        """`softmax in attention, layers.0.attn, gpt2.py:88`."""
        where = [self.op + (f" in {'.'.join(self.inside)}" if self.inside else "")]
        where += [p for p in (("∂" if self.backward else "") + self.layer, self.line) if p]
        return ", ".join(where)

    def words(self) -> str:
        """The finding as one line."""
        what = f"{self.verdict}: {self.place}"
        what += f": input {self.input}" if self.input else ""
        what += f" ({self.count} nodes alike)" if self.count > 1 else ""
        return f"{what}: {self.note}" if self.note else f"{what}: residual {self.residual:.1e}"

    def json(self) -> dict[str, Any]:
        out: dict[str, Any] = {
            "op": self.op,
            "verdict": self.verdict,
            "residual": _number(self.residual),
            "layer": self.layer,
            "line": self.line,
        }
        out |= {
            "block": self.block,
            "count": self.count,
            "input": self.input,
            "inputs": {k: _number(v) for k, v in self.inputs.items()},
        }
        out |= {"inside": list(self.inside), "backward": self.backward, "method": self.method, "note": self.note}
        return out


def _number(x: float) -> float | str:
    return float(x) if x == x and abs(x) != float("inf") else str(x)


class Residuals(dict[Tensor, float]):
    """Residual by node, for colouring a drawing: above `limit` it is wrong.

    `within`: by node and by op of its definition, where that was checked in the node's place.
    """

    limit = 1e-9
    label = "residual"

    def __init__(self) -> None:
        super().__init__()
        self.within: dict[Tensor, dict[str, float]] = {}

    def put(self, node: Tensor, residual: float, part: str = "") -> None:
        """Note a residual of a node, or of one op of its definition; the largest counts."""
        self[node] = max(self.get(node, 0.0), residual)
        if part:
            parts = self.within.setdefault(node, {})
            parts[part] = max(parts.get(part, 0.0), residual)

    def renamed(self, names: Mapping[Tensor, Tensor]) -> Residuals:
        """The same about other nodes, those of another graph of the same structure."""
        out = Residuals()
        for t, r in self.items():
            out.put(names.get(t, t), r)
            for part, own in self.within.get(t, {}).items():
                out.put(names.get(t, t), own, part)
        return out


@dataclass
class Report:
    """The result of `check_grads`: true if every gradient is right.

    `entries`: one per op and kind of block, worst first; `whole`: the check of the graph as a whole; `sizes`: what the
    symbols were bound to; `values`: residual by node, for colouring a drawing.
    """

    entries: list[Entry]
    whole: list[Entry]
    directions: int
    seed: int
    sizes: dict[str, int] = field(default_factory=dict)
    name: str = "graph"
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    values: Residuals = field(default_factory=Residuals)

    @property
    def passed(self) -> bool:
        return all(e.passed for e in (*self.whole, *self.entries))

    def __bool__(self) -> bool:
        return self.passed

    @property
    def worst_residual(self) -> float:
        """The largest residual; infinite where something is not finite."""
        return max((e.residual for e in (*self.whole, *self.entries)), default=0.0)

    @property
    def wrong(self) -> list[Entry]:
        """What did not pass: nodes first, then findings about the whole."""
        return [e for e in (*self.entries, *self.whole) if not e.passed]

    @property
    def nodes(self) -> int:
        return sum(e.count for e in self.entries)

    def summary(self) -> str:
        """One line: the verdict, the worst residual, what was checked."""
        sizes = ", ".join(f"{n}={v}" for n, v in self.sizes.items())
        head = "gradients of {} are right" if self.passed else "gradients of {} are wrong"
        if not self.passed and not any(e.verdict in (WRONG_VJP, WRONG_SUM) for e in self.wrong):
            head = "gradients of {}: " + self.wrong[0].verdict
        alike = counted(self.nodes, "node")
        if self.nodes > len(self.entries):
            alike += f" in {counted(len(self.entries), 'kind')}"
        text = f"{head.format(self.name)}: worst residual {self.worst_residual:.1e}, {alike}"
        return f"{text}, {counted(self.directions, 'direction')}, seed {self.seed}" + (f", {sizes}" if sizes else "")

    def rows(self, only_wrong: bool = False) -> list[Entry]:
        """Findings, worst first; nodes before the whole graph, which is wrong because they are."""
        worst_first = (WRONG_VJP, WRONG_SUM, NONFINITE, NONDETERMINISTIC, NO_PATH, PRECISION, KINK, PASS)
        rank = {verdict: i for i, verdict in enumerate(worst_first)}

        def order(e: Entry) -> tuple[bool, bool, int, float]:
            return e.passed, e.whole and not e.passed, rank[e.verdict], -e.residual

        found = sorted((*self.entries, *self.whole), key=order)
        return [e for e in found if not e.passed] if only_wrong else found

    def table(self, only_wrong: bool = False, limit: int | None = None) -> Any:
        """A rich table, worst first."""
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(self.summary()), title_justify="left", box=None, pad_edge=False)
        for name, side in (
            ("verdict", "left"),
            ("op", "left"),
            ("input", "left"),
            ("residual", "right"),
            ("nodes", "right"),
            ("layer", "left"),
            ("line", "left"),
        ):
            table.add_column(name, justify="right" if side == "right" else "left", overflow="fold")
        rows = self.rows(only_wrong)
        for e in rows[:limit]:
            style = "green" if e.verdict == PASS else "yellow" if e.passed else "bold red"
            op = e.op + (f" in {'.'.join(e.inside)}" if e.inside else "")
            cells = (
                e.verdict,
                op,
                e.input,
                f"{e.residual:.1e}",
                str(e.count),
                ("∂" if e.backward else "") + (e.block or e.layer),
                e.line,
            )
            table.add_row(*[Text(c, style=style if i == 0 else "") for i, c in enumerate(cells)])
            if e.note and e.verdict != PASS:
                table.add_row("", Text(e.note, style="italic"))
        if limit is not None and len(rows) > limit:
            table.add_row("", Text(f"... and {len(rows) - limit} more"))
        if self.notes:
            table.caption, table.caption_justify = Text("\n".join(self.notes)), "left"
        return table

    def __rich__(self) -> Any:
        return self.table(limit=40)

    def text(self, only_wrong: bool = False, limit: int | None = None) -> str:
        """The report as plain text: the summary, then a line per finding, worst first."""
        rows = self.rows(only_wrong)
        cells = []
        for e in rows[:limit]:
            op = e.op + (f" in {'.'.join(e.inside)}" if e.inside else "")
            cells.append(
                (
                    e.verdict,
                    op,
                    e.input,
                    f"{e.residual:.1e}",
                    f"×{e.count}",
                    ("∂" if e.backward else "") + (e.block or e.layer),
                    e.line,
                )
            )
        widths = [max((len(c[i]) for c in cells), default=0) for i in range(7)]
        lines = [self.summary()]
        for e, c in zip(rows, cells, strict=False):
            lines.append("  " + "  ".join(f"{x:<{w}}" for x, w in zip(c, widths, strict=True)).rstrip())
            if e.note and e.verdict != PASS:
                lines.append("      " + e.note)
        if limit is not None and len(rows) > limit:
            lines.append(f"  ... and {len(rows) - limit} more")
        return "\n".join(lines + [f"  {n}" for n in self.notes])

    def __str__(self) -> str:
        return self.text(limit=SHOWN)

    def __repr__(self) -> str:
        return f"<Report {self.summary()}>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return {"text/plain": str(self)}

    def to_json(self) -> dict[str, Any]:
        """The report as plain data: `passed`, `worst_residual`, `directions`, `seed`, `sizes`, `whole`, `ops`."""
        return {
            "passed": self.passed,
            "worst_residual": _number(self.worst_residual),
            "directions": self.directions,
            "seed": self.seed,
            "sizes": dict(self.sizes),
            "nodes": self.nodes,
            "seconds": round(self.seconds, 3),
            "whole": [e.json() for e in self.whole],
            "ops": [e.json() for e in self.rows() if not e.whole],
            "notes": list(self.notes),
        }

    def raise_if_failed(self) -> Report:
        """This report, if it passed. Raises GradError[TG420] with its words otherwise."""
        if not self.passed:
            raise GradError("TG420", self.summary(), notes=[e.words() for e in self.rows(only_wrong=True)])
        return self
