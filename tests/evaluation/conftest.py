"""Tiny random networks of the benchmarks, written to disk in their real formats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BlipConfig,
    BlipForQuestionAnswering,
    CLIPConfig,
    CLIPModel,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    SwinConfig,
)

CLASSES = ("person", "mouse", "pottedplant", "bench")


def _seeded(build: Callable[[], Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


@pytest.fixture(scope="session")
def mask2former_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mask2Former on Swin, with weights raised so that it is sure of what it sees."""
    swin = SwinConfig(
        image_size=32,
        patch_size=4,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=swin,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=6,
        id2label=dict(enumerate(CLASSES)),
    )
    model = _seeded(lambda: Mask2FormerForUniversalSegmentation(config))
    with torch.no_grad():
        model.class_predictor.weight.mul_(8)
        model.class_predictor.bias[-1] = -4
        model.model.transformer_module.decoder.mask_predictor.mask_embedder.layers[-1].layers[0].weight.mul_(40)
    folder = tmp_path_factory.mktemp("mask2former")
    model.save_pretrained(folder)
    size = {"shortest_edge": 96, "longest_edge": 128}
    settings = {"size": size, "size_divisor": 32, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3]}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shared = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32}
    text = shared | {"vocab_size": 54, "max_position_embeddings": 64, "bos_token_id": 52, "eos_token_id": 53}
    vision = shared | {"image_size": 28, "patch_size": 14}
    config = CLIPConfig.from_dict({"text_config": text, "vision_config": vision, "projection_dim": 16})
    folder = tmp_path_factory.mktemp("clip")
    _seeded(lambda: CLIPModel(config)).save_pretrained(folder)
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    tokenizer = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 64, "unk_token": "<|endoftext|>", **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    settings = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"shortest_edge": 28}, "crop_size": 28}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="session")
def blip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    letters = "abcdefghijklmnopqrstuvwxyz?"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "yes", "no", *letters, *(f"##{x}" for x in letters)]
    shared = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 16}
    text = shared | {"encoder_hidden_size": 16, "vocab_size": len(words) + 2, "bos_token_id": len(words)}
    text |= {"pad_token_id": 0, "sep_token_id": 3, "max_position_embeddings": 40, "initializer_range": 0.5}
    vision = shared | {"image_size": 32, "patch_size": 16, "initializer_range": 0.5}
    config = BlipConfig.from_dict({"text_config": text, "vision_config": vision})
    folder = tmp_path_factory.mktemp("blip")
    _seeded(lambda: BlipForQuestionAnswering(config)).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return folder
