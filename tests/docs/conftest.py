"""A folder in which the pages' commands find what they name, and a network that is switched off."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

import maskunet as mu
from maskunet.images import to_pil
from maskunet.shapes.drawing import draw
from maskunet.shapes.scenes import held_out_prompts, training_scene


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any, address: Any) -> None:
        raise OSError(f"no network in these tests, asked for {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def workspace(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    authors_files: tuple[Path, Path, Path],
    image_reward_folder: Path,
) -> Path:
    """The folder that a page is read in; the authors' files and a tiny ImageReward are there already."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(mu.zoo.path("shapes-masker"), tmp_path / "my-masker")
    (tmp_path / "weights").mkdir()
    image_reward_folder.rename(tmp_path / "weights" / "ImageReward")
    for name in ("captioned-images", "real-images"):
        _write_images(tmp_path / name)
    prompts = held_out_prompts(6)
    (tmp_path / "prompts.txt").write_text("".join(f"{p.prompt}\n" for p in prompts))
    lines = [json.dumps(p.metadata()) + "\n" for p in prompts]
    (tmp_path / "evaluation_metadata.jsonl").write_text("".join(lines))
    return tmp_path


def _write_images(folder: Path) -> None:
    folder.mkdir()
    scenes = [training_scene(i) for i in range(12)]
    for i, image in enumerate(to_pil(draw(scenes))):
        image.save(folder / f"{i}.png")
    rows = [{"file_name": f"{i}.png", "text": scene.caption} for i, scene in enumerate(scenes)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
