"""Recorded tiny checkpoints, and tiny networks and tokenizers in the real formats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 40, 56, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def write_clip_tokenizer() -> Callable[[Path], None]:
    return _clip_tokenizer


def _clip_tokenizer(folder: Path) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "unk_token": "<|endoftext|>", **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.fixture
def clip_config() -> dict[str, Any]:
    shared = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": "quick_gelu"}
    text = {"hidden_size": 24, "intermediate_size": 48, "vocab_size": 54, "max_position_embeddings": 12}
    # 2 is what older public configs say, and means "at the largest id".
    text |= {"bos_token_id": 0, "eos_token_id": 2, "attention_dropout": 0.5}
    vision = {"hidden_size": 32, "intermediate_size": 64, "image_size": 28, "patch_size": 14}
    return {"text_config": shared | text, "vision_config": shared | vision, "projection_dim": 16}


@pytest.fixture
def clip_folder(clip_config: dict[str, Any], tmp_path: Path) -> Path:
    """A tiny CLIP as transformers saves one, with tokenizer and preprocessing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = CLIPModel(CLIPConfig.from_dict(clip_config))
    folder = tmp_path / "clip"
    model.save_pretrained(folder)
    _clip_tokenizer(folder)
    settings = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3], "size": {"shortest_edge": 28}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder
