"""A user's images with captions: a folder, a parquet or Arrow file, or a data set on the hub.

Images are decoded here, row by row. A damaged one is skipped and counted; all others are used.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import DataError, first_line
from .decoding import decode_image, read_caption
from .folders import METADATA, SPLITS, TABLES, FolderRows, check_columns, read_folder


@dataclass(eq=False)
class ImageCaptions:
    """Iterable of RGB images with captions. Unusable rows are skipped and counted in `skipped`.

    Main:
        rows: mappings of column to value; each pass iterates over them again. An image is bytes, a path, or a mapping with
            "bytes" or "path".
        source: the data set's name, for messages.
        image_column: column of the images.
        caption_column: column of the captions. The first non-empty caption of a list counts.

    Fine-tuning:
        count: number of rows, unusable ones included; None if unknown.
        folder: the folder of relative paths.
        files: local files that the rows depend on, for `fingerprint`.
        identity: everything else that the rows depend on, for `fingerprint`.
        min_side: smallest height and width of a usable image, in pixels.
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
            raise TypeError(f"expected a data set of known length, {self.source} is streamed; use `count`")
        return self.count

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[tuple[Image.Image, str]]:
        return ((image, caption) for _, image, caption in self.numbered())

    def numbered(
        self, start: int = 0, skipped: Mapping[str, int] | None = None
    ) -> Iterator[tuple[int, Image.Image, str]]:
        """Iterate over row numbers, images and captions.

        Args:
            start: number of the first row.
            skipped: number of unusable rows before it, by reason.

        Raises:
            DataError: the source itself, not a row of it, cannot be read any further.
        """
        self.skipped = Counter(skipped)
        rows: Iterator[Mapping[str, Any]] | None = None
        for index in itertools.count(start):
            try:
                rows = self._rows_from(start) if rows is None else rows
                row = next(rows)
            except StopIteration:
                return
            except Exception as error:
                raise DataError(
                    f"expected to read row {index} of {self.source}, could not: {_reason(error)}"
                ) from error
            caption, image = read_caption(row.get(self.caption_column)), None
            if caption is None:
                self.skipped["empty caption"] += 1
                continue
            with contextlib.suppress(Exception):  # damaged bytes make readers fail in any way
                image = decode_image(row.get(self.image_column), self.folder)
            if image is not None and min(image.size) >= self.min_side:
                yield index, image, caption
            else:
                self.skipped["unreadable image" if image is None else "image too small"] += 1

    def _rows_from(self, start: int) -> Iterator[Mapping[str, Any]]:
        if start and hasattr(self.rows, "skip"):  # of the `datasets` library, which need not read what it skips
            return iter(self.rows.skip(start))
        return itertools.islice(self.rows, start, None)

    @property
    def fingerprint(self) -> str:
        """Hash of the source and of its files' present sizes and times.

        It covers neither images that a table names by path, nor changes on the hub while streaming without a `revision`.
        """
        parts = [*self.identity, self.image_column, self.caption_column, self.min_side]
        if any(file.suffix.lower() in (".tif", ".tiff") for file in self.files):
            parts.append("TIFF, scaled by its bits")  # earlier versions cached other shades
        for file in self.files:
            status = None
            with contextlib.suppress(OSError, ValueError):  # an image that is listed and missing
                status = file.stat()
            parts += [file, status and (status.st_size, status.st_mtime_ns)]
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
    """Open a data set of images with captions.

    Args:
        source: a folder of images, a folder of .parquet or .arrow files, one such file, or the name of a data set on the
            hub. Captions of a folder of images are in `metadata.jsonl` (one object per line, with `file_name` and the
            caption) or `metadata.csv`, also in sub-folders; or in a text file beside each image (`a.png`, `a.txt`).
        image_column: column of the images; in a metadata file, "image" means `file_name`.
        caption_column: column of the captions.
        split: which split; in a folder, the subfolder or the files of that name.
        streaming: read tables and hub data sets row by row, without a copy in the cache.
        revision: branch, tag or commit of a hub data set.

    Raises:
        DataError: there is no such data set, it cannot be read, it is empty, or it has no such column.
    """
    name, columns = str(source), (image_column, caption_column)
    path, options = Path(source).expanduser(), {"split": split, "streaming": streaming}
    try:
        if not name.strip() or not path.exists():
            if isinstance(source, Path) or not name.strip() or name[0] in "/.~" or path.suffix in TABLES:
                raise DataError(f"expected an existing folder or file, or a hub name, got {name!r}; check the path")
            rows, version = _load_table(name, columns, name, options | {"revision": revision})
            identity: tuple[object, ...] = ("hub", name, revision, split, version)
            return ImageCaptions(rows, name, *columns, None if streaming else len(rows), identity=identity)
        if path.is_dir():
            if (folder_rows := read_folder(path, split, columns)) is not None:
                return _from_folder(folder_rows)
            files = _table_files(path, split)
        elif path.suffix in TABLES:
            files = [path]
        else:
            raise DataError(f"expected a folder, a .parquet or an .arrow file, or a hub name, got the file {path}")
    except OSError as error:
        raise DataError(f"expected a data set that can be read, got {path}: {_reason(error)}") from error
    options["data_files"] = {split.split("[")[0]: [glob.escape(str(file.resolve())) for file in files]}
    rows, _ = _load_table(name, columns, TABLES[files[0].suffix], options)
    count, folder = None if streaming else len(rows), path if path.is_dir() else path.parent
    return ImageCaptions(rows, name, *columns, count, folder, files, ("tables", path.resolve(), split))


