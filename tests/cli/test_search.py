"""`maskunet search` from prompts to images and masks that `generate` takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from diffusers import AutoencoderTiny
from PIL import Image

Run = Callable[..., tuple[int, str, str]]


def test_search_then_generate(run: Run, tmp_path: Path) -> None:
    words = ["search", "--prompt", "a red circle", "--prompt", "a blue star", "--steps", 2, "--iterations", 1]
    code, out, err = run(*words, "--learning-rate", 1, "--device", "cpu", "--output", "found")
    assert code == 0, err
    assert out.count("reward") == 2
    assert "2 images in found" in out
    record = json.loads((tmp_path / "found" / "00001.json").read_text())
    assert (record["prompt"], record["seed"], record["rewards"]) == ("a blue star", 1, "shapes-matching")
    assert record["config"]["guidance_scale"] == 4.0
    assert len(record["history"]) == 4
    with Image.open(tmp_path / "found" / "base" / "00001.png") as image:
        assert image.size == (64, 64)
    masks = [
        "--masker",
        "found/masks/00001",
        "--prompt",
        "a blue star",
        "--seed",
        record["start_seed"],
        "--steps",
        2,
        "--guidance-scale",
        4,
    ]
    code, out, err = run("generate", *masks, "--device", "cpu", "--output", "again")
    assert code == 0, err
    first, again = (np.asarray(Image.open(tmp_path / p), np.int16) for p in ("found/00001.png", "again/00000.png"))
    assert abs(first - again).max() <= 3
    words_again = ["--prompt", "a green ring", "--steps", 2, "--device", "cpu", "--output", "merged"]
    code, out, err = run("generate", "--masker", "found", *words_again)  # all of the search, for another prompt
    assert code == 0, err
    assert "merged 2 schedules of found by majority" in out
    assert (tmp_path / "merged" / "00000.png").is_file()
    (tmp_path / "found" / "00000.json").unlink()
    code, out, err = run(*words, "--learning-rate", 1, "--device", "cpu", "--output", "found")
    assert out.count("reward") == 1  # the finished one is not made again
    assert (tmp_path / "found" / "00000.json").is_file()
    (tmp_path / "found" / "00001.png").unlink()
    code, out, err = run(*words, "--learning-rate", 1, "--device", "cpu", "--output", "found")
    assert out.count("reward") == 1  # a record whose image is gone is not a finished one
    code, out, _ = run("info", "found/masks/00001")
    assert code == 0
    assert "MaskSchedule" in out
    code, out, err = run("info", "found")
    assert code == 0, err
    assert "merged 2 schedules of found by majority" in out
    assert "MaskSchedule" in out
    assert "(mean over its timesteps)" in out


@pytest.mark.parametrize(
    ("changes", "differing"),
    [
        (["--learning-rate", 0.5], "config"),
        (["--seed", 3], "config, seed"),
        (["--reward", "shapes"], "reward_sources"),
    ],
)
def test_another_search_is_refused_before_it_begins(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: list[object], differing: str
) -> None:
    words = [
        "search",
        "--prompt",
        "a red circle",
        "--steps",
        1,
        "--iterations",
        0,
        "--candidates",
        1,
        "--device",
        "cpu",
    ]
    code, _, err = run(*words, "--output", "found")
    assert code == 0, err
    before = {path: path.read_bytes() for path in (tmp_path / "found").rglob("*") if path.is_file()}
    monkeypatch.setattr("maskunet.cli.search.open_pipeline", lambda *_, **__: pytest.fail("a model was loaded"))
    code, _, err = run(*words, *changes, "--output", "found")
    assert (code, err.count("\n")) == (2, 1)
    assert f"this very search, {differing} differ in 00000.json; choose another --output" in err
    assert {path: path.read_bytes() for path in (tmp_path / "found").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("text", ["{", "[]", "null", "\udcff"])
def test_a_broken_record_is_one_line(run: Run, tmp_path: Path, text: str) -> None:
    (tmp_path / "found").mkdir()
    (tmp_path / "found" / "00000.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    words = ["search", "--prompt", "a red circle", "--steps", 1, "--device", "cpu", "--output", "found"]
    code, _, err = run(*words)
    assert (code, err.count("\n")) == (2, 1)
    assert "expected a search's record in found/00000.json" in err


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder that root cannot write")
def test_a_folder_that_cannot_be_made_is_refused_before_the_search(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskunet.cli.search.open_pipeline", lambda *_, **__: pytest.fail("a model was loaded"))
    monkeypatch.setattr("maskunet.cli.search.open_reward", lambda *_, **__: pytest.fail("a reward was loaded"))
    code, _, err = run("search", "--prompt", "a red circle", "--output", "/proc/x")
    assert (code, err.count("\n")) == (2, 1)
    assert "expected a folder that can be written, got /proc/x" in err


def test_the_drafted_noise_is_printed_and_gives_the_image_again(run: Run, tmp_path: Path) -> None:
    words = ["search", "--prompt", "a red circle", "--steps", 2, "--iterations", 0, "--candidates", 3, "--seed", 2]
    words += ["--guidance-rescale", 0.5, "--height", 64, "--width", 128]
    code, out, err = run(*words, "--device", "cpu", "--output", "found")
    assert code == 0, err
    record = json.loads((tmp_path / "found" / "00000.json").read_text())
    start = record["start_seed"]
    assert record["seed"] == 2
    assert (f"from noise {start}" in out) == (start != 2)
    # Every setting of the image stands in its record.
    flags = {"num_inference_steps": "--steps"}
    names = ("num_inference_steps", "guidance_scale", "guidance_rescale", "negative_prompt", "height", "width")
    values = {flags.get(name, f"--{name.replace('_', '-')}"): record["config"][name] for name in names}
    settings = [word for flag, value in values.items() if value is not None for word in (flag, value)]
    assert settings == [
        "--steps",
        2,
        "--guidance-scale",
        4.0,
        "--guidance-rescale",
        0.5,
        "--height",
        64,
        "--width",
        128,
    ]
    code, _, err = run("generate", "--prompt", "a red circle", "--seed", start, *settings, "--output", "again")
    assert code == 0, err
    assert (tmp_path / "found" / "00000.png").read_bytes() == (tmp_path / "again" / "00000.png").read_bytes()


def test_preview_decoder(run: Run, tmp_path: Path) -> None:
    tiny = {"encoder_block_out_channels": (8, 8, 8, 8), "decoder_block_out_channels": (8, 8, 8, 8)}
    blocks = {"num_encoder_blocks": (1, 1, 1, 1), "num_decoder_blocks": (1, 1, 1, 1)}
    AutoencoderTiny(latent_channels=8, **tiny, **blocks).save_pretrained(tmp_path / "tiny")
    AutoencoderTiny(latent_channels=4, **tiny, **blocks).save_pretrained(tmp_path / "other")
    words = ["search", "--prompt", "a red circle", "--steps", 1, "--iterations", 1, "--device", "cpu"]
    code, _, err = run(*words, "--preview-decoder", "tiny")
    assert code == 0, err
    code, _, err = run(*words, "--preview-decoder", "other", "--output", "another")
    assert (code, "latent channels" in err) == (2, True)


def test_errors(run: Run, model: Path) -> None:
    code, _, err = run("search", "--prompt", "a", "--model", model, "--device", "cpu")
    assert (code, "--reward" in err) == (2, True)
    code, _, err = run("search", "--prompt", "a", "--reward", "best", "--device", "cpu")
    assert code == 2
    assert "image-reward" in err
    code, _, err = run("search", "--prompt", "a", "--preset", "best")
    assert (code, "preset" in err) == (2, True)
