"""The file of encoded images, and an encoding that is stopped and goes on."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from image_folders import encoded, image_folder, noise_image, readable
from PIL import Image
from safetensors.torch import save_file

from maskunet.data import CachedLatents, cache, encode_images, encoding, images, open_images

OPTIONS: dict[str, Any] = {"resolution": 16, "batch_size": 2, "progress": False}


def same(a: CachedLatents, b: CachedLatents) -> bool:
    assert a.time_ids is not None
    assert b.time_ids is not None
    pairs = ((a.mean, b.mean), (a.std, b.std), (a.time_ids, b.time_ids))
    return (a.captions, a.source) == (b.captions, b.source) and all(
        x.dtype == y.dtype and torch.equal(x, y) for x, y in pairs
    )


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "_PART_BATCHES", 2)


class Decoded(list[str]):
    """Names of the images that were decoded; the one of `stop_at` raises KeyboardInterrupt."""

    stop_at: str | None = None


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Decoded:
    names = Decoded()
    decode = images.decode_image

    def noted(value: Any, folder: Path) -> Image.Image:
        if value == names.stop_at:
            raise KeyboardInterrupt
        names.append(value)
        return decode(value, folder)

    monkeypatch.setattr(images, "decode_image", noted)
    return names


def stop(pipe: Any, folder: Path, store: Path, decoded: Decoded, name: str, **options: Any) -> list[Path]:
    """Stop an encoding at an image; return the files of its parts."""
    decoded.stop_at = name
    with pytest.raises(KeyboardInterrupt):
        encode_images(pipe, open_images(folder), cache_dir=store, **OPTIONS | options)
    decoded.stop_at = None
    decoded.clear()
    return sorted(store.glob("*.parts/*.safetensors"))


def test_captions_of_more_than_100_mb_are_kept(tmp_path: Path) -> None:
    captions = tuple(letter * 40_000_000 for letter in "aöc")  # 160 MB; a header may hold 100
    values = torch.arange(12.0).view(3, 1, 2, 2)
    data = CachedLatents(values, values + 1, captions, torch.arange(18.0).view(3, 6))
    cache.write_cache(tmp_path / "a.safetensors", data, Counter({"empty caption": 2}))
    loaded = cache.read_cache(tmp_path / "a.safetensors")
    assert loaded is not None
    assert same(loaded[0], data)
    assert loaded[1] == {"empty caption": 2}


def test_files_with_captions_in_their_header_still_load(tmp_path: Path, pipe: StableDiffusionPipeline) -> None:
    rows = [*readable(3), ("x.png", b"x", "x")]
    folder, store = image_folder(tmp_path / "set", rows), tmp_path / "cache"
    data = encode_images(pipe, open_images(folder), cache_dir=store, **OPTIONS)
    # The name that earlier versions gave it.
    settings = (open_images(folder).fingerprint, 16, True, False, None, 0, encoding._hash_vae(pipe))
    file = store / f"{hashlib.sha256(repr(settings).encode()).hexdigest()[:32]}.safetensors"
    assert list(store.iterdir()) == [file]
    assert data.time_ids is not None
    tensors = {"mean": data.mean + 1, "std": data.std, "time_ids": data.time_ids}
    captions = ("größer \N{SNOWMAN}", "b", "c")
    save_file(tensors, file, {"captions": json.dumps(captions), "skipped": '{"unreadable image": 1}'})
    dataset = open_images(folder)
    old = encode_images(pipe, dataset, cache_dir=store, **OPTIONS)
    assert old.captions == captions
    assert torch.equal(old.mean, data.mean + 1)
    assert dataset.skipped == {"unreadable image": 1}


def rows_with_gaps() -> list[tuple[str, bytes | None, object]]:
    """Twenty rows of alternating shape, of which 3, 7 and 19 cannot be used."""
    rows = [(f"{i}.png", encoded(noise_image(i, (20, 30) if i % 2 else (60, 20))), f"number {i}") for i in range(20)]
    rows[3], rows[7], rows[19] = ("3.png", b"x", "x"), ("7.png", rows[7][1], ""), ("19.png", None, "gone")
    return rows


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"center_crop": False, "random_flip": True, "seed": 3},
        {"max_samples": 13},
        {"max_samples": 12},
        {"resolution": 32, "aspect_ratio_buckets": True, "random_flip": True},
    ],
)
@pytest.mark.parametrize("stopped_at", [2, 6, 13, 18])
def test_a_stopped_encoding_goes_on_where_it_was(
    tmp_path: Path, pipe: StableDiffusionPipeline, decoded: Decoded, options: dict[str, Any], stopped_at: int
) -> None:
    folder, store = image_folder(tmp_path / "set", rows_with_gaps()), tmp_path / "cache"
    expected_rows, rows = open_images(folder), open_images(folder)
    expected = encode_images(pipe, expected_rows, **OPTIONS | options)
    if "max_samples" in options:
        stopped_at = min(stopped_at, options["max_samples"] + 1)  # two of the rows before cannot be used
    parts = stop(pipe, folder, store, decoded, f"{stopped_at}.png", **options)
    # Parts of four samples end with rows 4, 9, 13 and 17.
    done, first_row = {2: (0, 0), 6: (1, 5), 13: (2, 10), 14: (3, 14), 18: (4, 18)}[stopped_at]
    assert len(parts) == done
    data = encode_images(pipe, rows, cache_dir=store, **OPTIONS | options)
    assert same(data, expected)
    assert rows.skipped == expected_rows.skipped
    assert decoded[0] == f"{first_row}.png"
    assert [file.suffix for file in store.iterdir()] == [".safetensors"]
    decoded.clear()
    assert same(encode_images(pipe, open_images(folder), cache_dir=store, **OPTIONS | options), expected)
    assert not decoded


@pytest.mark.parametrize("options", [{}, {"max_samples": 8}])
def test_a_stop_before_the_result_is_written_loses_no_part(
    tmp_path: Path,
    pipe: StableDiffusionPipeline,
    decoded: Decoded,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
) -> None:
    rows = [*readable(8), ("8.png", b"x", "x")]
    if options:
        rows.append(("9.png", rows[0][1], "behind"))
    folder, store = image_folder(tmp_path / "set", rows), tmp_path / "cache"
    expected_rows, images_again = open_images(folder), open_images(folder)
    expected = encode_images(pipe, expected_rows, **OPTIONS | options)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(encoding, "write_cache", interrupt)
        with pytest.raises(KeyboardInterrupt):
            encode_images(pipe, open_images(folder), cache_dir=store, **OPTIONS | options)
    decoded.clear()
    assert same(encode_images(pipe, images_again, cache_dir=store, **OPTIONS | options), expected)
    assert images_again.skipped == expected_rows.skipped
    assert decoded == ([] if options else ["8.png"])


def test_without_a_stop_parts_and_one_piece_are_the_same(tmp_path: Path, pipe: StableDiffusionPipeline) -> None:
    folder = image_folder(tmp_path / "set", readable(9))
    cached = encode_images(pipe, open_images(folder), cache_dir=tmp_path / "cache", **OPTIONS)
    assert same(cached, encode_images(pipe, open_images(folder), **OPTIONS))


def test_damaged_and_half_written_parts_are_not_read(
    tmp_path: Path, pipe: StableDiffusionPipeline, decoded: Decoded, caplog: pytest.LogCaptureFixture
) -> None:
    folder, store = image_folder(tmp_path / "set", rows_with_gaps()), tmp_path / "cache"
    expected = encode_images(pipe, open_images(folder), **OPTIONS)
    for damage in (b"", b"x" * 99, None, "other"):
        parts = stop(pipe, folder, store, decoded, "18.png")
        assert len(parts) == 4
        if damage is None:
            parts[1].unlink()
        elif damage == "other":
            parts[1].write_bytes(parts[2].read_bytes())
        else:
            parts[1].write_bytes(parts[1].read_bytes()[:-9] if damage == b"" else damage)  # type: ignore[arg-type]
        (parts[0].parent / "00001.safetensors.77.part").write_bytes(b"half")
        caplog.clear()
        assert same(encode_images(pipe, open_images(folder), cache_dir=store, **OPTIONS), expected)
        assert decoded[0] == "5.png"  # the first four usable rows are 0, 1, 2 and 4
        assert (damage is None) != ("encoding again from there" in caplog.text)
        (file,) = store.iterdir()
        file.unlink()


@pytest.mark.parametrize(
    ("options", "name"),
    [({"seed": 1}, "seed"), ({"resolution": 18}, "resolution"), ({"random_flip": True}, "random_flip")],
)
def test_other_settings_start_again_and_say_so(
    tmp_path: Path,
    pipe: StableDiffusionPipeline,
    decoded: Decoded,
    caplog: pytest.LogCaptureFixture,
    options: dict[str, Any],
    name: str,
) -> None:
    folder, store = image_folder(tmp_path / "set", readable(12)), tmp_path / "cache"
    (part, *_) = stop(pipe, folder, store, decoded, "9.png")
    data = encode_images(pipe, open_images(folder), cache_dir=store, **OPTIONS | options)
    assert decoded[0] == "0.png"
    assert same(data, encode_images(pipe, open_images(folder), **OPTIONS | options))
    (record,) = caplog.records
    assert f"stopped in {part.parent} has another {name};" in record.message
    assert part.exists()
    # Other images are other work too.
    os.utime(folder / "5.png", (1, 1))
    caplog.clear()
    decoded.clear()
    encode_images(pipe, open_images(folder), cache_dir=store, **OPTIONS)
    assert decoded[0] == "0.png"
    assert "has another data set;" in caplog.text


def test_another_process_waits_and_takes_the_result(
    tmp_path: Path, pipe: StableDiffusionPipeline, decoded: Decoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, store = image_folder(tmp_path / "set", readable(6)), tmp_path / "cache"
    has_begun, noted = threading.Event(), images.decode_image

    def slow(value: Any, root: Path) -> Image.Image:
        has_begun.set()
        time.sleep(0.05)
        return noted(value, root)

    monkeypatch.setattr(images, "decode_image", slow)
    results: list[CachedLatents] = []

    def encode() -> None:
        results.append(encode_images(pipe, open_images(folder), cache_dir=store, **OPTIONS))

    thread = threading.Thread(target=encode)
    thread.start()
    assert has_begun.wait(60)
    encode()
    thread.join()
    assert same(*results)
    assert len(decoded) == 6
    assert len(list(store.iterdir())) == 1


SCRIPT = """
import sys, time
from run_script import pipeline
from maskunet.data import encode_images, encoding, images, open_images
encoding._PART_BATCHES = 2
decode = images.decode_image
count = 0
def slow(value, folder):
    global count
    count += 1
    time.sleep(0.1 if "--slow" in sys.argv else 0)
    return decode(value, folder)
