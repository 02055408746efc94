"""Code lines by room, without blanks, comments and docstrings, beside the guide of each: `make size`."""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from dataclasses import dataclass
from pathlib import Path

GUIDES = {"core": 3500, "passes": 1000, "io": 800, "cli": 400, "models": 2500, "visualize": 2500}
BACKEND_GUIDE = 1200
NOT_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


@dataclass
class Room:
    """A part of the house: its name, the guide for its size (None: none), and what was counted."""

    name: str
    guide: int | None
    files: int = 0
    lines: int = 0


def code_lines(text: str) -> int:
    """Number of lines of Python source that hold code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NOT_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    lines -= {number for number, line in enumerate(text.splitlines(), start=1) if not line.strip()}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            match node.body[0]:
                case ast.Expr(value=ast.Constant(value=str())) as docstring:
                    lines -= set(range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1))
    return len(lines)


def room_of(path: Path) -> str:
    """Room of a file given relative to the repository's root."""
    head, *rest = path.parts
    if head in ("models", "visualize"):
        return head
    part = Path(rest[0]).stem
    if part == "backends":
        inner = Path(rest[1]).stem
        return "backends" if inner == "__init__" else "backends/c" if inner.startswith("c") else f"backends/{inner}"
    return part if part in ("passes", "io", "cli") else "core"


def rooms(root: Path) -> list[Room]:
    """Every room under `root`, in the order of the guides, with its files and code lines counted."""
    found = {name: Room(name, guide) for name, guide in GUIDES.items()}
    for head in ("tensorgraph", "models", "visualize"):
        for path in sorted((root / head).rglob("*.py")):
            where = path.relative_to(root)
            if where.parts[:2] in (("tensorgraph", "models"), ("tensorgraph", "visualize")):
                continue
            name = room_of(where)
            room = found.setdefault(name, Room(name, BACKEND_GUIDE if "/" in name else None))
            room.files += 1
            room.lines += code_lines(path.read_text(encoding="utf-8"))
    return list(found.values())


def main() -> int:
    """Print the table; exit status 0, since the guides are guides."""
    counted = rooms(Path(__file__).resolve().parents[1])
    print(f"{'room':<20}{'files':>6}{'lines':>8}{'guide':>8}")
    for room in counted:
        over = "  over" if room.guide is not None and room.lines > room.guide else ""
        print(f"{room.name:<20}{room.files:>6}{room.lines:>8,}{room.guide or '':>8}{over}")
    print(f"{'total':<20}{sum(r.files for r in counted):>6}{sum(r.lines for r in counted):>8,}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
