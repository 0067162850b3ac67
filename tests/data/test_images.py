"""Images with captions from folders, tables and the hub: what is read, and which rows are skipped."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from image_folders import encoded, image_folder, noise_image, readable
from PIL import Image

from maskunet.data import ImageCaptions, open_images
from maskunet.errors import DataError

Row = dict[str, Any]


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def test_bad_rows_of_a_folder_are_skipped_and_counted(tmp_path: Path) -> None:
    jpeg = encoded(noise_image(9, (64, 64)), "JPEG")
    bomb = encoded(Image.new("1", (10000, 10000)))
    rows = [
        ("a.png", encoded(noise_image(0)), "first"),
        ("cut.jpg", jpeg[: len(jpeg) // 2], "cut"),
        ("gone.png", None, "gone"),
        ("b.png", encoded(noise_image(1)), "  "),
        ("c.png", encoded(noise_image(2)), None),
        ("d.png", encoded(noise_image(3)), 7),
        ("e.png", encoded(noise_image(4)), ["", "second", "third"]),
        ("dot.png", encoded(noise_image(5, (1, 1))), "dot"),
        ("thin.png", encoded(noise_image(5, (100, 7))), "thin"),
        ("bomb.png", bomb, "bomb"),
        ("zero.png", b"", "zero"),
        ("f.jpg", jpeg, "last"),
    ]
    dataset = open_images(image_folder(tmp_path / "set", rows))
    for _ in range(2):  # each pass counts from zero
        pairs = list(dataset)
        assert [caption for _, caption in pairs] == ["first", "second", "last"]
        assert dataset.skipped == {"unreadable image": 4, "empty caption": 3, "image too small": 2}
    assert all(image.mode == "RGB" for image, _ in pairs)
    assert np.array_equal(np.asarray(pairs[0][0]), np.asarray(noise_image(0)))
    assert len(dataset) == dataset.count == 12


def test_lines_that_are_no_objects_are_skipped(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "set", readable(2))
    with (folder / "metadata.jsonl").open("ab") as file:
        file.write(b'[1]\n{"file_name": "0.png", "te\n\xff\n')
    dataset = open_images(folder)
    assert [caption for _, caption in dataset] == ["number 0", "number 1"]
    assert dataset.skipped == {"unreadable image": 3}


def table_rows() -> list[bytes]:
    return [encoded(noise_image(0)), encoded(noise_image(1))[:60], encoded(noise_image(2))]


def as_struct(tmp_path: Path) -> datasets.Dataset:
    rows = [{"image": {"bytes": data, "path": None}, "text": str(i)} for i, data in enumerate(table_rows())]
    return datasets.Dataset.from_list(rows)


def as_bytes(tmp_path: Path) -> datasets.Dataset:
    return datasets.Dataset.from_list([{"image": data, "text": str(i)} for i, data in enumerate(table_rows())])


def as_images(tmp_path: Path) -> datasets.Dataset:
    return as_struct(tmp_path).cast_column("image", datasets.Image())


def as_paths(tmp_path: Path) -> datasets.Dataset:
    (tmp_path / "set").mkdir(exist_ok=True)
    for i, data in enumerate(table_rows()):
        (tmp_path / "set" / f"{i}.png").write_bytes(data)
    return datasets.Dataset.from_list([{"image": f"{i}.png", "text": str(i)} for i in range(3)])


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("build", [as_struct, as_bytes, as_images, as_paths])
def test_tables(build: Callable[[Path], datasets.Dataset], kind: str, streaming: bool, tmp_path: Path) -> None:
    table = build(tmp_path)
    if kind == "parquet":
        file = tmp_path / "set" / "a.parquet"
        file.parent.mkdir(exist_ok=True)
        table.to_parquet(str(file))
    else:
        table.save_to_disk(tmp_path / "set")
        (file,) = (tmp_path / "set").glob("*.arrow")
    for source in (file, str(file.parent)):
        dataset = open_images(source, streaming=streaming)
        for _ in range(2):
            pairs = list(dataset)
            assert [caption for _, caption in pairs] == ["0", "2"]
            assert dataset.skipped == {"unreadable image": 1}
        assert np.array_equal(np.asarray(pairs[1][0]), np.asarray(noise_image(2)))
        assert dataset.count == (None if streaming else 3)
    assert dataset  # though its length may not be known


def test_streams_have_no_length(tmp_path: Path) -> None:
    as_struct(tmp_path).to_parquet(str(tmp_path / "a.parquet"))
    with pytest.raises(TypeError, match="streamed"):
        len(open_images(tmp_path / "a.parquet", streaming=True))


def test_other_columns_are_not_decoded(tmp_path: Path) -> None:
    table = as_images(tmp_path).rename_columns({"image": "other", "text": "caption"})
    table.add_column("photo", as_bytes(tmp_path)["image"][:]).to_parquet(str(tmp_path / "a.parquet"))
    dataset = open_images(tmp_path / "a.parquet", image_column="photo", caption_column="caption")
    assert [caption for _, caption in dataset] == ["0", "2"]


def test_splits_of_a_folder_of_tables(tmp_path: Path) -> None:
    folder = tmp_path / "brackets [1]"  # which are not patterns
    (folder / "data").mkdir(parents=True)
    as_struct(tmp_path).to_parquet(str(folder / "data" / "train-00000-of-00001.parquet"))
    as_struct(tmp_path).select([2]).to_parquet(str(folder / "data" / "test-00000-of-00001.parquet"))
    assert open_images(folder).count == 3
    assert open_images(folder, split="test").count == 1
    assert open_images(folder, split="train[:2]").count == 2
    with pytest.raises(DataError, match=r"'dev'.*got test, train"):
        open_images(folder, split="dev")


def test_splits_of_a_folder_of_images(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("test", 1)):
        image_folder(tmp_path / "set" / split, readable(count))
    assert open_images(tmp_path / "set").count == 3
    assert open_images(tmp_path / "set", split="test").count == 1
    with pytest.raises(DataError, match="split 'test'"):
        open_images(tmp_path / "set" / "train", split="test")


def test_a_missing_column_is_named_beside_the_existing_ones(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "set", readable(1))
    with pytest.raises(DataError, match=r"'caption'.*got file_name, text; choose caption_column"):
        open_images(folder, caption_column="caption")
    with pytest.raises(DataError, match=r"'photo'.*got file_name, text; choose image_column"):
        open_images(folder, image_column="photo")
    as_struct(tmp_path).to_parquet(str(tmp_path / "a.parquet"))
    for streaming in (False, True):
        with pytest.raises(DataError, match=r"'caption'.*got image, text; choose caption_column"):
            open_images(tmp_path / "a.parquet", caption_column="caption", streaming=streaming)


def test_a_source_that_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "metadata.jsonl").write_text("\n")
    (tmp_path / "notes.txt").write_text("x")
    as_struct(tmp_path).select([]).to_parquet(str(tmp_path / "none.parquet"))
    as_struct(tmp_path).to_parquet(str(tmp_path / "cut.parquet"))
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "cut.parquet").read_bytes()[:-20])
    (tmp_path / "cut.arrow").write_bytes(b"ARROW1")
    for source, message in {
        "empty": "it has none",
        "nothing": "it is empty",
        "none.parquet": "it is empty|no data",
        "notes.txt": "got the file",
        "cut.parquet": "could not read",
        "cut.arrow": "could not read",
        "gone": "existing folder or file",
        "gone.parquet": "existing folder or file",
    }.items():
        for streaming in (False, True):
            with pytest.raises(DataError, match=message) as caught:
                open_images(str(tmp_path / source), streaming=streaming)
            assert "\n" not in str(caught.value)
    for source in ("./gone", "../gone", "~/gone-from-here", "gone.parquet", "", "  ", Path("gone/too")):
        with pytest.raises(DataError, match="existing folder or file"):
            open_images(source)


def test_hub_names_are_loaded_by_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[tuple[tuple[Any, ...], Row]] = []

    def load(*args: Any, **options: Any) -> datasets.Dataset:
        requests.append((args, options))
        if args[0] == "nobody/nothing":
            raise ConnectionError("no such\ndata set")
        return as_images(tmp_path)

    monkeypatch.setattr(datasets, "load_dataset", load)
    dataset = open_images("someone/art", split="test", revision="abc")
    assert requests == [(("someone/art",), {"split": "test", "revision": "abc", "streaming": False})]
    assert [caption for _, caption in dataset] == ["0", "2"]
    assert dataset.fingerprint == open_images("someone/art", split="test", revision="abc").fingerprint
    assert dataset.fingerprint != open_images("someone/art", split="test", revision="abd").fingerprint
    with pytest.raises(DataError, match="'nobody/nothing': no such"):
        open_images("nobody/nothing")


def test_tables_need_datasets_and_folders_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_struct(tmp_path).to_parquet(str(tmp_path / "a.parquet"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"expected datasets.*pip install 'maskunet\[train\]'"):
        open_images(tmp_path / "a.parquet")
    assert len(list(open_images(image_folder(tmp_path / "set", readable(2))))) == 2


def test_a_source_that_breaks_off_names_the_row() -> None:
    class Broken:
        def __iter__(self) -> Any:
            yield {"image": encoded(noise_image(0)), "text": "x"}
            raise OSError("gone")

    with pytest.raises(DataError, match="row 1 of some, could not: gone"):
        list(ImageCaptions(Broken(), "some"))