def _from_folder(source: FolderRows) -> ImageCaptions:
    return ImageCaptions(
        source.rows,
        str(source.root),
        source.image_column,
        source.caption_column,
        len(source.rows),
        source.root,
        source.files,
        source.identity,
    )


def _table_files(folder: Path, split: str) -> list[Path]:
    """Return a folder's tables of a split; those whose path names no split belong to "train"."""
    tables = sorted(f for f in folder.rglob("*") if f.suffix in TABLES and not f.name.startswith((".", "cache-")))
    by_split: dict[str, list[Path]] = {}
    for file in [f for f in tables if f.suffix == ".parquet"] or tables:
        words = set(re.split(r"[\W\d_]+", str(file.relative_to(folder)).lower()))
        by_split.setdefault(min({split.split("[")[0]} & words or SPLITS & words, default="train"), []).append(file)
    if not by_split:
        raise DataError(
            f"expected images with captions ({', '.join(METADATA)}, .txt files), or .parquet or .arrow files, for split "
            f"{split!r} in {folder}, it has none"
        )
    if split.split("[")[0] not in by_split:
        raise DataError(f"expected split {split!r} in {folder}, got {', '.join(sorted(by_split))}; choose a split")
    return by_split[split.split("[")[0]]


def _load_table(
    source: str, columns: tuple[str, str], name: str, options: Mapping[str, Any]
) -> tuple[Any, str | None]:
    """Load two columns with the `datasets` library, images as stored bytes; return them and their fingerprint."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"expected datasets to read {source}, not installed; pip install 'maskunet[train]'") from error
    try:
        data = datasets.load_dataset(name, **options)
        version = getattr(data, "_fingerprint", None)
        check_columns(source, list(data.column_names or next(iter(data), {})), columns)
        data = data.select_columns([*dict.fromkeys(columns)])  # the library would decode images in the others
        if isinstance((data.features or {}).get(columns[0]), datasets.Image):
            data = data.cast_column(columns[0], datasets.Image(decode=False))
        if next(iter(data), None) is None:
            raise DataError(f"expected images in {source}, it is empty")
    except DataError:
        raise
    except Exception as error:  # the library, the network and the file readers all raise their own types
        raise DataError(
            f"expected a local folder, a .parquet or .arrow file, or a hub data set with split {options['split']!r}, "
            f"could not read {source!r}: {_reason(error)}"
        ) from error
    return data, version


def _reason(error: BaseException) -> str:
    # `datasets` reports that reading failed; the reason is in the error's cause.
    return first_line(error.__cause__ or error)
