"""Text to token ids and back: from tokenizer.json, from inside a GGUF file, or trained on one's own text."""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tensorgraph.errors import DataError, ModelError
from tensorgraph.io.files import fail, open_map, replacing, show

FILE = "tokenizer.json"
CONFIG = "tokenizer_config.json"
END_OF_TEXT = "<|endoftext|>"
REPLACEMENT = "\ufffd"  # what decoding shows for bytes that are not, or not yet, a character


class Tokenizer:
    """A tokenizer of the `tokenizers` library with the ids that begin (`bos_id`) and end (`eos_id`) a text, or None."""

    def __init__(self, backend: tokenizers.Tokenizer, bos_id: int | None = None, eos_id: int | None = None) -> None:
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.bos_id = bos_id
        self.eos_id = eos_id

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Read `tokenizer.json`, or the one in a folder; `tokenizer_config.json` beside it tells bos and eos.

        Raises CheckpointError: TG801 no such file, TG803 not a tokenizer.
        """
        file = Path(path)
        file = file / FILE if file.is_dir() else file
        try:
            backend = tokenizers.Tokenizer.from_buffer(bytes(open_map(file)))
        except ValueError as e:
            if hasattr(e, "code"):
                raise
            raise fail("TG803", file, "not a tokenizer", notes=[str(e)]) from None
        config = _config(file.with_name(CONFIG))
        return cls(backend, *(_special_id(backend, config.get(key)) for key in ("bos_token", "eos_token")))

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """Build the tokenizer that a GGUF file describes: byte-level BPE ("gpt2") or SentencePiece BPE ("llama").

        Raises ModelError[TG980] for a kind that cannot be had exactly, [TG981] for missing or inconsistent metadata.
        """
        return _from_gguf(_Metadata(metadata))

    @classmethod
    def train_bpe(cls, texts: Iterable[str], vocab_size: int, end_of_text: str = END_OF_TEXT) -> Tokenizer:
        """Train byte-level BPE with GPT-2's splitting on texts; the same texts give the same tokenizer.

        The vocabulary (at most `vocab_size`) has `end_of_text` as id 0 and all 256 bytes, so any text can be encoded.
        Source: Radford et al. 2019, section 2.2. Raises ModelError[TG982] if `vocab_size` has no room for those.
        """
        if vocab_size < 257:
            raise ModelError("TG982", f"vocab_size {vocab_size} is too small: 256 bytes and {end_of_text!r} need 257")
        backend = _byte_level(models.BPE(), _PRE["gpt-2"])
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[end_of_text],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator((_unicode(text) for text in texts), trainer)
        return cls(backend, None, backend.token_to_id(end_of_text))

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(self.backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Ids of a text; `special` adds the bos or eos that the tokenizer asks for.

        The ids are all of the text and no more: padding and truncation that `tokenizer.json` asks for are those of
        batches. Special tokens written in the text become their ids. Raises DataError: TG580 for a lone surrogate,
        TG582 for a word that is not in a vocabulary of words, TG583 for what is no text.
        """
        text = _unicode(text)
        try:
            ids: list[int] = self.backend.encode(text, add_special_tokens=special).ids
        except Exception as e:  # the library raises nothing narrower
            raise DataError("TG582", self._lacking(text, e)) from None
        return ids

    def _lacking(self, text: str, error: Exception) -> str:
        """What a tokenizer of words could not encode."""
        vocab, split = self.backend.get_vocab(), self.backend.pre_tokenizer
        words = [word for word, _ in split.pre_tokenize_str(text)] if split else []
        unknown = next((word for word in words if word not in vocab), None)
        if unknown is None:
            return f"the tokenizer cannot encode the text: {error}"
        return f"the vocabulary has no word {unknown!r}: it has {', '.join(sorted(vocab, key=lambda w: vocab[w])[:12])}"

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of ids; bytes that are no character become U+FFFD. Raises DataError[TG581] for an unknown id."""
        try:
            ids = [operator.index(i) for i in ids]
        except TypeError:
            raise DataError("TG581", f"ids must be whole numbers in a row, not {show(ids)}") from None
        for i in ids:
            if not 0 <= i < 1 << 32 or self.backend.id_to_token(i) is None:
                raise DataError("TG581", f"id {i} has no token: the vocabulary has {self.vocab_size}")
        text: str = self.backend.decode(ids, skip_special_tokens=skip_special)
        return text

    def stream(self, prompt: Sequence[int] = ()) -> Stream:
        """Decode ids as they come, after those of a prompt."""
        return Stream(self, prompt)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write `tokenizer.json` into a folder, or the `.json` file named, and bos and eos beside it; returns the file.

        Raises CheckpointError[TG807] if the system refuses.
        """
        file = Path(path)
        file = file if file.suffix == ".json" else file / FILE
        config = _config(file.with_name(CONFIG))
        for key, i in (("bos_token", self.bos_id), ("eos_token", self.eos_id)):
            config[key] = None if i is None else self.backend.id_to_token(i)
        for target, text in ((file, self.backend.to_str()), (file.with_name(CONFIG), json.dumps(config, indent=2))):
            with replacing(target) as new:
                new.write_text(text, encoding="utf-8")
        return file

    def __repr__(self) -> str:
        return f"<Tokenizer: {self.vocab_size} tokens, bos {self.bos_id}, eos {self.eos_id}>"


