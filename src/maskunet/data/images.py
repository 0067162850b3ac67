"""Pictures with captions that a user has: a folder, a parquet or Arrow file, or a data set on the hub.

Every picture is opened here, a row at a time: one that is damaged is left out and counted, and the others are used.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import io
import itertools
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from PIL import Image, ImageOps

from ..errors import DataError, first_line

_LIST = "metadata.jsonl"
_TABLES = {".parquet": "parquet", ".arrow": "arrow"}
_SPLITS = {"train", "test", "validation", "valid", "val", "dev", "eval"}
# Not all that Pillow opens: its EPS reader starts a program.
_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000", "PPM")


@dataclass(eq=False)
class ImageCaptions:
    """Iterable of pictures (RGB) with captions. Rows that cannot be used are left out and counted in `skipped`.

    Args:
        rows: mappings of column to value, iterated anew in each pass. A picture is bytes, a path or a mapping of both.
        source: where they come from, for messages.
        image_column: column of the pictures.
        caption_column: column of the captions; of a list, the first that is not empty is taken.
        count: number of rows, those that cannot be used included; None if it is not known.
        folder: what relative paths start from.
        files: local files that the rows follow from, and `identity` what else they follow from, for `fingerprint`.
        min_side: least height and width in pixels.
    """

    rows: Iterable[Mapping[str, Any]] = field(repr=False)
    source: str
    image_column: str = "image"
    caption_column: str = "text"
    count: int | None = None
    folder: Path = Path()
    files: Sequence[Path] = field(default=(), repr=False)
    identity: Sequence[object] = ()
    min_side: int = 8
    skipped: Counter[str] = field(default_factory=Counter, init=False)

    def __len__(self) -> int:
        if self.count is None:
            raise TypeError(f"expected rows that can be counted, {self.source} is streamed; use `count`")
        return self.count

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[tuple[Image.Image, str]]:
        return ((picture, caption) for _, picture, caption in self.numbered())

    def numbered(self) -> Iterator[tuple[int, Image.Image, str]]:
        """Iterate over row number, picture and caption.

        Raises:
            DataError: the source, not a row of it, cannot be read any further.
        """
        self.skipped = Counter()
        rows: Iterator[Mapping[str, Any]] | None = None
        for index in itertools.count():
            try:
                rows = iter(self.rows) if rows is None else rows
                row = next(rows)
            except StopIteration:
                return
            except Exception as error:
                raise DataError(f"expected to read row {index} of {self.source}, got {first_line(error)}") from error
            caption, picture = _caption(row.get(self.caption_column)), None
            if caption is None:
                self.skipped["empty caption"] += 1
                continue
            with contextlib.suppress(Exception):  # damaged bytes make readers fail in any way
                picture = _picture(row.get(self.image_column), self.folder)
            if picture is not None and min(picture.size) >= self.min_side:
                yield index, picture, caption
            else:
                self.skipped["unreadable picture" if picture is None else "picture too small"] += 1

    @property
    def fingerprint(self) -> str:
        """Hash of the source and of the sizes and times of its files, as they are now.

        Pictures that a table names by path are not seen, nor changes on the hub when streaming without a `revision`.
        """
        parts = [*self.identity, self.image_column, self.caption_column, self.min_side]
        for file in self.files:
            found = None
            with contextlib.suppress(OSError, ValueError):  # a picture that is listed and missing
                found = file.stat()
            parts += [file, found and (found.st_size, found.st_mtime_ns)]
        return hashlib.sha256(repr([str(part) for part in parts]).encode()).hexdigest()


def open_images(
    source: str | Path,
    *,
    image_column: str = "image",
    caption_column: str = "text",
    split: str = "train",
    streaming: bool = False,
    revision: str | None = None,
) -> ImageCaptions:
    """Open a data set of pictures with captions.

    Args:
        source: a folder of pictures with a `metadata.jsonl` (in each line an object with `file_name` and the caption),
            a folder of .parquet or .arrow files, one such file, or the name of a data set on the hub.
        image_column: column of the pictures; in a `metadata.jsonl`, "image" is `file_name`.
        caption_column: column of the captions.
        split: which split; of a folder, what lies in a subfolder or files of that name.
        streaming: read tables and hub data sets as they are needed, without a copy in the cache.
        revision: branch, tag or commit of a hub data set.

    Raises:
        DataError: there is no such data set, it cannot be read, it is empty, or has no such column.
    """
    name, columns = str(source), (image_column, caption_column)
    path, files, options = Path(source).expanduser(), [], {"split": split, "streaming": streaming}
    try:
        if not name.strip() or not path.exists():
            if isinstance(source, Path) or not name.strip() or name[0] in "/.~" or path.suffix in _TABLES:
                raise DataError(f"expected an existing folder or file, or a hub name, got {name!r}; check the path")
            rows, mark = _load(name, columns, name, options | {"revision": revision})
            identity: tuple[object, ...] = ("hub", name, revision, split, mark)
            return ImageCaptions(rows, name, *columns, None if streaming else len(rows), identity=identity)
        if path.is_dir():
            lists = [p / _LIST for p in (path / split, *([path] if split == "train" else [])) if (p / _LIST).is_file()]
            if lists:
                return _listed(lists[0], columns)
            files = _files_of(path, split)
        elif path.suffix in _TABLES:
            files = [path]
        else:
            raise DataError(f"expected a folder, a .parquet or an .arrow file, or a hub name, got the file {path}")
    except OSError as error:
        raise DataError(f"expected a data set that can be read, got {first_line(error)}") from error
    options["data_files"] = {split.split("[")[0]: [glob.escape(str(file.resolve())) for file in files]}
    rows, _ = _load(name, columns, _TABLES[files[0].suffix], options)
    count, folder = None if streaming else len(rows), path if path.is_dir() else path.parent
    return ImageCaptions(rows, name, *columns, count, folder, files, ("tables", path.resolve(), split))


def _listed(file: Path, columns: tuple[str, str]) -> ImageCaptions:
    image, caption = ("file_name" if columns[0] == "image" else columns[0]), columns[1]
    rows: list[dict[str, Any]] = []
    for line in filter(str.strip, file.read_text(encoding="utf-8-sig", errors="replace").split("\n")):
        row = None
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
        rows.append(row if isinstance(row, dict) else {caption: "a line that is no object is counted as unreadable"})
    if not rows:
        raise DataError(f"expected pictures in {file}, it is empty")
    _check_columns(str(file), {key for row in rows for key in row}, (image, caption))
    files = [file, *(file.parent / row[image] for row in rows if isinstance(row.get(image), str))]
    return ImageCaptions(
        rows, str(file.parent), image, caption, len(rows), file.parent, files, ("folder", file.resolve())
    )


def _files_of(folder: Path, split: str) -> list[Path]:
    """Return a folder's tables of a split; those whose path names no split are of "train"."""
    tables = sorted(f for f in folder.rglob("*") if f.suffix in _TABLES and not f.name.startswith((".", "cache-")))
    found: dict[str, list[Path]] = {}
    for file in [f for f in tables if f.suffix == ".parquet"] or tables:
        words = set(re.split(r"[\W\d_]+", str(file.relative_to(folder)).lower()))
        found.setdefault(min({split.split("[")[0]} & words or _SPLITS & words, default="train"), []).append(file)
    if not found:
        raise DataError(f"expected a {_LIST} or .parquet or .arrow files for split {split!r} in {folder}, it has none")
    if split.split("[")[0] not in found:
        raise DataError(f"expected split {split!r} in {folder}, got {', '.join(sorted(found))}; choose a split")
    return found[split.split("[")[0]]


