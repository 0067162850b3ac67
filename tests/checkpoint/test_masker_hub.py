"""Maskers on the hub, with the hub's client replaced by a folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from huggingface_hub.errors import RepositoryNotFoundError
from torch import Tensor

import maskunet as mu
from maskunet.checkpoint import files
from maskunet.errors import CheckpointError

Unet = UNet2DConditionModel
FILES = ["README.md", "config.json", "masker.safetensors"]


@pytest.fixture
def masker(sd1: Unet) -> mu.MaskGenerator:
    return mu.MaskGenerator.for_unet(sd1, mu.MaskGeneratorConfig(hidden=8, tau=0.5), seed=0)


class Hub:
    """A hub in a folder, in place of the real one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[dict[str, Any]] = []

    def api(self, token: str | None = None) -> Hub:
        self.requests.append({"token": token})
        return self

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self.requests.append({"repo_id": repo_id, **options})

    def upload_folder(self, *, repo_id: str, folder_path: str, **options: Any) -> SimpleNamespace:
        self.requests.append({"repo_id": repo_id, **options})
        shutil.copytree(folder_path, self.folder / repo_id)
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")

    def snapshot_download(self, repo_id: str, **options: Any) -> str:
        self.requests.append({"repo_id": repo_id, **options})
        if not (self.folder / repo_id).exists():
            raise OSError(f"cannot find {repo_id}\nmany more lines")
        return str(self.folder / repo_id)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(files, "HfApi", hub.api)
    monkeypatch.setattr(files, "snapshot_download", hub.snapshot_download)
    return hub


def test_a_round_trip_through_the_hub(
    hub: Hub, masker: mu.MaskGenerator, sd1: Unet, predict: Callable[..., Tensor]
) -> None:
    url = masker.push_to_hub("user/name", private=True, token="secret", revision="dev", base_model="a/b")
    assert url == "https://hub/user/name/commit/1"
    assert hub.requests[0] == {"token": "secret"}
    assert hub.requests[1] == {"repo_id": "user/name", "private": True, "exist_ok": True}
    assert hub.requests[2]["revision"] == "dev"
    assert sorted(path.name for path in (hub.folder / "user/name").iterdir()) == FILES
    loaded = mu.load("user/name", sd1, revision="dev", token="secret")
    assert sorted(hub.requests[3].pop("allow_patterns")) == FILES
    assert hub.requests[3] == {"repo_id": "user/name", "revision": "dev", "token": "secret"}
    mu.attach(sd1, masker)
    expected = predict(sd1)
    mu.attach(sd1, loaded)
    assert torch.equal(predict(sd1), expected)


def test_a_hub_id_that_is_not_there(hub: Hub) -> None:
    with pytest.raises(CheckpointError) as caught:
        mu.load("user/missing")
    message = str(caught.value)
    assert "\n" not in message
    assert (
        "'user/missing' is no folder here and could not be fetched from the hub: cannot find user/missing" in message
    )
    assert hub.requests[-1]["repo_id"] == "user/missing"


def test_hub_errors_while_uploading_pass_through(
    hub: Hub, masker: mu.MaskGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RepositoryNotFoundError("401", response=SimpleNamespace(headers={}, request=None))  # type: ignore[arg-type]

    monkeypatch.setattr(hub, "create_repo", refuse, raising=False)
    with pytest.raises(RepositoryNotFoundError):
        masker.push_to_hub("user/name")
