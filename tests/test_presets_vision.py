"""Encoders and models that see: exact published totals by component, from the preset and from a config."""

from __future__ import annotations

from collections import Counter

import pytest

from tensorgraph.dims import evaluate
from tensorgraph.models import Decoder, build, presets

# Published totals: preset, total, components.
PUBLISHED = [
    (
        "bert-base",
        109482240,
        {"attention": 28348416, "embedding": 23835648, "mlp": 56669184, "norm": 38400, "pooler": 590592},
    ),
    (
        "minilm-l6",
        22713216,
        {"attention": 3548160, "embedding": 11917824, "mlp": 7089408, "norm": 9984, "pooler": 147840},
    ),
    (
        "vit-b-16",
        86567656,
        {"attention": 28348416, "embedding": 742656, "head": 769000, "mlp": 56669184, "norm": 38400},
    ),
    ("clip-vit-l-14-336", 427944193, {"other": 1, "text": 123650304, "vision": 304293888}),
    (
        "llava-1.5-7b",
        7063427072,
        {
            "attention": 2147483648,
            "connector": 20979712,
            "embedding": 131334144,
            "head": 131334144,
            "mlp": 4328521728,
            "norm": 266240,
            "vision": 303507456,
        },
    ),
    (
        "paligemma-3b",
        2923466480,
        {
            "attention": 169869312,
            "connector": 2361344,
            "embedding": 526778368,
            "mlp": 1811939328,
            "norm": 75776,
            "vision": 412442352,
        },
    ),
    (
        "idefics-9b",
        8929679632,
        {
            "attention": 2147483648,
            "connector": 125961984,
            "cross_attention_blocks": 1434519568,
            "embedding": 131080192,
            "head": 131080192,
            "mlp": 4328521728,
            "norm": 266240,
            "vision": 630766080,
        },
    ),
    (
        "llama-3.2-11b-vision",
        10642941475,
        {
            "attention": 1342177280,
            "connector": 31461376,
            "cross_attention_blocks": 335546384,
            "embedding": 525369344,
            "head": 525336576,
            "mlp": 7046430720,
            "norm": 331776,
            "vision": 836288019,
        },
    ),
]
# Totals alone, as their authors or the checkpoints state them.
TOTALS = {"bert-large": 335141888}


def total_of(model) -> int:
    return evaluate(model.total(), model.binding)


@pytest.mark.parametrize("symbolic", [True, False])
@pytest.mark.parametrize(("preset", "total", "components"), PUBLISHED)
def test_published_totals(preset, total, components, symbolic):
    model = build(presets.config(preset), symbolic=symbolic)
    found: Counter[str] = Counter()
    for p in model.parameters():
        found[p.component or "other"] += evaluate(p.count, model.binding)
    assert (found.total(), dict(found)) == (total, components)
    assert total_of(model) == total


@pytest.mark.parametrize(("preset", "total"), TOTALS.items())
def test_totals(preset, total):
    assert total_of(build(preset)) == total


def test_every_preset_is_counted():
    others = {n for n in presets.names() if not isinstance(build(n, layers=1), Decoder)}
    assert {p[0] for p in PUBLISHED} | TOTALS.keys() == others


@pytest.mark.parametrize(("layers", "total"), [(1, 4198400), (2, 20979712), (3, 37761024)])
def test_connectors(layers, total):
    model = build("llava-1.5-7b", projector_layers=layers)
    assert sum(evaluate(p.count, model.binding) for p in model.parameters() if p.component == "connector") == total
