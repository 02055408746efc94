"""`make gallery`: MODELS.md and visualize/gallery/, flowchart and totals of every preset, computed from its graph.

`python tests/gallery.py` writes both; tests/test_gallery.py compares what lies there with what would be written.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tensorgraph.dims import free
from tensorgraph.graph import Graph
from tensorgraph.models import build, presets
from tensorgraph.visualize import Ledger, Picture, draw, ledger

ROOT = Path(__file__).resolve().parent.parent
PAGE, FOLDER = ROOT / "MODELS.md", ROOT / "visualize" / "gallery"
HEAD = """# Models

Every picture and every number on this page is computed from the graph that runs; `make gallery` writes it anew.
Steps that use learned weights are highlighted, layers that repeat stand once, and a box leads to its weights: name,
symbolic shape, count. `tensorgraph draw NAME -o NAME.svg` draws one, at any level and in any theme.
"""


def picture(name: str) -> Picture:
    """The flowchart of a preset, with the same bytes on every machine."""
    model = build(name)
    inputs = model.inputs(getattr(model, "usual", None) or model.needs)
    graph = Graph(model.outputs(**inputs), name=name, aliases=model.aliases)
    drawn = draw(graph, binding=model.binding, where=False)  # a page that is kept does not follow lines of code
    return Picture(drawn.view, engine="graphviz-pure")


def totals(found: Ledger) -> str:
    """The ledger's totals as a Markdown table: numbers beside the formulas that they come from."""
    lines = ["| component | parameters | share | formula |", "|---|--:|--:|---|"]
    sizes = {**found.components, "**total**": found.total}
    if found.number(found.trainable) != found.number(found.total):
        sizes["trained"] = found.trainable
    if found.number(found.active) != found.number(found.total):
        sizes["active per token"] = found.active
    for name, size in sizes.items():
        formula = found.formula(size) if free(size) else ""
        lines.append(f"| {name} | {found.number(size)} | {found.share(size)} | {formula} |")
    return "\n".join(lines)


def section(name: str, drawn: Picture) -> str:
    """What the page says of a preset."""
    return f"""## {name}

![Flowchart of {name}](visualize/gallery/{name}.svg)

{totals(ledger(build(name), name=name))}

<details><summary>as Mermaid</summary>

```mermaid
{drawn.mermaid.rstrip()}
```

</details>
"""


def main() -> int:
    """Write the page and the folder; pictures of presets that are no more are removed."""
    FOLDER.mkdir(exist_ok=True)
    names, parts = presets.names(), []
    for name in names:
        print(name, flush=True)
        drawn = picture(name)
        drawn.save(FOLDER / f"{name}.svg")
        parts.append(section(name, drawn))
    for old in sorted({p.name for p in FOLDER.iterdir()} - {f"{name}.svg" for name in names}):
        (FOLDER / old).unlink()
    PAGE.write_text("\n".join([HEAD, *parts]), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
