"""Files that are whole or not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maskunet.errors import DataError
from maskunet.files import make_folder, save_folder, save_json, save_text


def test_json_reads_back_and_lists_of_scalars_take_one_line(tmp_path: Path) -> None:
    value = {"config": {"seeds": 3, "rate": 1e-3}, "cells": [{"each": [0.5] * 200, "none": None}, {}], "empty": []}
    save_json(value, tmp_path / "a.json")
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == value
    assert len(text.splitlines()) == 11
    assert '"config": {"seeds": 3, "rate": 0.001}' in text


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    save_text("old", path)
    with pytest.raises(DataError, match="can be written"):
        save_text("new", tmp_path / "missing" / "a.txt")
    with pytest.raises(TypeError):
        save_json({"a": object()}, path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="folder that can be written"):
        make_folder(tmp_path / "file" / "folder")


def test_a_folder_is_replaced_as_a_whole_and_keeps_the_named_files(tmp_path: Path) -> None:
    path = tmp_path / "a" / "model"
    save_folder(path, lambda part: (part / "old.bin").write_text("1"))
    (path / "README.md").write_text("card")
    save_folder(path, lambda part: (part / "new.bin").write_text("2"), keep=("README.md", "LICENSE"))
    assert {p.name: p.read_text() for p in path.iterdir()} == {"new.bin": "2", "README.md": "card"}

    def fail(part: Path) -> None:
        (part / "half.bin").write_text("3")
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match=r"model: .*No space left"):
        save_folder(path, fail)
    assert {p.name for p in path.iterdir()} == {"new.bin", "README.md"}
    assert [p.name for p in path.parent.iterdir()] == ["model"]
