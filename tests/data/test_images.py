"""Pictures with captions from folders, tables and the hub: what is read, what is left out, and how it is encoded."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

import maskunet as mu
from maskunet.data import CachedLatents, encode_images, encode_pictures, encoding, images, open_images
from maskunet.errors import DataError

Row = dict[str, Any]


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def noise(seed: int = 0, size: tuple[int, int] = (20, 30)) -> Image.Image:
    """A picture of a given width and height."""
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def coded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def folder_of(folder: Path, rows: list[tuple[str, bytes | None, object]]) -> Path:
    """Write an image folder; None for the bytes leaves a file out."""
    folder.mkdir(parents=True)
    for name, data, _ in rows:
        if data is not None:
            (folder / name).write_bytes(data)
    lines = [json.dumps({"file_name": name, "text": caption}) for name, _, caption in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def good(count: int, size: tuple[int, int] = (20, 30)) -> list[tuple[str, bytes | None, object]]:
    return [(f"{i}.png", coded(noise(i, size)), f"number {i}") for i in range(count)]


def only(folder: Path, data: bytes, name: str = "a.png") -> Image.Image:
    """The one picture of a folder made of these bytes."""
    ((picture, _),) = open_images(folder_of(folder, [(name, data, "x")]))
    assert picture.mode == "RGB"
    return picture


def test_folder_leaves_out_bad_rows_and_counts_them(tmp_path: Path) -> None:
    whole = coded(noise(9, (64, 64)), "JPEG")
    bomb = coded(Image.new("1", (10000, 10000)))
    rows = [
        ("a.png", coded(noise(0)), "first"),
        ("cut.jpg", whole[: len(whole) // 2], "cut"),
        ("gone.png", None, "gone"),
        ("b.png", coded(noise(1)), "  "),
        ("c.png", coded(noise(2)), None),
        ("d.png", coded(noise(3)), 7),
        ("e.png", coded(noise(4)), ["", "second", "third"]),
        ("dot.png", coded(noise(5, (1, 1))), "dot"),
        ("thin.png", coded(noise(5, (100, 7))), "thin"),
        ("bomb.png", bomb, "bomb"),
        ("zero.png", b"", "zero"),
        ("f.jpg", whole, "last"),
    ]
    found = open_images(folder_of(tmp_path / "set", rows))
    for _ in range(2):  # counts start anew
        pairs = list(found)
        assert [caption for _, caption in pairs] == ["first", "second", "last"]
        assert found.skipped == {"unreadable picture": 4, "empty caption": 3, "picture too small": 2}
    assert all(picture.mode == "RGB" for picture, _ in pairs)
    assert np.array_equal(np.asarray(pairs[0][0]), np.asarray(noise(0)))
    assert len(found) == found.count == 12


def test_lines_that_are_no_objects_are_left_out(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "set", good(2))
    with (folder / "metadata.jsonl").open("ab") as file:
        file.write(b'[1]\n{"file_name": "0.png", "te\n\xff\n')
    found = open_images(folder)
    assert [caption for _, caption in found] == ["number 0", "number 1"]
    assert found.skipped == {"unreadable picture": 3}


def test_one_bad_row_of_many_leaves_the_others_in_order(tmp_path: Path, pipe: StableDiffusionPipeline) -> None:
    rows = good(40)
    rows[30] = ("30.png", b"no picture", "number 30")
    found = open_images(folder_of(tmp_path / "set", rows))
    assert [number for number, _, _ in found.numbered()] == [i for i in range(40) if i != 30]
    data = encode_images(pipe, found, resolution=16, progress=False)
    assert data.captions == tuple(f"number {i}" for i in range(40) if i != 30)
    expected = encode_pictures(pipe.vae, tensor(found_crop(noise(31))))[0]
    torch.testing.assert_close(data.mean[30:31].float(), expected.float(), atol=0.02, rtol=0.02)


def tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255


def found_crop(picture: Image.Image) -> Image.Image:
    """The middle of a 20 x 30 picture at 16 pixels, resized whole."""
    return picture.resize((16, 24), Image.Resampling.LANCZOS).crop((0, 4, 16, 20))


def test_transparent_pictures_lie_on_white(tmp_path: Path) -> None:
    half = Image.new("RGBA", (10, 10), (255, 0, 0, 128))
    half.putpixel((0, 0), (0, 0, 0, 0))
    picture = only(tmp_path / "rgba", coded(half))
    assert picture.getpixel((0, 0)) == (255, 255, 255)
    assert picture.getpixel((5, 5)) == (255, 127, 127)
    grey = only(tmp_path / "la", coded(Image.new("LA", (10, 10), (0, 0))))
    assert grey.getpixel((5, 5)) == (255, 255, 255)
    palette = Image.new("P", (10, 10), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.putpixel((0, 0), 0)
    found = only(tmp_path / "p", coded(palette, transparency=0))
    assert found.getpixel((0, 0)) == (255, 255, 255)
    assert found.getpixel((5, 5)) == (10, 20, 30)


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    picture = only(tmp_path / "set", coded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"), "a.jpg")
    red, green, blue = picture.getpixel((8, 8))
    assert red > 240
    assert max(green, blue) < 15


def test_pictures_are_turned_upright(tmp_path: Path) -> None:
    lying = Image.new("RGB", (32, 16), "blue")
    lying.paste("red", (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise: the left half comes to the top
    picture = only(tmp_path / "set", coded(lying, "JPEG", exif=exif, quality=95), "a.jpg")
    assert picture.size == (16, 32)
    assert picture.getpixel((8, 4))[0] > 200
    assert picture.getpixel((8, 28))[2] > 200


def test_deep_grey_keeps_its_shades(tmp_path: Path) -> None:
    values = np.full((10, 10), 32768, dtype=np.uint16)
    values[0, 0], values[9, 9] = 0, 65535
    picture = only(tmp_path / "set", coded(Image.fromarray(values)))
    assert [picture.getpixel(at)[0] for at in ((0, 0), (5, 5), (9, 9))] == [0, 128, 255]
    floats = Image.fromarray(np.linspace(0, 1, 100, dtype=np.float32).reshape(10, 10))
    assert only(tmp_path / "float", coded(floats, "TIFF"), "a.tiff").getpixel((9, 9)) == (255, 255, 255)


def table_rows() -> list[bytes]:
    return [coded(noise(0)), coded(noise(1))[:60], coded(noise(2))]


def as_struct(tmp_path: Path) -> datasets.Dataset:
    rows = [{"image": {"bytes": data, "path": None}, "text": str(i)} for i, data in enumerate(table_rows())]
    return datasets.Dataset.from_list(rows)


def as_bytes(tmp_path: Path) -> datasets.Dataset:
    return datasets.Dataset.from_list([{"image": data, "text": str(i)} for i, data in enumerate(table_rows())])


def as_pictures(tmp_path: Path) -> datasets.Dataset:
    return as_struct(tmp_path).cast_column("image", datasets.Image())


def as_paths(tmp_path: Path) -> datasets.Dataset:
    (tmp_path / "set").mkdir(exist_ok=True)
    for i, data in enumerate(table_rows()):
        (tmp_path / "set" / f"{i}.png").write_bytes(data)
    return datasets.Dataset.from_list([{"image": f"{i}.png", "text": str(i)} for i in range(3)])


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("made", [as_struct, as_bytes, as_pictures, as_paths])
def test_tables(made: Callable[[Path], datasets.Dataset], kind: str, streaming: bool, tmp_path: Path) -> None:
    table = made(tmp_path)
    if kind == "parquet":
        file = tmp_path / "set" / "a.parquet"
        file.parent.mkdir(exist_ok=True)
        table.to_parquet(str(file))
    else:
        table.save_to_disk(tmp_path / "set")
        (file,) = (tmp_path / "set").glob("*.arrow")
    for source in (file, str(file.parent)):
        found = open_images(source, streaming=streaming)
        for _ in range(2):
            pairs = list(found)
            assert [caption for _, caption in pairs] == ["0", "2"]
            assert found.skipped == {"unreadable picture": 1}
        assert np.array_equal(np.asarray(pairs[1][0]), np.asarray(noise(2)))
        assert found.count == (None if streaming else 3)
    assert found  # though its length may not be known


def test_streams_have_no_length(tmp_path: Path) -> None:
    as_struct(tmp_path).to_parquet(str(tmp_path / "a.parquet"))
    with pytest.raises(TypeError, match="streamed"):
        len(open_images(tmp_path / "a.parquet", streaming=True))


def test_other_columns_are_not_decoded(tmp_path: Path) -> None:
    table = as_pictures(tmp_path).rename_columns({"image": "other", "text": "caption"})
    table.add_column("picture", as_bytes(tmp_path)["image"][:]).to_parquet(str(tmp_path / "a.parquet"))
    found = open_images(tmp_path / "a.parquet", image_column="picture", caption_column="caption")
    assert [caption for _, caption in found] == ["0", "2"]


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


def test_splits_of_a_folder_of_pictures(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("test", 1)):
        folder_of(tmp_path / "set" / split, good(count))
    assert open_images(tmp_path / "set").count == 3
    assert open_images(tmp_path / "set", split="test").count == 1
    with pytest.raises(DataError, match="split 'test'"):
        open_images(tmp_path / "set" / "train", split="test")


def test_missing_columns_are_named_with_those_there_are(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "set", good(1))
    with pytest.raises(DataError, match=r"'caption'.*got file_name, text; choose caption_column"):
        open_images(folder, caption_column="caption")
    with pytest.raises(DataError, match=r"'photo'.*got file_name, text; choose image_column"):
        open_images(folder, image_column="photo")
    as_struct(tmp_path).to_parquet(str(tmp_path / "a.parquet"))
    for streaming in (False, True):
        with pytest.raises(DataError, match=r"'caption'.*got image, text; choose caption_column"):
            open_images(tmp_path / "a.parquet", caption_column="caption", streaming=streaming)


def test_what_cannot_be_opened_is_said(tmp_path: Path) -> None:
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


def test_hub_names_go_to_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[tuple[Any, ...], Row]] = []

    def load(*args: Any, **options: Any) -> datasets.Dataset:
        asked.append((args, options))
        if args[0] == "nobody/nothing":
            raise ConnectionError("no such\ndata set")
        return as_pictures(tmp_path)

    monkeypatch.setattr(datasets, "load_dataset", load)
    found = open_images("someone/art", split="test", revision="abc")
    assert asked == [(("someone/art",), {"split": "test", "revision": "abc", "streaming": False})]
    assert [caption for _, caption in found] == ["0", "2"]
    assert found.fingerprint == open_images("someone/art", split="test", revision="abc").fingerprint
    assert found.fingerprint != open_images("someone/art", split="test", revision="abd").fingerprint
    with pytest.raises(DataError, match="'nobody/nothing': ConnectionError: no such data set"):
        open_images("nobody/nothing")


def test_pictures_are_fetched_from_the_hub_and_from_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fetch(path: str, mode: str) -> io.BytesIO:
        asked.append(path)
        return io.BytesIO(coded(noise(0)))

    monkeypatch.setattr(images.fsspec, "open", fetch)
    paths = [
        "hf://datasets/a/b/0.png",
        "zip://0.png::hf://datasets/a/b.zip",
        "http://localhost/0.png",
        "memory://0.png",
    ]
    found = mu.data.ImageCaptions([{"image": {"bytes": None, "path": p}, "text": "x"} for p in paths], "some")
    assert len(list(found)) == 2
    assert asked == paths[:2]
    assert found.skipped == {"unreadable picture": 2}


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_struct(tmp_path).to_parquet(str(tmp_path / "a.parquet"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"expected datasets.*pip install 'maskunet\[train\]'"):
        open_images(tmp_path / "a.parquet")
    assert len(list(open_images(folder_of(tmp_path / "set", good(2))))) == 2


def test_a_source_that_breaks_off_is_said() -> None:
    class Broken:
        def __iter__(self) -> Any:
            yield {"image": coded(noise(0)), "text": "x"}
            raise OSError("gone")

    with pytest.raises(DataError, match="row 1 of some, got OSError: gone"):
        list(mu.data.ImageCaptions(Broken(), "some"))


def test_encoding_resizes_and_crops(tmp_path: Path, pipe: StableDiffusionPipeline) -> None:
    rows = [*good(2), ("wide.png", coded(noise(5, (50, 20))), "wide")]
    found = open_images(folder_of(tmp_path / "set", rows))
    data = encode_images(pipe, found, resolution=16, batch_size=2, progress=False)
    # 20 x 30 becomes 16 x 24, and 50 x 20 becomes 40 x 16: height, width, top, left, target height, target width.
    assert data.time_ids is not None
    assert data.time_ids.tolist() == [[30, 20, 4, 0, 16, 16]] * 2 + [[20, 50, 0, 12, 16, 16]]
    assert data.mean.shape == data.std.shape == (3, 4, 8, 8)
    wide = noise(5, (50, 20)).resize((40, 16), Image.Resampling.LANCZOS).crop((12, 0, 28, 16))
    for row, picture in ((0, found_crop(noise(0))), (1, found_crop(noise(1))), (2, wide)):
        mean, std = encode_pictures(pipe.vae, tensor(picture))
        torch.testing.assert_close(data.mean[row].float(), mean[0].float(), atol=0.02, rtol=0.02)
        torch.testing.assert_close(data.std[row].float(), std[0].float(), atol=0.02, rtol=0.02)
    assert data.captions == ("number 0", "number 1", "wide")


def test_pictures_of_extreme_shape_are_not_resized_whole(tmp_path: Path, pipe: StableDiffusionPipeline) -> None:
    found = open_images(folder_of(tmp_path / "set", good(1, (40000, 8))))
    data = encode_images(pipe, found, resolution=64, progress=False)
    assert data.time_ids is not None
    assert data.time_ids.tolist() == [[8, 40000, 0, 159968, 64, 64]]


def test_random_crops_and_flips_follow_the_seed(tmp_path: Path, pipe: StableDiffusionPipeline) -> None:
    folder = folder_of(tmp_path / "set", good(12, (20, 60)))

    def encode(seed: int, crop: bool = True, flip: bool = False, **options: Any) -> CachedLatents:
        settings = {"center_crop": not crop, "random_flip": flip, "seed": seed, "resolution": 16, "progress": False}
        return encode_images(pipe, open_images(folder), **settings | options)

    def tops(data: CachedLatents) -> list[float]:
        assert data.time_ids is not None
        return data.time_ids[:, 2].tolist()

    first, flipped = encode(0), encode(0, flip=True)
    assert tops(first) == tops(encode(0, batch_size=5)) == tops(flipped)
    assert tops(first) != tops(encode(1))
    assert len(set(tops(first))) > 5
    assert 0 <= min(tops(first)) <= max(tops(first)) <= 32
    assert torch.equal(flipped.mean, encode(0, flip=True).mean)
    for seed, data in ((0, encode(0, crop=False, flip=True)), (1, encode(1, crop=False, flip=True))):
        plain = encode(seed, crop=False)
        same = [torch.equal(a, b) for a, b in zip(plain.mean, data.mean, strict=True)]
        assert 0 < sum(same) < 12, "some are mirrored, others are not"
        assert tops(plain) == tops(data)
    # A row keeps its crop when others before it are left out.
    (folder / "0.png").unlink()
    assert tops(encode(0)) == tops(first)[1:]


def test_mirrored_crops_are_mirrored_pictures(tmp_path: Path) -> None:
    wide = noise(0, (40, 16))
    for seed in range(20):
        crop, (top, left) = encoding._crop(wide, 16, False, True, seed)
        plain, place = encoding._crop(wide, 16, False, False, seed)
        assert (top, left) == place
        whole = wide.crop((left, 0, left + 16, 16))
        mirrored = wide.transpose(Image.Transpose.FLIP_LEFT_RIGHT).crop((left, 0, left + 16, 16))
        assert np.array_equal(np.asarray(plain), np.asarray(whole))
        assert any(np.array_equal(np.asarray(crop), np.asarray(x)) for x in (whole, mirrored))


def test_settings_out_of_range_are_refused(tmp_path: Path, pipe: StableDiffusionPipeline) -> None:
    found = open_images(folder_of(tmp_path / "set", good(1)))
    for resolution in (15, 0, -2):
        with pytest.raises(DataError, match=f"multiple of 2.*got {resolution}"):
            encode_images(pipe, found, resolution=resolution)
    for options in ({"batch_size": 0}, {"max_samples": 0}):
        with pytest.raises(DataError, match="at least 1"):
            encode_images(pipe, found, resolution=16, **options)
    with pytest.raises(DataError, match="cache_dir that can be written"):
        encode_images(pipe, found, resolution=16, cache_dir=tmp_path / "set" / "0.png")


def test_what_was_left_out_is_logged(
    tmp_path: Path, pipe: StableDiffusionPipeline, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [*good(2), ("x.png", b"x", "x"), ("y.png", b"y", "y"), ("z.png", coded(noise(0)), "")]
    found = open_images(folder_of(tmp_path / "set", rows))
    for _ in range(2):  # from the cache too
        caplog.clear()
        encode_images(pipe, found, resolution=16, progress=False, cache_dir=tmp_path / "cache")
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert "skipped 3 of 5 rows" in record.message
        assert "2 unreadable picture, 1 empty caption" in record.message
        assert found.skipped == {"unreadable picture": 2, "empty caption": 1}


def test_nothing_usable_is_an_error_with_counts(tmp_path: Path, pipe: StableDiffusionPipeline) -> None:
    rows = [("x.png", b"x", "x"), ("y.png", None, "y"), ("z.png", coded(noise(0)), "")]
    found = open_images(folder_of(tmp_path / "set", rows))
    with pytest.raises(DataError, match="all 3 rows were skipped: 2 unreadable picture, 1 empty caption"):
        encode_images(pipe, found, resolution=16, progress=False, cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_samples_can_be_limited(tmp_path: Path, pipe: StableDiffusionPipeline) -> None:
    rows = good(6)
    rows[1] = ("1.png", b"x", "x")
    found = open_images(folder_of(tmp_path / "set", rows))
    data = encode_images(pipe, found, resolution=16, batch_size=2, max_samples=3, progress=False)
    assert data.captions == ("number 0", "number 2", "number 3")


def same(a: CachedLatents, b: CachedLatents) -> bool:
    assert a.time_ids is not None
    assert b.time_ids is not None
    pairs = ((a.mean, b.mean), (a.std, b.std), (a.time_ids, b.time_ids))
    return (a.captions, a.source) == (b.captions, b.source) and all(
        x.dtype == y.dtype and torch.equal(x, y) for x, y in pairs
    )


def test_the_cache_is_used_and_rebuilt(
    tmp_path: Path, pipe: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows = good(5)
    rows[2] = ("2.png", rows[2][1], "größer \N{SNOWMAN} \ud800")
    folder, cache = folder_of(tmp_path / "set", rows), tmp_path / "cache"
    opened: Counter[str] = Counter()
    decode = images._picture

    def counted(*args: Any) -> Image.Image:
        opened["pictures"] += 1
        return decode(*args)

    monkeypatch.setattr(images, "_picture", counted)

    def encode(**options: Any) -> CachedLatents:
        opened.clear()
        return encode_images(
            pipe, open_images(folder), progress=False, cache_dir=cache, **{"resolution": 16} | options
        )

    first = encode()
    (file,) = cache.iterdir()
    assert file.suffix == ".safetensors"
    assert opened["pictures"] == 5
    assert first.source == str(folder)
    assert first.captions[2] == "größer \N{SNOWMAN} ?"
    assert same(first, encode())
    assert not opened
    for damage in (file.read_bytes()[:-100], b"", b"x" * 1000):
        file.write_bytes(damage)
        caplog.clear()
        assert same(first, encode())
        assert opened["pictures"] == 5
        assert "encoding again" in caplog.text
        assert same(first, encode())
        assert not opened
    for options in (
        {"seed": 1},
        {"max_samples": 3},
        {"resolution": 18},
        {"center_crop": False},
        {"random_flip": True},
    ):
        encode(**options)
        assert opened, options
    assert len(list(cache.iterdir())) == 6


def test_the_cache_knows_data_and_autoencoder(tmp_path: Path, pipe: StableDiffusionPipeline) -> None:
    folder, cache = folder_of(tmp_path / "set", good(2)), tmp_path / "cache"

    def files() -> int:
        encode_images(pipe, open_images(folder), resolution=16, progress=False, cache_dir=cache)
        return len(list(cache.iterdir()))

    assert files() == 1
    os.utime(folder / "1.png", (1, 1))
    assert files() == 2
    (folder / "metadata.jsonl").write_text((folder / "metadata.jsonl").read_text().replace("number 0", "none"))
    assert files() == 3
    weight = pipe.vae.encoder.conv_in.weight.data
    before = weight.clone()
    try:
        weight[0, 0, 0, 0] += 1
        assert files() == 4
    finally:
        weight.copy_(before)  # the tests share the autoencoder
    assert files() == 4