def _load(source: str, columns: tuple[str, str], name: str, options: Mapping[str, Any]) -> tuple[Any, str | None]:
    """Load two columns with the `datasets` library, pictures as they are stored; return them and their fingerprint."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"expected datasets to read {source}, not installed; pip install 'maskunet[train]'") from error
    try:
        data = datasets.load_dataset(name, **options)
        mark = getattr(data, "_fingerprint", None)
        _check_columns(source, list(data.column_names or next(iter(data), {})), columns)
        data = data.select_columns([*dict.fromkeys(columns)])  # the library would decode pictures in the others
        if isinstance((data.features or {}).get(columns[0]), datasets.Image):
            data = data.cast_column(columns[0], datasets.Image(decode=False))
        if next(iter(data), None) is None:
            raise DataError(f"expected pictures in {source}, it is empty")
    except DataError:
        raise
    except Exception as error:  # the library, the network and the files each have their own
        raise DataError(
            f"expected a local folder, a .parquet or .arrow file, or a hub data set with split {options['split']!r}, "
            f"could not read {source!r}: {first_line(error)}"
        ) from error
    return data, mark


def _check_columns(source: str, names: Iterable[str], columns: tuple[str, str]) -> None:
    for column, option in zip(columns, ("image_column", "caption_column"), strict=True):
        if column not in names:
            listed = ", ".join(sorted(names)) or "none"
            raise DataError(f"expected a column {column!r} in {source}, got {listed}; choose {option}")



def _caption(value: Any) -> str | None:
    texts = [t for t in (value if isinstance(value, list | tuple) else [value]) if isinstance(t, str) and t.strip()]
    # Half a surrogate pair, which JSON can hold, would stop a tokenizer.
    return texts[0].strip().encode("utf-8", "replace").decode() if texts else None


def _picture(value: Any, folder: Path) -> Image.Image:
    """Decode a picture to RGB, upright and over white; raise whatever its reader raises."""
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str) and value.split("::")[-1].startswith("hf://"):  # a folder that is streamed from the hub
        with fsspec.open(value, "rb") as stream:
            value = stream.read()
    elif isinstance(value, str):
        value = (folder / value if (folder / value).exists() else Path(value)).read_bytes()
    Image.init()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        picture: Image.Image = Image.open(io.BytesIO(value), formats=[f for f in _FORMATS if f in Image.OPEN])
        picture.load()
        with contextlib.suppress(Exception):  # an orientation that cannot be read is no reason to lose a picture
            picture = ImageOps.exif_transpose(picture)
        if picture.mode.startswith("I") or picture.mode == "F":  # Pillow would clip these at 255
            values = np.nan_to_num(np.asarray(picture, dtype=np.float64))
            top = 65535 if picture.mode.startswith("I") else 1 if values.max() <= 1 else 255
            picture = Image.fromarray((values / top * 255).round().clip(0, 255).astype(np.uint8))
        if picture.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in picture.info:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        return picture.convert("RGB")
