"""Rewards load from disk and hub, in the formats in which they are published."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from torch import Tensor

from maskunet import pretrained
from maskunet.errors import CheckpointError
from maskunet.rewards import AestheticScore, ClipScore, HPSv2, ImageReward, PickScore

Read = Callable[[str], Any]
Write = Callable[[Path], None]


@pytest.fixture
def hpsv2_folder(recording: Read, write_clip_tokenizer: Write, tmp_path: Path) -> Path:
    it = recording("hpsv2_tiny")
    torch.save({"epoch": 1, "name": "x", "state_dict": it.checkpoint}, tmp_path / "HPS_v2_compressed.pt")
    later = {key: value * 1.1 for key, value in it.checkpoint.items()}
    # Zip files are mapped, the former format is read.
    torch.save({"state_dict": later}, tmp_path / "HPS_v2.1_compressed.pt", _use_new_zipfile_serialization=False)
    write_clip_tokenizer(tmp_path)
    return tmp_path


def test_image_reward_from_its_files(recording: Read, image_reward_folder: Path, images: Tensor) -> None:
    it = recording("image_reward_tiny")
    config = {"vision": it.config["vision"], "text": it.config["text"]}
    for source in (image_reward_folder, image_reward_folder / "ImageReward.pt", str(image_reward_folder)):
        reward = ImageReward.from_pretrained(source, config=config)
        ours = reward.score_tokens(**it.inputs)
        assert torch.allclose(ours, it.outputs["reward"].flatten(), atol=1e-5)
    assert torch.equal(reward(images, "a b"), reward(images, "A  B"))
    # The heads of the text tower come from med_config.json, those of the image tower from the public width.
    assert ImageReward.from_pretrained(image_reward_folder).model.config.text_config.num_attention_heads == 4


def test_blips_two_tokens_come_after_berts(recording: Read, image_reward_folder: Path) -> None:
    it = recording("image_reward_tiny")
    words = (image_reward_folder / "vocab.txt").read_text().split()
    padding = [f"word{index}" for index in range(97 - len(words))]
    (image_reward_folder / "vocab.txt").write_text("\n".join([*words, *padding]) + "\n")
    reward = ImageReward.from_pretrained(image_reward_folder, config=it.config)
    assert reward.tokenize.tokenizer("[DEC] a [ENC]", add_special_tokens=False)["input_ids"] == [97, 5, 98]


def test_hpsv2_from_its_files(recording: Read, hpsv2_folder: Path, images: Tensor) -> None:
    it = recording("hpsv2_tiny")
    reward = HPSv2.from_pretrained(hpsv2_folder, config=it.config)
    assert torch.allclose(reward.score_tokens(**it.inputs), it.outputs["score"], atol=1e-5)
    later = HPSv2.from_pretrained(hpsv2_folder, version="2.1", config=it.config)
    assert (reward.name, later.name) == ("hpsv2", "hpsv2.1")
    assert not torch.allclose(later.score_tokens(**it.inputs), it.outputs["score"], atol=1e-4)
    assert torch.equal(reward(images, "a &amp;amp; b"), reward(images, "a & b"))
    assert reward.tokenize(["a &amp;amp; b"])[0].tolist() == reward.tokenize(["a & b"])[0].tolist()
    with pytest.raises(CheckpointError, match=r"among 2\.0, 2\.1, got '3'"):
        HPSv2.from_pretrained(hpsv2_folder, version="3")


def test_safetensors_are_read_too(recording: Read, write_clip_tokenizer: Write, tmp_path: Path) -> None:
    it = recording("hpsv2_tiny")
    write_clip_tokenizer(tmp_path)
    save_file(it.checkpoint, tmp_path / "HPS_v2_compressed.safetensors")
    reward = HPSv2.from_pretrained(tmp_path, config=it.config)
    assert torch.allclose(reward.score_tokens(**it.inputs), it.outputs["score"], atol=1e-5)


def test_pick_score_and_clip_score_from_state_dicts(
    clip_folder: Path, clip_config: dict[str, Any], images: Tensor
) -> None:
    tensors = load_file(clip_folder / "model.safetensors") | {
        "text_model.embeddings.position_ids": torch.arange(12)[None]
    }
    for kind in (PickScore, ClipScore):
        loaded = kind.from_pretrained(clip_folder)
        built = kind.from_original(clip_config, tensors)
        pixels, (ids, mask) = loaded.preprocess(images), loaded.tokenize(["a", "b", "c"])
        assert torch.allclose(built.score_tokens(pixels, ids, mask), loaded.score_tokens(pixels, ids, mask), atol=1e-5)
    assert ClipScore.from_pretrained(clip_folder).preprocess.mean == (0.4, 0.5, 0.6)
    with pytest.raises(CheckpointError, match="expected a config"):
        ClipScore.from_original(None, tensors)
    del tensors["visual_projection.weight"]
    with pytest.raises(CheckpointError, match=r"1 tensors are missing, such as 'visual_projection\.weight'"):
        ClipScore.from_original(clip_config, tensors)


def test_an_incomplete_clip_folder_is_refused(clip_folder: Path) -> None:
    tensors = load_file(clip_folder / "model.safetensors")
    del tensors["text_projection.weight"]
    save_file(tensors, clip_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="text_projection"):
        PickScore.from_pretrained(clip_folder)


def test_aesthetic_is_the_head_on_unit_features(clip_folder: Path, tmp_path: Path, images: Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    widths = {0: (16, 12), 2: (12, 8), 4: (8, 6), 6: (6, 4), 7: (4, 1)}
    head = {}
    for index, (into, out) in widths.items():
        head[f"layers.{index}.weight"] = torch.randn(out, into, generator=generator)
        head[f"layers.{index}.bias"] = torch.randn(out, generator=generator)
    torch.save(head, tmp_path / "sac+logos+ava1-l14-linearMSE.pth")
    reward = AestheticScore.from_pretrained(tmp_path, clip=clip_folder)
    clip = ClipScore.from_pretrained(clip_folder)
    x = clip.image_features(reward.preprocess(images))
    for index in widths:
        x = x @ head[f"layers.{index}.weight"].T + head[f"layers.{index}.bias"]
    assert torch.allclose(reward(images, "any prompt"), x.squeeze(-1), rtol=1e-4, atol=1e-4)
    built = AestheticScore.from_original(
        json.loads((clip_folder / "config.json").read_text()), load_file(clip_folder / "model.safetensors"), head
    )
    assert torch.allclose(built(images, "any prompt"), x.squeeze(-1), rtol=1e-4, atol=1e-4)
    # The first predictor was one layer.
    torch.save({"weight": torch.ones(1, 16), "bias": torch.zeros(1)}, tmp_path / "linear.pth")
    linear = AestheticScore.from_pretrained(tmp_path / "linear.pth", clip=clip_folder)
    expected = clip.image_features(reward.preprocess(images)).sum(-1)
    assert torch.allclose(linear(images, ""), expected, rtol=1e-4, atol=1e-4)
    for wrong in (
        {"weight": torch.ones(1, 9), "bias": torch.zeros(1)},
        {"other": torch.ones(1)},
        {"weight": torch.ones(1, 16)},
    ):
        torch.save(wrong, tmp_path / "wrong.pth")
        with pytest.raises(CheckpointError, match="head of aesthetic"):
            AestheticScore.from_pretrained(tmp_path / "wrong.pth", clip=clip_folder)


def test_missing_files_are_named(tmp_path: Path, clip_folder: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"HPS_v2_compressed\.pt or HPS_v2_compressed\.safetensors in the folder"
    ):
        HPSv2.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"a folder with ImageReward\.pt .* got '/nowhere'"):
        ImageReward.from_pretrained("/nowhere")
    with pytest.raises(CheckpointError, match="transformers' format for pick-score"):
        PickScore.from_pretrained(tmp_path)
    (clip_folder / "vocab.json").unlink()
    (clip_folder / "merges.txt").unlink()
    with pytest.raises(CheckpointError, match="expected a tokenizer"):
        ClipScore.from_pretrained(clip_folder)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, image_reward_folder: Path) -> list[Any]:
    """Replace the hub's client by the folder; returns the requests."""
    requests: list[Any] = []

    def download(repo_id: str, name: str, *, revision: str | None, token: str | None) -> str:
        requests.append((repo_id, name, revision, token))
        if repo_id == "off/line":
            raise LocalEntryNotFoundError("no connection\nmore")
        if not (image_reward_folder / name).exists():
            raise EntryNotFoundError(f"404 for {name}")
        return str(image_reward_folder / name)

    monkeypatch.setattr(pretrained, "hf_hub_download", download)
    return requests


def test_hub_ids_are_fetched_file_by_file(image_reward_folder: Path, hub: list[Any]) -> None:
    reward = ImageReward.from_pretrained(tokenizer=str(image_reward_folder), revision="v1", token="t")
    assert reward.model.config.text_config.vocab_size == 99
    assert hub == [("THUDM/ImageReward", name, "v1", "t") for name in ("ImageReward.pt", "med_config.json")]
    (image_reward_folder / "ImageReward.pt").unlink()
    with pytest.raises(CheckpointError, match=r"ImageReward\.pt or ImageReward\.safetensors in the hub repository"):
        ImageReward.from_pretrained()
    with pytest.raises(CheckpointError, match=r"'off/line' .* could not be fetched from the hub: no connection"):
        HPSv2.from_pretrained("off/line")
