"""GenEval's folders and results, with the judge of the shapes world."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor

import maskunet as mu
from maskunet.errors import DataError
from maskunet.evaluation import GenEval, run_benchmark
from maskunet.evaluation.detectors import JudgeDetector
from maskunet.evaluation.geneval import read_metadata
from maskunet.images import to_pil
from maskunet.metrics.geneval_rules import Detection
from maskunet.sampling import pipeline_side
from maskunet.shapes.drawing import draw
from maskunet.shapes.scenes import held_out_prompts, held_out_scenes

PROMPTS = held_out_prompts(12)
METADATA = [p.metadata() for p in PROMPTS]


def drawn(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
    """What the prompts require, drawn; and so right."""
    scenes = {scene.caption: scene for scene in held_out_scenes(12)}
    return draw([scenes[p] for p in prompts])


def blank(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
    return torch.full((len(prompts), 3, 64, 64), 0.5)


def test_right_and_wrong_sides_in_genevals_layout(tmp_path: Path) -> None:
    benchmark = GenEval(METADATA, JudgeDetector(), images_per_prompt=2)
    messages: list[str] = []
    sides = {"base": blank, "masker": drawn}
    scores = run_benchmark(
        benchmark,
        sides,
        tmp_path,
        settings={},
        progress=False,
        on_generated=lambda folder, count: messages.append(f"{count} {folder}"),
    )
    assert scores is not None
    assert scores.estimate("base").value == 0
    assert scores.estimate("masker").value == 1
    assert scores.gain("masker", "base").value == 1
    assert messages[0] == f"24 {tmp_path / 'base'}"
    folder = tmp_path / "masker" / "00003"
    assert json.loads((folder / "metadata.jsonl").read_text()) == METADATA[3]
    assert sorted(f.name for f in (folder / "samples").iterdir()) == ["0000.png", "0001.png"]
    lines = [json.loads(line) for line in (tmp_path / "base" / "results.jsonl").read_text().splitlines()]
    assert len(lines) == 24
    assert list(lines[0]) == ["filename", "tag", "prompt", "correct", "reason", "metadata", "details"]
    assert lines[0]["filename"].endswith("base/00000/samples/0000.png")
    assert json.loads(lines[2]["metadata"]) == METADATA[1]
    assert lines[0]["reason"].endswith("found 0")
    right = json.loads((tmp_path / "masker" / "results.jsonl").read_text().splitlines()[0])
    assert right["correct"] is True
    ((box,),) = json.loads(right["details"]).values()
    assert len(box) == 5
    again = run_benchmark(
        benchmark,
        sides,
        tmp_path,
        settings={},
        progress=False,
        on_generated=lambda folder, count: messages.append(f"{count} {folder}"),
    )
    assert messages[-1].startswith("0 ")
    assert again is not None
    assert again.to_dict() == scores.to_dict()


def test_processes_and_noise(pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    """Two processes generate the images of one; sides share their noise."""
    mu.attach(pipe, mu.MaskGenerator.for_unet(pipe.unet, mu.MaskGeneratorConfig(initial_logit=9.0), seed=0))
    options: dict[str, Any] = {"num_inference_steps": 2}
    sides = {"base": pipeline_side(pipe, masks=False, **options), "masker": pipeline_side(pipe, **options)}
    letters = [m | {"prompt": "a b"} for m in METADATA[:3]]
    benchmark = GenEval(letters, JudgeDetector(), images_per_prompt=2, seed=3)
    run = {"progress": False, "batch_size": 4}
    assert (
        run_benchmark(GenEval(letters, images_per_prompt=2, seed=3), sides, tmp_path / "two", rank=1, world=2, **run)
        is None
    )
    assert run_benchmark(benchmark, sides, tmp_path / "two", rank=0, world=2, **run) is not None
    run_benchmark(benchmark, sides, tmp_path / "one", **run)

    def images(folder: Path) -> list[bytes]:
        return [Image.open(s.file).tobytes() for s in GenEval([]).find_images(folder)]

    assert images(tmp_path / "two" / "base") == images(tmp_path / "one" / "base")
    base, masked = (images(tmp_path / "one" / side) for side in sides)
    assert len(set(base)) == 6
    worst = max(abs(a - b) for x, y in zip(base, masked, strict=True) for a, b in zip(x, y, strict=True))
    assert worst <= 1


def test_a_folder_of_the_original_script(tmp_path: Path) -> None:
    """The original script numbers images with five digits, writes a grid, and may have stopped early."""
    images = to_pil(drawn([p.prompt for p in PROMPTS], []))
    for i, (entry, image) in enumerate(zip(METADATA, images, strict=True)):
        folder = tmp_path / "images" / f"{i:05d}"
        (folder / "samples").mkdir(parents=True)
        (folder / "metadata.jsonl").write_text(json.dumps(entry))
        image.save(folder / "grid.png")
        for k in range(1 if i else 3):
            image.save(folder / "samples" / f"{k:05d}.png")
    (tmp_path / "images" / "notes").mkdir()
    scores = GenEval([], JudgeDetector()).score(tmp_path / "images", tmp_path / "out", progress=False)
    assert [s.value for s in scores] == [1.0] * 14
    assert len((tmp_path / "out" / "results.jsonl").read_text().splitlines()) == 14


def test_your_own_detector(tmp_path: Path) -> None:
    class Two:
        names, palette = {"dog"}, {"red"}

        def __call__(self, image: Image.Image) -> list[Detection]:
            return [Detection("dog", None, 0.8, (0, 0, 4, 4))] * 2

        def colours(self, image: Image.Image, objects: Sequence[Detection]) -> list[str]:
            return ["red"] * len(objects)

    include = [{"class": "dog", "count": 2, "color": "red"}]
    entries = [{"tag": t, "include": include, "prompt": "two red dogs"} for t in ("colors", "counting")]
    scores = run_benchmark(GenEval(entries, Two(), images_per_prompt=1), {"base": blank}, tmp_path, progress=False)
    assert scores is not None
    assert (scores.estimate("base", "colors").value, scores.estimate("base", "counting").value) == (1, 0)
    with pytest.raises(DataError, match=r"expected classes that Two knows \(dog\), the prompts require .*circle"):
        GenEval(METADATA, Two())
    with pytest.raises(DataError, match=r"expected colours .* the prompts require brown"):
        GenEval([{"tag": "colors", "include": [{"class": "dog", "count": 1, "color": "brown"}], "prompt": ""}], Two())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has none"),
        ("{", "could not read"),
        ('{"tag": "colors"}', "'tag' and 'prompt'"),
        ('{"tag": "colors", "prompt": "a"}', "'include' or 'exclude'"),
        ('{"tag": "colors", "prompt": "a", "include": [{"class": "dog"}]}', "line 1 .*'count'"),
        (
            '{"tag": "position", "prompt": "a", "include": [{"class": "dog", "count": 1, "position": ["above", 0]}]}',
            "earlier requirement",
        ),
    ],
)
def test_bad_metadata(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "metadata.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        read_metadata(tmp_path / "metadata.jsonl")


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="GenEval's folders"):
        GenEval([]).find_images(tmp_path)
    with pytest.raises(DataError, match="expected a detector"):
        GenEval(METADATA).score(tmp_path, tmp_path)
    with pytest.raises(DataError, match="at least one side"):
        run_benchmark(GenEval(METADATA), {}, tmp_path)
    GenEval(METADATA).jobs(tmp_path)
    with pytest.raises(DataError, match="or to hold these prompts"):
        GenEval(METADATA[1:]).jobs(tmp_path)
    (tmp_path / "00000" / "samples" / "0000.png").write_text("no image")
    with pytest.raises(DataError, match="expected an image"):
        GenEval(METADATA, JudgeDetector()).score(tmp_path, tmp_path, progress=False)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_broken_metadata_of_an_earlier_run_is_one_line(tmp_path: Path, text: str) -> None:
    benchmark = GenEval(METADATA[:1], JudgeDetector(), images_per_prompt=1)
    benchmark.jobs(tmp_path)
    (tmp_path / "00000" / "metadata.jsonl").write_text(text)
    with pytest.raises(DataError, match=r"a prompt's metadata in .*metadata\.jsonl") as error:
        benchmark.jobs(tmp_path)
    assert "\n" not in str(error.value)
