"""A folder of images with captions: in `metadata.jsonl`, in `metadata.csv`, or in text files beside the images.

The conventions are those of the imagefolder of the `datasets` library, and of trainers such as kohya's.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DataError, first_line

logger = logging.getLogger(__name__)

METADATA = ("metadata.jsonl", "metadata.csv")
TABLES = {".parquet": "parquet", ".arrow": "arrow"}
SPLITS = {"train", "test", "validation", "valid", "val", "dev", "eval"}
_IMAGES = {
    ".jpg", ".jpeg", ".png", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff", ".jp2", ".j2k", ".pgm", ".ppm",
}  # fmt: skip
_DEFAULT_COLUMNS = ("image", "text")


@dataclass(frozen=True)
class FolderRows:
    """Rows of a folder of images.

    Args:
        root: the folder, of the split if it has one.
        rows: mappings of column to value; an image is a path in the folder.
        image_column: column of the images.
        caption_column: column of the captions.
        files: files that the rows depend on.
        identity: everything else that they depend on.
    """

    root: Path
    rows: list[dict[str, Any]]
    image_column: str
    caption_column: str
    files: list[Path]
    identity: tuple[object, ...]


@dataclass
class _Listing:
    """Files of a folder and of its sub-folders, sorted, hidden ones left out."""

    images: list[Path] = field(default_factory=list)
    texts: list[Path] = field(default_factory=list)
    metadata: list[Path] = field(default_factory=list)
    tables: list[Path] = field(default_factory=list)


def read_folder(folder: Path, split: str, columns: tuple[str, str]) -> FolderRows | None:
    """Read the rows of a folder of images, from its sub-folder of the split if there is one.

    Args:
        folder: the folder.
        split: the split; images that lie in no split's sub-folder belong to "train".
        columns: columns of images and captions in a metadata file; "image" means `file_name`.

    Returns:
        The rows, or None if the folder holds neither captions nor images without them.

    Raises:
        DataError: captions are missing, empty or ambiguous, or a file of them cannot be read.
    """
    uncaptioned = 0
    for root in [folder / split, *([folder] if split == "train" else [])]:
        if not root.is_dir():
            continue
        listing = _list_files(root, SPLITS - {split} if root == folder else set())
        is_captioned = _has_captions(listing)
        if is_captioned and root != folder:
            listing.metadata += [folder / name for name in METADATA if split == "train" and (folder / name).is_file()]
        _check_kinds(folder, listing, is_captioned)
        if is_captioned:
            return _read_texts(root, listing, columns)
        if listing.metadata:
            return _read_metadata(root, listing.metadata, columns)
        uncaptioned = 0 if listing.tables else len(listing.images)
    if uncaptioned:
        raise DataError(
            f"expected captions in {folder} (a .txt file beside each image, {' or '.join(METADATA)}), it has "
            f"{uncaptioned} images without"
        )
    return None


def _list_files(root: Path, excluded: set[str]) -> _Listing:
    listing = _Listing()
    for parent, folders, names in os.walk(root):
        path = Path(parent)
        folders[:] = sorted(f for f in folders if f[0] != "." and not (path == root and f.lower() in excluded))
        for name in sorted(name for name in names if name[0] != "."):
            suffix = Path(name).suffix.lower()
            if name in METADATA:
                listing.metadata.append(path / name)
            elif suffix in _IMAGES:
                listing.images.append(path / name)
            elif suffix == ".txt":
                listing.texts.append(path / name)
            elif suffix in TABLES and not name.startswith("cache-"):
                listing.tables.append(path / name)
    return listing


def _has_captions(listing: _Listing) -> bool:
    return not {text.with_suffix("") for text in listing.texts}.isdisjoint(i.with_suffix("") for i in listing.images)


def _check_kinds(folder: Path, listing: _Listing, is_captioned: bool) -> None:
    """Refuse captions in files of several kinds, of which it is not clear which ones count."""
    kinds = {file.name: str(file.relative_to(folder)) for file in reversed(listing.metadata)}
    names = sorted(kinds.values())
    if is_captioned:
        names.append(".txt files beside images")
    if names and listing.tables:
        names.append(str(listing.tables[0].relative_to(folder)))
    if len(names) > 1:
        raise DataError(f"expected captions of one kind in {folder}, got {' and '.join(names)}; move one of them away")


def _read_texts(root: Path, listing: _Listing, columns: tuple[str, str]) -> FolderRows:
    """Read captions from text files; the whole text of a file is the caption, with single spaces."""
    for column, default, option in zip(columns, _DEFAULT_COLUMNS, ("image_column", "caption_column"), strict=True):
        if column != default:
            raise DataError(f"expected no {option} for the captions beside images in {root}, got {column!r}")
    texts, images = _by_stem(listing.texts), _by_stem(listing.images)
    for stem, files in images.items():
        if len(files) > 1 and stem in texts:
            names = " and ".join(file.name for file in files)
            raise DataError(
                f"expected one image for each .txt file of {files[0].parent}, got {names} for {texts[stem][0].name}; rename "
                "one"
            )
        if len(texts.get(stem, ())) > 1:
            names = " and ".join(file.name for file in texts[stem])
            raise DataError(f"expected one .txt file for each image of {files[0].parent}, got {names}; remove one")
    if missing := [image for image in listing.images if image.with_suffix("") not in texts]:
        raise DataError(
            f"expected a caption beside every image of {root}, {len(missing)} have none, such as "
            f"{missing[0].relative_to(root)}; write a .txt file for each, or move them away"
        )
    if others := [text for text in listing.texts if text.with_suffix("") not in images]:
        logger.warning(
            "%d .txt files of %s belong to no image, such as %s", len(others), root, others[0].relative_to(root)
        )
    rows, files = [], []
    empty: list[Path] = []
    for image in listing.images:
        (text,) = texts[image.with_suffix("")]
        caption = " ".join(_read_utf8(text).split())
        if not caption:
            empty.append(text)
        rows.append({"file_name": str(image.relative_to(root)), "text": caption})
        files += [image, text]
    if empty:
        noun = ".txt file is" if len(empty) == 1 else ".txt files are"
        raise DataError(
            f"expected captions in {root}, {len(empty)} {noun} empty, such as {empty[0].relative_to(root)}; write captions, "
            "or move the images away"
        )
    return FolderRows(root, rows, "file_name", "text", files, ("texts", root.resolve()))


def _by_stem(files: Iterable[Path]) -> dict[Path, list[Path]]:
    stems: dict[Path, list[Path]] = {}
    for file in files:
        stems.setdefault(file.with_suffix(""), []).append(file)
    return stems


def _read_utf8(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"expected UTF-8 in {file}, got other bytes; save it as UTF-8") from error


def _read_metadata(root: Path, files: list[Path], columns: tuple[str, str]) -> FolderRows:
    """Read the metadata files of a folder and its sub-folders; paths in one are relative to it."""
    image_column, caption_column = ("file_name" if columns[0] == "image" else columns[0]), columns[1]
    rows: list[dict[str, Any]] = []
    pairs: set[tuple[str, str]] = set()
    for file in files:
        file_rows = _read_csv(file) if file.suffix == ".csv" else _read_jsonl(file, caption_column)
        if not file_rows:
            raise DataError(f"expected images in {file}, it is empty")
        check_columns(str(file), {key for row in file_rows for key in row}, (image_column, caption_column))
        for row in file_rows:
            image, caption = row.get(image_column), row.get(caption_column)
            if not isinstance(image, str):
                continue
            if file.parent != root:
                row[image_column] = str(file.parent.relative_to(root) / image)
            if not isinstance(caption, str):
                continue
            if (pair := (os.path.normpath(row[image_column]), caption)) in pairs:  # an image may have several captions
                raise DataError(f"expected each row once in {file}, got {image!r} with one caption twice; remove one")
            pairs.add(pair)
        rows += file_rows
    images = [root / row[image_column] for row in rows if isinstance(row.get(image_column), str)]
    identity = ("folder", *(file.resolve() for file in files))
    return FolderRows(root, rows, image_column, caption_column, [*files, *images], identity)


def _read_jsonl(file: Path, caption_column: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for line in filter(str.strip, file.read_text(encoding="utf-8-sig", errors="replace").split("\n")):
        row = None
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
        # A caption without an image, so that the row counts as an unreadable image.
        rows.append(row if isinstance(row, dict) else {caption_column: "not an object"})
    return rows


def _read_csv(file: Path) -> list[dict[str, Any]]:
    reader = csv.reader(io.StringIO(_read_utf8(file), newline=""), strict=True)
    rows: list[dict[str, Any]] = []
    try:
        header = next(reader, [])
        if twice := [name for name in header if header.count(name) > 1]:
            raise DataError(f"expected columns of different names in {file}, got {twice[0]!r} twice")
        for fields in reader:
            if fields and len(fields) != len(header):  # an unquoted comma would cut a caption short
                raise DataError(
                    f"expected {len(header)} fields in line {reader.line_num} of {file}, got {len(fields)}; put captions "
                    "with commas in quotes"
                )
            if fields:
                rows.append(dict(zip(header, fields, strict=True)))
    except csv.Error as error:
        raise DataError(
            f"expected a table in {file}, could not read line {reader.line_num}: {first_line(error)}"
        ) from error
    return rows


def check_columns(source: str, names: Iterable[str], columns: tuple[str, str]) -> None:
    """Refuse a table without the columns of images or captions.

    Args:
        source: the table's name, for the message.
        names: its columns.
        columns: columns of images and captions.

    Raises:
        DataError: one of them is missing.
    """
    for column, option in zip(columns, ("image_column", "caption_column"), strict=True):
        if column not in names:
            existing = ", ".join(sorted(names)) or "none"
            raise DataError(f"expected a column {column!r} in {source}, got {existing}; choose {option}")
