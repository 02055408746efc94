"""The text form of every family's graph, kept in tests/golden/models: a refactor that changes a model shows as a diff.

TENSORGRAPH_GOLDEN=write makes the files anew.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import tensorgraph as tg
from tensorgraph.models import build

FOLDER = Path(__file__).parent / "golden" / "models"
# One layer is enough where all are alike.
MODELS = {
    "mini-268": build("mini-268"),
    "mini-11776": build("mini-11776", norms=True, final_norm=True, tie_word_embeddings=True),
    "gpt2": build("gpt2", layers=1),
    "llama-3.1-405b": build("llama-3.1-405b", layers=1),
    "smollm2-135m-symbolic-layers": build("smollm2-135m", layers=tg.dim("n")),
    "mistral-7b": build("mistral-7b", layers=1),
    "mixtral-8x7b": build("mixtral-8x7b", layers=1),
    "deepseek-v3": build("deepseek-v3", layers=2, first_k_dense_replace=1),
    "qwen2.5-7b": build("qwen2.5-7b", layers=1),
    "qwen3-0.6b": build("qwen3-0.6b", layers=1),
    "gemma-2b": build("gemma-2b", layers=1),
    "gemma-2-9b": build("gemma-2-9b", layers=2),
    "gemma-3-1b": build("gemma-3-1b", layers=6),
    "phi-3-mini": build("phi-3-mini", layers=1),
}


@pytest.mark.parametrize("name", MODELS)
def test_text_form(name):
    model = MODELS[name]
    outputs = model.outputs(**model.inputs(["input_ids", "attention_mask", "labels"]))
    text = tg.Graph(outputs, name=name, aliases=model.aliases).text(where=False) + "\n"
    file = FOLDER / f"{name}.txt"
    if os.environ.get("TENSORGRAPH_GOLDEN") == "write":
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")
