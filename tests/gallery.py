"""`make gallery`: MODELS.md and visualize/gallery/, flowchart and totals of every preset, computed from its graph.

`python tests/gallery.py` writes both; tests/test_gallery.py compares what lies there with what would be written.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tensorgraph.cli.target import Target, open_target
from tensorgraph.dims import free
from tensorgraph.models import presets
from tensorgraph.visualize import Ledger, Picture, draw, ledger

ROOT = Path(__file__).resolve().parent.parent
PAGE, FOLDER = ROOT / "MODELS.md", ROOT / "visualize" / "gallery"
HEAD = """# Models

Every picture and every number on this page is computed from the graph that runs; `make gallery` writes it anew.
Steps that use learned weights are highlighted, layers that repeat stand once, and a box leads to its weights: name,
symbolic shape, count. `tensorgraph draw NAME -o NAME.svg` draws one, at any level and in any theme.
"""


# Presets that are drawn in modes of training as well.
MODES = {"llama-2-7b": ("lora",), "llava-1.5-7b": ("bridge-only", "bridge+vision", "bridge+llm", "bridge+lora")}


def figures() -> list[tuple[str, str | None]]:
    """Every preset and mode that the page shows, in its order."""
    return [(name, mode) for name in presets.names() for mode in (None, *MODES.get(name, ()))]


def title(name: str, mode: str | None = None) -> str:
    """What a section is called; its picture is called alike, with what a file's name may hold."""
    return name if mode is None else f"{name}, {mode}"


def file(name: str, mode: str | None = None) -> str:
    return title(name, mode).replace(", ", "-").replace("+", "-") + ".svg"


def target_of(name: str, mode: str | None = None) -> Target:
    return open_target(name).train(mode)


DARK = ROOT / "visualize" / "examples" / "gpt2-dark.svg"  # the README's first picture, for readers of dark pages


def dark() -> Picture:
    """The README's first picture on a dark page."""
    return Picture(picture("gpt2").view, theme="dark", engine="graphviz-pure")


def picture(name: str, mode: str | None = None) -> Picture:
    """The flowchart of a preset, with the same bytes on every machine."""
    drawn = draw(target_of(name, mode), where=False, mode=mode or "")  # a page that is kept follows no lines of code
    return Picture(drawn.view, engine="graphviz-pure")


def totals(found: Ledger) -> str:
    """The ledger's totals as a Markdown table: numbers beside the formulas that they come from."""
    lines = ["| component | parameters | share | formula |", "|---|--:|--:|---|"]
    sizes = {**found.components, "**total**": found.total}
    if found.number(found.trainable) != found.number(found.total):
        sizes |= {"trained": found.trainable, "frozen": found.frozen}
    if found.number(found.active) != found.number(found.total):
        sizes["active per token"] = found.active
    for name, size in sizes.items():
        formula = found.formula(size) if free(size) else ""
        lines.append(f"| {name} | {found.number(size)} | {found.share(size)} | {formula} |")
    return "\n".join(lines)


def section(drawn: Picture, name: str, mode: str | None = None) -> str:
    """What the page says of a preset, or of one in a mode of training."""
    target = target_of(name, mode)
    return f"""{"##" if mode is None else "###"} {title(name, mode)}

![Flowchart of {title(name, mode)}](visualize/gallery/{file(name, mode)})

{totals(ledger(target.module, name=name))}

<details><summary>as Mermaid</summary>

```mermaid
{drawn.mermaid.rstrip()}
```

</details>
"""


def main() -> int:
    """Write the page and the folder; pictures of presets that are no more are removed."""
    FOLDER.mkdir(exist_ok=True)
    parts = []
    for figure in figures():
        print(title(*figure), flush=True)
        drawn = picture(*figure)
        drawn.save(FOLDER / file(*figure))
        parts.append(section(drawn, *figure))
    for old in sorted({p.name for p in FOLDER.iterdir()} - {file(*f) for f in figures()}):
        (FOLDER / old).unlink()
    dark().save(DARK)
    PAGE.write_text("\n".join([HEAD, *parts]), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