class Stream:
    """Decodes ids one by one: what `push` and `end` return, joined, is the decoded whole.

    A character is given out when its last byte is there, never in parts.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        # The last ids given out: what a token shows (a leading space) can depend on there being one before it.
        self._context = list(prompt)[-8:]
        self._pending: list[int] = []

    def push(self, id: int) -> str:
        """The text that is certain once `id` has come; empty inside a character. Raises as `decode`."""
        self._pending.append(id)
        return "" if self._text().endswith(REPLACEMENT) else self.end()

    def end(self) -> str:
        """What is left: the bytes of an unfinished character become U+FFFD."""
        text = self._text()
        self._context, self._pending = self._pending or self._context, []
        return text

    def _text(self) -> str:
        before = self._tokenizer.decode(self._context)
        whole = self._tokenizer.decode(self._context + self._pending)
        return whole[len(before) :] if whole.startswith(before) else self._tokenizer.decode(self._pending)


# --- tokenizer.json ---------------------------------------------------------------------------------------------------


def _config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        config = json.loads(bytes(open_map(file)))
    except (ValueError, RecursionError) as e:
        raise fail("TG803", file, "not JSON", notes=[str(e)[:100]]) from None
    if type(config) is not dict:
        raise fail("TG803", file, f"expected an object, found {show(config)}")
    return config


def _special_id(backend: tokenizers.Tokenizer, token: Any) -> int | None:
    """The id of a special token, which older files write as text and newer ones as a record."""
    token = token.get("content") if isinstance(token, dict) else token
    return backend.token_to_id(token) if isinstance(token, str) else None


def _unicode(text: str) -> str:
    if not isinstance(text, str):
        hint = "encode one text at a time" if isinstance(text, (list, tuple)) else None
        raise DataError("TG583", f"a text is wanted, not {show(text)}", hint=hint)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as e:
        what = f"the text is not valid Unicode: {text[e.start]!r} at character {e.start}"
        raise DataError(
            "TG580", what, hint="a lone surrogate often comes from bytes decoded in the wrong encoding"
        ) from None
    return text


# --- GGUF -------------------------------------------------------------------------------------------------------------

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class _Pre(NamedTuple):
    """How a family splits text before BPE: each regex splits the pieces of the one before into matches and gaps."""

    split: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    nfc: bool = False


_LLAMA3_PRE = _Pre((_LLAMA3,), ignore_merges=True, add_bos=True)
_DIGITS_PRE = _Pre((r"\p{N}", _GPT2))
_QWEN2_PRE = _Pre((_LLAMA3.replace("{1,3}", ""),), nfc=True)
# `tokenizer.ggml.pre` by name. Source: the models' tokenizer.json, and for the names llama.cpp's src/llama-vocab.cpp.
_PRE = {
    "gpt-2": _Pre((_GPT2,)),
    "phi-2": _Pre((_GPT2,)),
    "smollm": _DIGITS_PRE,
    "starcoder": _DIGITS_PRE,
    "refact": _DIGITS_PRE,
    "llama-bpe": _LLAMA3_PRE,
    "llama3": _LLAMA3_PRE,
    "llama-v3": _LLAMA3_PRE,
    "qwen2": _QWEN2_PRE,
    "deepseek-r1-qwen": _QWEN2_PRE,
    # What llama.cpp does for files that do not say.
    "default": _Pre((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
}
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_SPACE = "\u2581"


class _Metadata:
    """The `tokenizer.ggml.*` keys, each checked for its type when it is asked for."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata
        self.tokens = self.list("tokens", str)
        if not self.tokens:
            raise self.wrong("tokens", "a list of texts")
        if len(set(self.tokens)) != len(self.tokens):
            twice = next(t for t in self.tokens if self.tokens.count(t) > 1)
            raise ModelError("TG981", f"tokenizer.ggml.tokens holds {show(twice)} twice")
        self.types = self.list("token_type", int) or [_NORMAL] * len(self.tokens)
        if len(self.types) != len(self.tokens):
            raise ModelError("TG981", f"tokenizer.ggml: {len(self.tokens)} tokens, but {len(self.types)} token types")

    def get(self, key: str, kind: type, default: Any) -> Any:
        value = self._metadata.get(f"tokenizer.ggml.{key}", default)
        if value is not default and type(value) is not kind:
            raise self.wrong(key, f"of type {kind.__name__}")
        return value

    def list(self, key: str, kind: type) -> list[Any]:
        values = self.get(key, list, None) or []
        if any(type(v) is not kind for v in values):
            raise self.wrong(key, f"a list of {kind.__name__}")
        return list(values)

    def id(self, key: str, default: int | None) -> int | None:
        i = self.get(f"{key}_token_id", int, default)
        if i is not None and not 0 <= i < len(self.tokens):
            raise ModelError("TG981", f"tokenizer.ggml.{key}_token_id is {i}, of {len(self.tokens)} tokens")
        return i

    def wrong(self, key: str, expected: str) -> ModelError:
        found = show(self._metadata.get(f"tokenizer.ggml.{key}"))
        return ModelError("TG981", f"tokenizer.ggml.{key} should be {expected}, found {found}")


