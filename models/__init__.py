"""Model architectures, presets, loading of published checkpoints and text generation.

`build("llama-3-8b")` makes a model of symbols from a preset or a config; `from_pretrained(path)` opens a checkpoint.
"""

from __future__ import annotations

from . import (
    architecture,
    bert,
    clip,
    deepseek,
    gpt2,
    idefics,
    kin,
    llama,
    llava,
    mini,
    mllama,
    modes,
    paligemma,
    presets,
    siglip,
    vit,
)
from .architecture import Architecture
from .decoder import Decoder
from .lora import LoRA
from .pretrained import Net, from_pretrained
from .tokenizer import Tokenizer

ARCHITECTURES: dict[str, Architecture] = {
    **gpt2.ARCHITECTURES,
    **llama.ARCHITECTURES,
    **kin.ARCHITECTURES,
    **deepseek.ARCHITECTURES,
    **mini.ARCHITECTURES,
    **bert.ARCHITECTURES,
    **vit.ARCHITECTURES,
    **clip.ARCHITECTURES,
    **siglip.ARCHITECTURES,
    **llava.ARCHITECTURES,
    **paligemma.ARCHITECTURES,
    **idefics.ARCHITECTURES,
    **mllama.ARCHITECTURES,
}
build = architecture.builder(ARCHITECTURES)

__all__ = [
    "ARCHITECTURES",
    "Decoder",
    "LoRA",
    "Net",
    "Tokenizer",
    "build",
    "from_pretrained",
    "gpt2",
    "llama",
    "lora",
    "mini",
    "modes",
    "presets",
]
