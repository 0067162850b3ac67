"""A CLIP tokenizer of single letters."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import CLIPTokenizer


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    """Write its files and load it."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=16)
