"""Folders of images: captions in `metadata.jsonl`, `metadata.csv` or text files beside the images."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from image_folders import encoded, image_folder, noise_image, readable

from maskunet.data import open_images
from maskunet.errors import DataError


def write_images(folder: Path, *names: str) -> None:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        kind = {".jpg": "JPEG", ".webp": "WEBP", ".tif": "TIFF"}.get(Path(name).suffix.lower(), "PNG")
        (folder / name).write_bytes(encoded(noise_image(i), kind))


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def captions(folder: Path, **options: str) -> list[str]:
    return [caption for _, caption in open_images(folder, **options)]


def test_captions_beside_the_images(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write_images(folder, "b.png", "a.jpg", "sub/c.WEBP", "sub/deeper/d.tif", ".hidden/e.png", "sub/.f.png")
    write(folder, {
        "a.txt": "first\n", "b.txt": "\ufeffsecond,  ö\r\nline\n", "sub/c.TXT": "third", "sub/deeper/d.txt": "fourth",
    })  # fmt: skip
    dataset = open_images(folder)
    pairs = list(dataset)
    assert [caption for _, caption in pairs] == ["first", "second, ö line", "third", "fourth"]
    assert np.array_equal(np.asarray(pairs[1][0]), np.asarray(noise_image(0)))
    assert dataset.count == 4
    assert dataset.source == str(folder)
    assert [caption for _, caption in open_images(str(folder))] == captions(folder)
    before = dataset.fingerprint
    (folder / "a.txt").write_text("other words")
    assert open_images(folder).fingerprint != before


def test_text_files_of_no_image_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_images(tmp_path, "a.png")
    write(tmp_path, {"a.txt": "first", "b.txt": "second", "readme.txt": "notes"})
    assert captions(tmp_path) == ["first"]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "2 .txt files" in record.message
    assert "b.txt" in record.message


@pytest.mark.parametrize(
    ("images", "texts", "message"),
    [
        (["a.png", "b.png", "c.png"], {"a.txt": "x"}, "a caption beside every image of .*, 2 have none, such as b.png;"),
        (["a.png", "b.png"], {"a.txt": "x", "b.txt": " \n"}, "captions in .*, 1 .txt file is empty, such as b.txt;"),
        (["a.png", "a.jpg"], {"a.txt": "x"}, "one image for each .txt file of .*, got a.jpg and a.png for a.txt;"),
        (["a.png"], {"a.txt": "x", "a.TXT": "y"}, "one .txt file for each image of .*, got a.TXT and a.txt;"),
        (["a.png"], {"a.txt": "x", "metadata.jsonl": '{"file_name": "a.png", "text": "y"}'},
         "captions of one kind in .*, got metadata.jsonl and .txt files beside images;"),
        (["a.png"], {"a.txt": "x", "sub/metadata.csv": "file_name,text\n"}, "got sub/metadata.csv and .txt files"),
        (["a.png"], {"metadata.csv": "file_name,text\na.png,x\n", "metadata.jsonl": '{"file_name": "a.png", "text": "y"}'},
         "got metadata.csv and metadata.jsonl;"),
        (["a.png"], {"a.txt": "x", "data.parquet": ""}, "got .txt files beside images and data.parquet;"),
        (["a.png", "b.png"], {}, "expected captions .* it has 2 images without"),
    ],
)  # fmt: skip
def test_unclear_captions_are_refused_in_one_line(
    tmp_path: Path, images: list[str], texts: dict[str, str], message: str
) -> None:
    write_images(tmp_path, *images)
    write(tmp_path, texts)
    with pytest.raises(DataError, match=message) as caught:
        open_images(tmp_path)
    assert "\n" not in str(caught.value)


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png")
    (tmp_path / "a.txt").write_bytes("größer".encode("latin-1"))
    with pytest.raises(DataError, match=r"UTF-8 in .*a\.txt"):
        open_images(tmp_path)


def test_columns_are_for_tables(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png")
    write(tmp_path, {"a.txt": "x"})
    with pytest.raises(DataError, match=r"no caption_column for the captions beside images .* got 'caption'"):
        open_images(tmp_path, caption_column="caption")
    with pytest.raises(DataError, match=r"no image_column for the captions beside images .* got 'photo'"):
        open_images(tmp_path, image_column="photo")


CSV = 'file_name,text,photo,caption\na.png,"first, with ""quotes""",b.png,other\nsub/b.png,"two\nlines",a.png,words\n'


