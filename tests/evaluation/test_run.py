"""`mu.evaluate` and `score_images` on the bundled model; wrong arguments are refused before anything is generated."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import maskunet as mu
from maskunet.attaching import attachment_of
from maskunet.errors import MaskUNetError
from maskunet.evaluation import GenEval, evaluate, score_images
from maskunet.evaluation.detectors import JudgeDetector
from maskunet.maskers import FixedMasks, RandomMasks
from maskunet.searching import SearchConfig
from maskunet.shapes.drawing import draw
from maskunet.shapes.scenes import held_out_prompts, held_out_scenes
from tiny_checker import add_checker

QUICK: dict[str, Any] = {"limit": 2, "images_per_prompt": 1, "num_inference_steps": 1, "progress": False}
KEY = "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="module")
def shapes() -> Any:
    return mu.zoo.load("shapes")


def drawn(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
    scenes = {scene.caption: scene for scene in held_out_scenes(12)}
    return draw([scenes[p] for p in prompts])


def test_geneval_of_base_masker_search_and_syngen(shapes: Any, tmp_path: Path) -> None:
    counts: list[tuple[str, int]] = []
    options = QUICK | {
        "masker": "shapes-masker",
        "sides": "both,search,search+masker,syngen",
        "search_config": SearchConfig(candidates=1, iterations=1),
        "output_dir": tmp_path,
        "on_generated": lambda folder, count: counts.append((folder.name, count)),
    }
    report = evaluate(shapes, **options)
    assert counts == [(side, 2) for side in ("base", "masker", "search", "search+masker", "syngen")]
    assert attachment_of(shapes) is None
    assert "| masker - base | search - base | search+masker - base | syngen - base |" in report.to_markdown()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary == json.loads(json.dumps(report.to_dict()))
    assert (tmp_path / "summary.md").read_text() == report.to_markdown() + "\n"
    settings = summary["settings"]
    assert [settings[side]["masker"] for side in ("base", "masker", "search")] == [None, "shapes-masker", None]
    # The bundled model's own guidance, in the search too.
    assert settings["search"]["search"]["guidance_scale"] == settings["base"]["guidance_scale"] == 4.0
    assert settings["search"]["reward_sources"] == ["shapes-matching"]
    assert "search" not in settings["masker"]
    assert evaluate(shapes, **options).to_dict() == report.to_dict()
    assert [count for _, count in counts[5:]] == [0] * 5
    with pytest.raises(MaskUNetError, match="choose another folder"):
        evaluate(shapes, **options | {"search_config": "masks"})
    (tmp_path / "masker" / "results.jsonl").unlink()
    scored = score_images(tmp_path / "masker", detector="judge", progress=False)
    assert scored.scores is not None
    assert report.scores is not None
    assert scored.scores.values["images"].tolist() == report.scores.values["masker"].tolist()
    assert not (tmp_path / "masker" / "results.jsonl").exists()


def test_every_side_asks_the_safety_checker_and_black_images_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = mu.zoo.load("shapes")
    # Without guided steps and masks, all sides are the base.
    options = QUICK | {"sides": "base,masker,search,syngen", "search_config": SearchConfig(candidates=1, iterations=0)}
    mu.attach(pipe, FixedMasks({KEY: torch.ones_like(pipe.unet.get_submodule(KEY).weight)}))
    plain = evaluate(pipe, **options, output_dir=tmp_path / "plain")
    assert plain.settings["black_images"] == {side: [0, 2] for side in ("base", "masker", "search", "syngen")}
    assert "black" not in plain.to_markdown()
    assert not caplog.messages

    def images(folder: str, side: str) -> list[Tensor]:
        return [
            torch.from_numpy(np.array(Image.open(tmp_path / folder / side / f"0000{i}" / "samples" / "0000.png")))
            for i in range(2)
        ]

    flagged, passed = (image.permute(2, 0, 1) / 255 for image in images("plain", "base"))
    add_checker(pipe, flagged, passed)
    report = evaluate(pipe, **options, output_dir=tmp_path / "checked")
    assert report.settings["black_images"] == {side: [1, 2] for side in ("base", "masker", "search", "syngen")}
    for side in ("base", "masker", "search", "syngen"):
        first, second = images("checked", side)
        assert int(first.max()) == 0
        assert torch.equal(second, images("plain", side)[1])
        note = next(line for line in report.to_markdown().splitlines() if f"images of {side} " in line)
        assert note.startswith(f"1 of 2 images of {side} are black")
        assert "pipe.safety_checker = None" in note
        assert note in caplog.messages
    again = evaluate(pipe, **options, output_dir=tmp_path / "checked")  # images of an earlier run count, too
    assert again.to_dict() == report.to_dict()
    scored = score_images(tmp_path / "checked" / "search", detector="judge", progress=False)
    assert scored.settings["black_images"] == {"images": [1, 2]}


def test_an_attached_masker_is_a_side_and_is_told_apart(shapes: Any, tmp_path: Path) -> None:
    try:
        for seed in (0, 1):
            attachment = mu.attach(shapes, RandomMasks.for_unet(shapes.unet, density=0.5, seed=seed))
            if seed == 0:
                report = evaluate(shapes, output_dir=tmp_path, **QUICK)
                assert list(report.to_dict()["settings"]) == ["base", "masker"]
            else:
                with pytest.raises(MaskUNetError, match="masker differ"):
                    evaluate(shapes, output_dir=tmp_path, **QUICK)
            assert attachment_of(shapes) is attachment
        mu.attach(shapes, RandomMasks.for_unet(shapes.unet, density=0.5, seed=0), strength=0.5)
        with pytest.raises(MaskUNetError, match="masker differ"):
            evaluate(shapes, output_dir=tmp_path, **QUICK)
        with mu.disabled(shapes), pytest.raises(MaskUNetError, match="disabled is active"):
            evaluate(shapes, output_dir=tmp_path, **QUICK)
    finally:
        mu.detach(shapes)


def test_sides_and_prompts_of_ones_own() -> None:
    """Without a folder nothing is kept; without names of sides no pipeline is needed."""
    metadata = [prompt.metadata() for prompt in held_out_prompts(3)]
    sides = {"blank": lambda prompts, seeds: torch.full((len(prompts), 3, 64, 64), 0.5), "drawn": drawn}
    options: dict[str, Any] = {"sides": sides, "progress": False}
    report = evaluate(None, prompts=metadata, detector="judge", images_per_prompt=2, **options)
    assert report.scores is not None
    assert report.scores.gain("drawn", "blank").value == 1
    benchmark = GenEval(metadata, JudgeDetector(), images_per_prompt=2)
    assert evaluate(None, benchmark, **options).to_markdown() == report.to_markdown()


def test_another_process_generates_and_reports_nothing(
    shapes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    report = evaluate(shapes, output_dir=tmp_path, detector="no/network", **QUICK)
    assert report.scores is None
    assert report.to_markdown() == ""
    assert [f.parent.parent.name for f in tmp_path.rglob("*.png")] == ["00001"]
    assert not list(tmp_path.glob("summary.*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"benchmark": "mmlu"}, "geneval, t2i-compbench"),
        ({"benchmark": GenEval}, "got the class GenEval"),
        ({"benchmark": 3}, "got int"),
        ({"benchmark": GenEval([]), "images_per_prompt": 2}, "expected no images_per_prompt with a Benchmark"),
        ({"pipe": None}, "expected a Stable Diffusion pipeline to evaluate, got None"),
        ({"pipe": "shapes"}, "expected a Stable Diffusion pipeline to evaluate, got str"),
        ({"sides": "best"}, "base, masker, search, search.masker"),
        ({"sides": 3}, "names of sides"),
        ({"sides": {"base": 3}}, "got int for 'base'"),
        ({"sides": {"base": drawn}, "masker": "shapes-masker"}, "expected no masker with sides by name"),
        ({"sides": "masker"}, "expected a masker for the sides masker"),
        ({"masker": 3}, "expected a masker, its folder or a hub id, got int"),
        ({"masker": "nowhere"}, "nowhere"),
        ({"reward": "shapes"}, "only with the sides search"),
        ({"search_config": SearchConfig()}, "only with the sides search"),
        ({"sides": "search", "search_config": 3}, "expected a SearchConfig or a preset's name, got int"),
        ({"sides": "search", "search_config": "best"}, "expected a preset"),
        ({"sides": "search", "reward": 3}, "expected a reward"),
        ({"sides": "search", "reward": "beauty"}, "expected a reward among"),
        ({"num_inference_steps": 0}, "num_inference_steps to be an integer >= 1"),
        ({"guidance_scale": float("nan")}, "guidance_scale to be a finite number"),
        ({"batch_size": 0}, "batch_size"),
        ({"vqa": "x/y"}, "expected no vqa with geneval"),
        ({"clip": "x/y"}, "expected no clip with the judge"),
        ({"prompts": ["a red circle"]}, "'tag' and 'prompt' are required"),
        ({"prompts": "nowhere.jsonl"}, "could not read nowhere.jsonl"),
        ({"benchmark": "t2i-compbench"}, "color_val.txt"),
        ({"benchmark": "t2i-compbench", "prompts": ["a"]}, "prompts by category, got list"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(
    shapes: Any, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(MaskUNetError, match=message) as caught:
        evaluate(**{"pipe": shapes, "output_dir": tmp_path / "out"} | options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert attachment_of(shapes) is None


def test_another_model_needs_prompts_and_a_reward(pipe: Any) -> None:
    with pytest.raises(MaskUNetError, match=r"evaluation_metadata\.jsonl; only the bundled model"):
        evaluate(pipe)
    with pytest.raises(MaskUNetError, match=r"expected a reward .--reward. for the side search"):
        evaluate(pipe, sides="search")
