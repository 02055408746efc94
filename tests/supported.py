"""The README's table of architectures, from the registry and from what the parity suite compares.

`python tests/supported.py` writes it between its marks; a test holds it there.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from parity.configs import CONFIGS
from parity.configs_families import EXPERTS, FAMILIES
from parity.configs_vision import ENCODERS, VISION

from tensorgraph.models import ARCHITECTURES, presets

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- architectures: python tests/supported.py -->\n", "<!-- /architectures -->\n"
# Files by others that the parity suite opens too.
REAL = {"LlamaForCausalLM": "SmolLM2-135M", "BertModel": "all-MiniLM-L6-v2", "ViTModel": "ViT-S/14 (DINOv2)"}
OURS = ("MiniForCausalLM",)  # no class of transformers


def compared() -> Counter[str]:
    """How many configurations of each class the parity suite compares."""
    tables = (CONFIGS, FAMILIES, EXPERTS, ENCODERS, VISION)
    return Counter(case.cls for table in tables for case in table.values())


def table() -> str:
    """One row per class of transformers."""
    counts = compared()
    published = {name: presets.config(name)["architectures"][0] for name in presets.names()}
    rows = [
        "| transformers class | `model_type` | presets | matched: random instances | real weights |",
        "|---|---|---|--:|---|",
    ]
    for cls, architecture in ARCHITECTURES.items():
        if cls not in OURS:
            own = ", ".join(name for name, of in published.items() if of == cls)
            rows.append(f"| `{cls}` | `{architecture.model_type}` | {own} | {counts[cls]} | {REAL.get(cls, '')} |")
    return "\n".join(rows) + "\n"


def written(text: str) -> str:
    """The README with the table made anew."""
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    return f"{text[:start]}\n{table()}\n{text[end:]}"


if __name__ == "__main__":
    README.write_text(written(README.read_text(encoding="utf-8")), encoding="utf-8")
