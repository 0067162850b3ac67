"""Pretrained weights: where they are found, how their tensors are read, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import save_file

from maskunet import pretrained
from maskunet.errors import CheckpointError
from maskunet.maskers import load
from maskunet.pipelines import load_pipeline
from maskunet.pretrained import BUNDLED, bundled_path, is_hub_id, locate, read_state_dict, unwrap_state_dict


def test_every_bundled_model_has_a_folder() -> None:
    assert all(any(bundled_path(name).iterdir()) for name in BUNDLED)
    with pytest.raises(CheckpointError, match=r"expected a bundled model \(shapes, .*, shapes-referee\), got 'forms'"):
        bundled_path("forms")


def test_a_checkpoint_is_a_file_or_the_first_name_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "second.pt").write_text("")
    assert locate(tmp_path, ["first.pt", "second.pt"]) == tmp_path / "second.pt"
    (tmp_path / "first.pt").write_text("")
    assert locate(tmp_path, ["first.pt", "second.pt"]) == tmp_path / "first.pt"
    assert locate(str(tmp_path / "second.pt"), ["first.pt"]) == tmp_path / "second.pt"
    with pytest.raises(CheckpointError, match=r"expected a\.pt or b\.pt in the folder .*, there is none"):
        locate(tmp_path, ["a.pt", "b.pt"])
    with pytest.raises(CheckpointError, match=r"or a hub id like 'user/name', got '/nowhere'"):
        locate("/nowhere", ["a.pt"])


def test_hub_ids_read_like_user_and_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("user/name")
    assert not any(is_hub_id(text) for text in ("name", "a/b/c", "/name", "./name", "~/name"))
    (tmp_path / "user" / "name").mkdir(parents=True)
    assert not is_hub_id("user/name")


def test_the_hub_is_asked_for_each_name_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[tuple[str, str, str | None, str | None]] = []

    def download(repo_id: str, name: str, *, revision: str | None, token: str | None) -> str:
        requests.append((repo_id, name, revision, token))
        if repo_id == "off/line":
            raise LocalEntryNotFoundError("no connection\nmore")
        if name != "b.pt":
            raise EntryNotFoundError(f"404 for {name}")
        return str(tmp_path / name)

    monkeypatch.setattr(pretrained, "hf_hub_download", download)
    assert locate("user/name", ["a.pt", "b.pt"], revision="v1", token="t") == tmp_path / "b.pt"
    assert requests == [("user/name", name, "v1", "t") for name in ("a.pt", "b.pt")]
    with pytest.raises(
        CheckpointError, match=r"a\.pt in the hub repository 'user/name', there is none: 404 for a\.pt"
    ):
        locate("user/name", ["a.pt"])
    with pytest.raises(CheckpointError, match=r"a\.pt could not be fetched from the hub: no connection$"):
        locate("off/line", ["a.pt", "b.pt"])
    assert requests[-1][1] == "a.pt"  # an unreachable hub is not asked again


@pytest.mark.parametrize(
    "wrap", [dict, lambda t: {"state_dict": t}, lambda t: {"model": {f"module.{k}": v for k, v in t.items()}}]
)
def test_state_dicts_are_unwrapped(tmp_path: Path, wrap: Any) -> None:
    tensors = {"a.weight": torch.arange(3.0)}
    torch.save(wrap(tensors), tmp_path / "zip.pt")
    torch.save(wrap(tensors), tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    for name in ("zip.pt", "legacy.pt"):
        state_dict = read_state_dict(tmp_path / name)
        assert list(state_dict) == ["a.weight"]
        assert torch.equal(state_dict["a.weight"], tensors["a.weight"])


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file({"a": torch.arange(3.0)}, tmp_path / "a.safetensors")
    assert torch.equal(read_state_dict(tmp_path / "a.safetensors")["a"], torch.arange(3.0))


@pytest.mark.parametrize("content", [{}, [1], {"a": 1}, {1: torch.zeros(1)}, None])
def test_other_content_is_no_state_dict(content: Any) -> None:
    with pytest.raises(CheckpointError, match="expected a state dict of tensors in here"):
        unwrap_state_dict(content, "here")


class Mischief:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


def test_pickles_are_not_executed_and_other_files_are_refused(tmp_path: Path) -> None:
    mischief = Mischief(tmp_path / "should-not-be-here")
    torch.save({"state_dict": mischief}, tmp_path / "evil.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(mischief, protocol=2))
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "empty.pt").write_text("")
    (tmp_path / "text.safetensors").write_text("hello")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"a": 1}, tmp_path / "numbers.pt")
    for name in ("evil.pt", "plain.pt", "text.pt", "empty.pt", "text.safetensors", "list.pt", "numbers.pt"):
        with pytest.raises(CheckpointError, match="expected") as caught:
            read_state_dict(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert not mischief.target.exists()


@pytest.mark.parametrize("source", ["x" * 5000, "~nobody-here/x/y"])
def test_names_that_no_file_can_have(source: str) -> None:
    for read in (load, load_pipeline, lambda path: locate(path, ["model.safetensors"])):
        with pytest.raises(CheckpointError, match=r"expected .*, got") as caught:
            read(source)
        assert len(str(caught.value)) < 300
