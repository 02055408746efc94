"""Where the parameters of a 7B model live: the source document's figures beside published ones."""

from __future__ import annotations

import json
import re

import pytest

from tensorgraph.cli import main
from tensorgraph.cli.where import DOCUMENT, MODELS, Figure

# transformers' totals by component
LLAMA = {"embedding": 131_072_000, "attention": 2_147_483_648, "mlp": 4_328_521_728, "norm": 266_240}
MISTRAL = {"embedding": 131_072_000, "attention": 1_342_177_280, "mlp": 5_637_144_576, "norm": 266_240}


def printed(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    capsys.readouterr()
    assert main(args) == 0
    return capsys.readouterr().out


def test_the_figures_are_those_of_the_models_and_of_the_document(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(printed(capsys, "where", "--json"))
    parts = {"embedding": "Embeddings", "attention": "Attention", "mlp": "MLP (FFN)", "norm": "Norms"}
    rows = {row["part"]: row for row in found["rows"]}
    document = {"Embeddings": 130e6, "Attention": 1.5e9, "MLP (FFN)": 5e9, "Norms": 1e6}
    for name, published in (("llama-2-7b", LLAMA), ("mistral-7b", MISTRAL)):
        for component, part in parts.items():
            assert rows[part]["document"] == [document[part]] * 2
            assert rows[part]["models"][name]["count"] == published[component]
            assert rows[part]["models"][name]["ratio"] == round(published[component] / document[part], 4)
    assert rows["VLM Bridge"]["models"] == {"llava-1.5-7b": {"count": 20_979_712, "ratio": 1.0}}
    totals = {"llama-2-7b": 6_738_415_616, "mistral-7b": 7_241_732_096, "llava-1.5-7b": 7_063_427_072}
    assert {n: c["total"] for n, c in found["components"].items()} == totals


def test_what_the_table_says_in_words(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    said = printed(capsys, "where")
    assert re.search(r"^Attention .* ~1\.5 B +2,147,483,648 +1\.43 +1,342,177,280 +0\.89 ", said, re.M)
    assert re.search(r"^Head +left out +131,072,000 +131,072,000 +131,334,144 *$", said, re.M)
    assert re.search(r"^Total +~6\.63 B +6,738,415,616 +1\.02 ", said, re.M)
    flat = " ".join(said.split())
    assert (
        "The document rounds: no model here has all its figures, to 5 %. It leaves out the head (131,072,000 in" in flat
    )
    assert "bridge has 4,198,400 weights with one layer, 20,979,712 with two, 37,761,024 with three." in flat
    assert "128,000 × 8,192 ≈ 1 billion is llama-3-70b's: 128,256 × 8,192 = 1,050,673,152." in flat
    other = printed(capsys, "where", "idefics-9b")
    assert re.search(r"^VLM Bridge .* 1,560,481,552 +31\.21$", other, re.M)
    assert MODELS == ("llama-2-7b", "mistral-7b", "llava-1.5-7b") and len(DOCUMENT) == 5


def test_a_ratio_is_one_within_a_range() -> None:
    figure = Figure("x", "", 20, 50, "x")
    assert [figure.ratio(n) for n in (10, 20, 35, 50, 100)] == [0.5, 1.0, 1.0, 1.0, 2.0]