def test_metadata_csv(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png", "sub/b.png", "b.png")
    (tmp_path / "metadata.csv").write_bytes(b"\xef\xbb\xbf" + CSV.replace("\n", "\r\n").encode())
    dataset = open_images(tmp_path)
    pairs = list(dataset)
    assert [caption.replace("\r", "") for _, caption in pairs] == ['first, with "quotes"', "two\nlines"]
    assert np.array_equal(np.asarray(pairs[1][0]), np.asarray(noise_image(1)))
    assert dataset.count == 2
    pairs = list(open_images(tmp_path, image_column="photo", caption_column="caption"))
    assert [caption for _, caption in pairs] == ["other", "words"]
    assert np.array_equal(np.asarray(pairs[0][0]), np.asarray(noise_image(2)))
    with pytest.raises(DataError, match=r"'words'.*got caption, file_name, photo, text; choose caption_column"):
        open_images(tmp_path, caption_column="words")


def test_bad_rows_of_a_csv_are_skipped_and_counted(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png", "b.png")
    write(tmp_path, {"metadata.csv": "file_name,text\na.png,x\n\nb.png,\ngone.png,z\n"})
    dataset = open_images(tmp_path)
    assert [caption for _, caption in dataset] == ["x"]
    assert dataset.skipped == {"empty caption": 1, "unreadable image": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "file_name,text\na.png,a red, round circle\n",
            r"2 fields in line 2 of .*metadata.csv, got 3; put .* in quotes",
        ),
        ("file_name,text\na.png\n", "2 fields in line 2 of .*, got 1"),
        ("file_name,text,text\na.png,x,y\n", "columns of different names in .*, got 'text' twice"),
        ("file_name;text\na.png;x\n", r"column 'file_name' in .*, got file_name;text; choose image_column"),
        ("file_name,text\n", "it is empty"),
        ("", "it is empty"),
        ("file_name,text\na.png,\x00\n" + "x" * 200_000, "could not read|2 fields"),
    ],
)
def test_broken_csv_files_are_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    write_images(tmp_path, "a.png")
    write(tmp_path, {"metadata.csv": text})
    with pytest.raises(DataError, match=message) as caught:
        open_images(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_an_image_may_have_several_captions_but_no_row_twice(tmp_path: Path, kind: str) -> None:
    write_images(tmp_path, "a.png")

    def rows(*texts: str) -> None:
        lines = [json.dumps({"file_name": "a.png", "text": text}) for text in texts]
        table = ["file_name,text", *(f"a.png,{text}" for text in texts)]
        write(tmp_path, {f"metadata.{kind}": "\n".join(lines if kind == "jsonl" else table)})

    rows("one", "two")
    assert captions(tmp_path) == ["one", "two"]
    rows("one", "two", "one")
    with pytest.raises(DataError, match=rf"each row once in .*metadata.{kind}, got 'a.png' with one caption twice"):
        open_images(tmp_path)


def test_metadata_of_sub_folders(tmp_path: Path) -> None:
    image_folder(tmp_path / "set" / "a", readable(2))
    write_images(tmp_path / "set" / "b", "x/y.png")
    write(tmp_path / "set" / "b", {"metadata.jsonl": '{"file_name": "x/y.png", "text": "deep"}'})
    dataset = open_images(tmp_path / "set")
    pairs = list(dataset)
    assert [caption for _, caption in pairs] == ["number 0", "number 1", "deep"]
    assert np.array_equal(np.asarray(pairs[2][0]), np.asarray(noise_image(0)))
    write(tmp_path / "set" / "b", {"metadata.jsonl": '{"file_name": "x/y.png", "caption": "deep"}'})
    with pytest.raises(DataError, match=r"column 'text' in .*b/metadata.jsonl"):
        open_images(tmp_path / "set")


def test_a_row_in_two_files_is_refused(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "a", readable(1))
    write(tmp_path, {"metadata.jsonl": '{"file_name": "./a/0.png", "text": "number 0"}'})
    with pytest.raises(
        DataError, match=rf"each row once in {folder}/metadata.jsonl, got '0.png' with one caption twice"
    ):
        open_images(tmp_path)


def test_splits_are_sub_folders(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_images(tmp_path / "a" / split, "x/0.png")
        write(tmp_path / "a" / split, {"x/0.txt": split})
    assert captions(tmp_path / "a") == ["train"]
    assert captions(tmp_path / "a", split="test") == ["test"]
    with pytest.raises(DataError, match="split 'validation'"):
        open_images(tmp_path / "a", split="validation")
    # Images beside a folder of another split.
    write_images(tmp_path / "b", "0.png", "test/1.png", "cats/2.png")
    write(tmp_path / "b", {"0.txt": "zero", "test/1.txt": "one", "cats/2.txt": "two"})
    assert captions(tmp_path / "b") == ["zero", "two"]
    assert captions(tmp_path / "b", split="test") == ["one"]
    # A table of captions above a folder of images.
    write_images(tmp_path / "c", "train/0.png")
    write(tmp_path / "c", {"metadata.csv": "file_name,text\ntrain/0.png,zero\n"})
    assert captions(tmp_path / "c") == ["zero"]
