"""Every figure in the README comes from a command in it: this runs them and writes, or checks, what they print.

`python tests/readme.py` rewrites the outputs; `--check` exits 1 naming the stale ones. Two kinds of block are run:
a `console` block, whose lines after `$` are commands, and a `python` block that a `text` block follows at once.
Blocks of kind `console no-run` are commands too slow for that: their outputs are pasted from a run, and say so.
A picture that an example saves and the README shows (by the same file name) is kept where the README shows it.
Durations vary between machines, so a number followed by "s" or "ms" is compared as a duration, whatever it is.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.M | re.S)
SHOWN = re.compile(r"!\[[^]]*\]\(([\w/.-]+\.svg)\)")
SAID = re.compile(r">([^<>]+)</text>|(?:fill|stroke)=\"([^\"]+)\"")
DURATION = re.compile(r"\b\d[\d.,]*(?= ?m?s\b)")


def run(command: list[str], folder: Path) -> str:
    """What a command prints, without colours, at 100 columns."""
    env = {
        **os.environ,
        "COLUMNS": "100",
        "NO_COLOR": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=env, timeout=600)
    lines = (done.stdout + done.stderr).rstrip("\n").split("\n")
    return "\n".join(line.rstrip() for line in lines)


def fresh(text: str, folder: Path) -> str:
    """The README with all outputs made anew."""
    out: list[str] = []
    at = 0
    previous: tuple[str, int, str] | None = None  # kind, end, code
    for m in FENCE.finditer(text):
        kind, head, body = m.group(1), m.group(0).split("\n", 1)[0], m.group(2)
        out.append(text[at : m.start()])
        at = m.end()
        if kind == "console" and "no-run" not in head:
            parts = []
            for command in re.findall(r"^\$ (.*)$", body, re.M):
                shown = run(["bash", "-c", command], folder)
                parts.append(f"$ {command}\n{shown}\n" if shown else f"$ {command}\n")
            body = "\n".join(parts)
        elif (
            kind == "text"
            and previous is not None
            and previous[0] == "python"
            and not text[previous[1] : m.start()].strip()
        ):
            code = folder / "example.py"
            code.write_text(previous[2], encoding="utf-8")
            body = run([sys.executable, code.name], folder) + "\n"
        out.append(f"{head}\n{body}```")
        previous = (kind, m.end(), body)
    out.append(text[at:])
    return "".join(out)


def stale(old: str, new: str) -> list[str]:
    """Lines of the README that a fresh run prints otherwise, durations aside."""
    have, want = DURATION.sub("#", old).split("\n"), DURATION.sub("#", new).split("\n")
    return [f"- {a}\n+ {b}" for a, b in zip(have, want, strict=False) if a != b] + (
        [] if len(have) == len(want) else ["another number of lines"]
    )


def pictures(text: str, folder: Path) -> dict[Path, str]:
    """Of the pictures that a README shows, those that its examples have saved in a folder: path, and SVG."""
    made = {ROOT / shown: folder / Path(shown).name for shown in SHOWN.findall(text)}
    return {shown: path.read_text(encoding="utf-8") for shown, path in made.items() if path.is_file()}


def stale_pictures(made: dict[Path, str]) -> list[str]:
    """Those that say something else, or in other colours; where things stand is the layout engine's affair."""
    have = {path: path.read_text(encoding="utf-8") if path.is_file() else "" for path in made}
    old = [path for path, svg in made.items() if sorted(SAID.findall(svg)) != sorted(SAID.findall(have[path]))]
    return [f"{path.relative_to(ROOT)} shows something else" for path in old]


if __name__ == "__main__":
    import tempfile

    path = ROOT / "README.md"
    old = path.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as scratch:
        new = fresh(old, Path(scratch))
        made = pictures(old, Path(scratch))
    if "--check" in sys.argv:
        differences = stale(old, new) + stale_pictures(made)
        print("\n".join(differences) if differences else "README is fresh")
        sys.exit(bool(differences))
    path.write_text(new, encoding="utf-8")
    for shown, svg in made.items():
        if stale_pictures({shown: svg}):
            shown.write_text(svg, encoding="utf-8")
