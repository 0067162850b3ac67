"""Fixtures: tiny checkpoints on disk in the formats that their originals are published in."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open
from torch import Tensor

TESTS = Path(__file__).parent


@dataclass
class Recording:
    """A tiny random checkpoint in a public key layout, inputs, and what the original modules give."""

    config: dict[str, Any]
    checkpoint: dict[str, Tensor]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


@pytest.fixture(scope="session")
def recording() -> Callable[[str], Recording]:
    def read(name: str) -> Recording:
        parts: dict[str, dict[str, Tensor]] = {"checkpoint": {}, "input": {}, "output": {}}
        with safe_open(TESTS / "rewards" / "data" / f"{name}.safetensors", "pt") as file:
            for key in file.keys():  # noqa: SIM118
                kind, _, rest = key.partition(".")
                parts[kind][rest] = file.get_tensor(key)
            config = json.loads(file.metadata()["config"])
        return Recording(config, parts["checkpoint"], parts["input"], parts["output"])

    return read


@pytest.fixture
def write_bert_tokenizer() -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        letters = "abcdefghijklmnopqrstuvwxyz"
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
        (folder / "vocab.txt").write_text("\n".join(words) + "\n")

    return write


@pytest.fixture
def image_reward_folder(
    recording: Callable[[str], Recording], write_bert_tokenizer: Callable[[Path], None], tmp_path: Path
) -> Path:
    """The files of ImageReward's public repository, in small."""
    it, folder = recording("image_reward_tiny"), tmp_path / "ImageReward"
    folder.mkdir()
    torch.save(it.checkpoint | {"blip.vision_proj.weight": torch.zeros(8, 48)}, folder / "ImageReward.pt")
    med = it.config["text"] | {"architectures": ["BertModel"], "model_type": "bert", "type_vocab_size": 2}
    (folder / "med_config.json").write_text(json.dumps(med))
    write_bert_tokenizer(folder)
    return folder


@pytest.fixture
def authors_files(tmp_path: Path, pipe: StableDiffusionPipeline) -> tuple[Path, Path, Path]:
    """The authors' two files, from the recording of their model, and a pipeline around its U-Net."""
    with safe_open(TESTS / "fixtures" / "authors_masked_unet_a.safetensors", "pt") as file:
        config = json.loads(file.metadata()["unet_config"])
        tensors = {k: file.get_tensor(k) for k in file.keys() if k.startswith("weights.")}  # noqa: SIM118
    tensors = {k.removeprefix("weights."): v for k, v in tensors.items()}
    for part in ("mask_generators", "adapters"):
        own = {k.removeprefix(part + "."): v for k, v in tensors.items() if k.startswith(part + ".")}
        torch.save(own, tmp_path / f"{part}.pth")
    unet = UNet2DConditionModel(**config)
    unet.load_state_dict({k: v for k, v in tensors.items() if not k.startswith(("mask_generators.", "adapters."))})
    pipe.register_modules(unet=unet)
    pipe.save_pretrained(tmp_path / "authors_model")
    return tmp_path / "mask_generators.pth", tmp_path / "adapters.pth", tmp_path / "authors_model"