images.decode_image = slow
options = {"resolution": 16, "batch_size": 2, "center_crop": False, "progress": False}
encode_images(pipeline(), open_images(sys.argv[1]), cache_dir=sys.argv[2], **options)
print(count)
"""


def test_a_killed_encoding_goes_on(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "set", readable(40))

    def start(store: Path, *words: str) -> subprocess.Popen[bytes]:
        paths = [str(Path(__file__).parents[1] / "training"), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", SCRIPT, str(folder), str(store), *words]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)

    killed, uninterrupted = tmp_path / "killed", tmp_path / "uninterrupted"
    runs = [start(killed, "--slow"), start(uninterrupted)]
    deadline = time.monotonic() + 120
    while not list(killed.glob("*.parts/00001.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.01)
    runs[0].send_signal(signal.SIGKILL)
    runs[0].communicate()
    assert not list(killed.glob("*.safetensors"))
    (part,) = killed.glob("*.parts/00000.safetensors")
    (part.parent / "00002.safetensors.1.part").write_bytes(b"half")
    decoded = [int(run.communicate(timeout=120)[0]) for run in (start(killed), runs[1])]
    assert decoded[0] <= 32 < decoded[1] == 40
    (a,), (b,) = killed.iterdir(), uninterrupted.iterdir()
    assert a.name == b.name
    assert a.read_bytes() == b.read_bytes()
