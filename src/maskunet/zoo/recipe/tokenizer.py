"""A CLIP tokenizer for the shapes world: one token per word of its captions, characters for any other word."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from transformers import CLIPTokenizer

from ...shapes.scenes import training_scene

MAX_LENGTH = 24
_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789,.'!?-()"


def world_words() -> list[str]:
    """Return all words of the training captions, sorted."""
    return sorted({word for i in range(4000) for word in training_scene(i).caption.split()})


def build_tokenizer() -> CLIPTokenizer:
    """Return a `CLIPTokenizer` whose merges spell the words of the captions; other words become characters."""
    vocabulary = [*_ALPHABET, *(c + "</w>" for c in _ALPHABET)]
    merges: list[tuple[str, str]] = []
    for word in world_words():
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            pair = (pieces[-2], pieces[-1])
            if pair not in merges:
                merges.append(pair)
                vocabulary.append("".join(pair))
            pieces[-2:] = ["".join(pair)]
    # The end of text has the highest id, as in the real CLIP, which pools at the largest id.
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
        lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
        (path / "merges.txt").write_text("\n".join(lines) + "\n")
        settings = {"model_max_length": MAX_LENGTH, "pad_token": "<|endoftext|>", "tokenizer_class": "CLIPTokenizer"}
        (path / "tokenizer_config.json").write_text(json.dumps(settings))
        return CLIPTokenizer.from_pretrained(folder)