def _from_gguf(meta: _Metadata) -> Tokenizer:
    kind = meta.get("model", str, None)
    if kind == "gpt2":
        name = meta.get("pre", str, "default")
        if name not in _PRE:
            raise ModelError(
                "TG980",
                f"the pre-tokenizer {show(name)} of this GGUF file is not known",
                hint=f"known are {', '.join(_PRE)}; or use the model's tokenizer.json",
            )
        pre = _PRE[name]
        backend = _byte_level(_bpe_with_merges(meta, pre), pre)
        bos, eos, add_bos = meta.id("bos", None), meta.id("eos", None), pre.add_bos
    elif kind == "llama":
        backend = _sentencepiece(meta)
        bos, eos, add_bos = meta.id("bos", 1), meta.id("eos", 2), True
    else:
        raise ModelError(
            "TG980",
            f"tokenizers of the kind {show(kind)} cannot be read from a GGUF file",
            hint="known are 'gpt2' and 'llama'; or use the model's tokenizer.json",
        )
    for content, token_type in zip(meta.tokens, meta.types, strict=True):
        if token_type in (_CONTROL, _UNKNOWN):
            backend.add_special_tokens([AddedToken(content, special=True, normalized=False)])
        elif token_type == _USER_DEFINED:
            backend.add_tokens([AddedToken(content, special=False, normalized=False)])
    first = [bos] if meta.get("add_bos_token", bool, add_bos) and bos is not None else []
    last = [eos] if meta.get("add_eos_token", bool, False) and eos is not None else []
    if first or last:
        around = {meta.tokens[i]: i for i in first + last}
        template = [*(meta.tokens[i] for i in first), "$A", *(meta.tokens[i] for i in last)]
        backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=list(around.items()))
    return Tokenizer(backend, bos, eos)


def _byte_level(model: models.BPE, pre: _Pre) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(model)
    if pre.nfc:
        backend.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(Regex(regex), "isolated") for regex in pre.split]
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, to_bytes])
    backend.decoder = decoders.ByteLevel()
    return backend


def _bpe_with_merges(meta: _Metadata, pre: _Pre) -> models.BPE:
    pairs = [tuple(merge.split(" ")) for merge in meta.list("merges", str)]
    if wrong := next((pair for pair in pairs if len(pair) != 2), None):
        raise ModelError("TG981", f"tokenizer.ggml.merges holds {show(' '.join(wrong))}, not two tokens")
    try:
        return models.BPE(_vocabulary(meta), pairs, ignore_merges=pre.ignore_merges)
    except Exception as e:  # the library raises nothing narrower
        raise ModelError("TG981", f"tokenizer.ggml.merges does not fit the tokens: {e}") from None


def _sentencepiece(meta: _Metadata) -> tokenizers.Tokenizer:
    if meta.get("remove_extra_whitespaces", bool, False) or meta.get("precompiled_charsmap", list, None):
        raise ModelError(
            "TG980",
            "this GGUF file asks for SentencePiece's text normalisation, which is not supported",
            hint="use the model's tokenizer.json",
        )
    unknown = meta.id("unknown", 0)
    assert unknown is not None
    model = models.BPE(
        _vocabulary(meta),
        _merges_by_score(meta),
        unk_token=meta.tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    backend = tokenizers.Tokenizer(model)
    prefix = meta.get("add_space_prefix", bool, True)
    steps = [normalizers.Prepend(_SPACE)] if prefix else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return backend


def _merges_by_score(meta: _Metadata) -> list[tuple[str, str]]:
    """SentencePiece merges the neighbours whose joined piece scores highest; here each pair gets its rank instead.

    Exact if no two pieces that can be joined share a score and none of them is unused (SentencePiece would undo it).
    """
    scores = meta.list("scores", float)
    bytes_ = sum(t == _BYTE for t in meta.types)
    if len(scores) != len(meta.tokens) or bytes_ != 256:
        what = f"{len(meta.tokens)} tokens, but {len(scores)} scores; {bytes_} byte tokens, not 256"
        raise ModelError("TG981", f"tokenizer.ggml: {what}")
    joinable = {
        token: (score, kind)
        for token, score, kind in zip(meta.tokens, scores, meta.types, strict=True)
        if kind in (_NORMAL, _UNUSED)
    }
    ranked: dict[float, str] = {}
    for token, (score, kind) in joinable.items():
        if not any(token[:i] in joinable and token[i:] in joinable for i in range(1, len(token))):
            continue
        if kind == _UNUSED or ranked.setdefault(score, token) != token:
            problem = "is unused" if kind == _UNUSED else f"has the score of {show(ranked[score])}"
            what = f"the piece {show(token)} of this SentencePiece vocabulary {problem}, so no ranks give its merges"
            raise ModelError("TG980", what, hint="use the model's tokenizer.json")
    return [
        (token[:i], token[i:])
        for _, token in sorted(ranked.items(), reverse=True)
        for i in range(1, len(token))
        if token[:i] in joinable and token[i:] in joinable
    ]


def _vocabulary(meta: _Metadata) -> dict[str, int]:
    return {token: i for i, token in enumerate(meta.tokens)}
