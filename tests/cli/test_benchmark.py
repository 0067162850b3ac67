"""`maskunet benchmark`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import maskunet as mu
from maskunet.evaluation import blip_vqa, t2i_compbench
from maskunet.searching.config import PRESETS

Run = Callable[..., tuple[int, str, str]]


def test_geneval_on_the_bundled_model(run: Run, tmp_path: Path) -> None:
    words = ["benchmark", "geneval", "--model", "shapes", "--limit", 6, "--steps", 2, "--output", "out"]
    words += ["--images-per-prompt", 1, "--device", "cpu"]
    code, out, err = run(*words)
    assert code == 0, err
    assert "6 images made, out/base" in out
    assert "| **overall** | 6 | 6 |" in out
    code, out, err = run(*words, "--masker", "shapes-masker")
    assert code == 0, err
    assert "0 images made, out/base" in out
    assert "6 images made, out/masker" in out
    assert "| masker - base |" in out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["settings"]["base"]["masker"] is None
    assert summary["settings"]["masker"]["guidance_scale"] == 4.0
    assert set(summary["scores"]["overall"]) == {"prompts", "images", "base", "masker", "masker - base"}
    assert (tmp_path / "out" / "summary.md").read_text() in out
    assert len((tmp_path / "out" / "masker" / "results.jsonl").read_text().splitlines()) == 6
    code, out, err = run("benchmark", "geneval", "--images", "out/masker", "--detector", "judge")
    assert code == 0, err
    assert "| images |" in out


def test_several_maskers(run: Run, tmp_path: Path) -> None:
    words = ["benchmark", "geneval", "--model", "shapes", "--limit", 2, "--steps", 1, "--output", "out"]
    words += ["--images-per-prompt", 1, "--device", "cpu", "--masker", "shapes-masker"]
    mu.maskers.RandomMasks.for_unet(mu.zoo.load("shapes").unet, density=0.8).save_pretrained(tmp_path / "random")
    code, out, err = run(*words, "--masker", "random", "--sides", "masker")
    assert code == 0, err
    assert "2 images made, out/masker" in out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["settings"]["masker"]["masker"].startswith("ComposedMasker ")
    code, _, err = run(*words, "--masker", "random", "--compose", "majority", "--sides", "masker")
    assert (code, "masker differ" in err) == (2, True)


def test_sides_by_search(run: Run, tmp_path: Path) -> None:
    words = ["benchmark", "geneval", "--model", "shapes", "--limit", 2, "--steps", 1, "--output", "out"]
    words += ["--images-per-prompt", 1, "--device", "cpu", "--preset", "fast"]
    code, out, err = run(
        *words, "--masker", "shapes-masker", "--sides", "both,search,search+masker,syngen,syngen+masker"
    )
    assert code == 0, err
    for side in ("base", "masker", "search", "search+masker", "syngen", "syngen+masker"):
        assert f"2 images made, out/{side}\n" in out
    assert "| masker - base | search - base | search+masker - base | syngen - base | syngen+masker - base |" in out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    settings = summary["settings"]["search"]
    assert (settings["masker"], settings["reward_sources"], settings["search"]["iterations"]) == (
        None,
        ["shapes-matching"],
        [*PRESETS["fast"]["iterations"]],
    )
    assert settings["search"]["guidance_scale"] == settings["guidance_scale"] == 4.0
    assert summary["settings"]["search+masker"] == settings | {"masker": "shapes-masker"}
    assert "search" not in summary["settings"]["masker"]
    code, out, err = run(*words, "--sides", "base,search")  # without the masker those images are the same
    assert code == 0, err
    assert "0 images made, out/search\n" in out
    code, _, err = run(*words, "--sides", "search", "--reward", "shapes:2")
    assert (code, "reward_sources, rewards differ" in err) == (2, True)
    code, _, err = run(*words, "--sides", "search", "--preset", "paper")
    assert (code, "search differ" in err) == (2, True)


def test_geneval_on_another_process(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that does not score reads no detector, and makes its own share alone."""
    entry = {"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a star"}
    (tmp_path / "metadata.jsonl").write_text("\n".join([json.dumps(entry)] * 3))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = ["benchmark", "geneval", "--model", "shapes", "--prompts-file", "metadata.jsonl"]
    code, out, err = run(*words, "--images-per-prompt", 1, "--steps", 1, "--device", "cpu", "--output", "out")
    assert code == 0, err
    assert out == "1 images made, out/base\n"
    assert [f.parent.parent.name for f in (tmp_path / "out").rglob("*.png")] == ["00001"]


def test_t2i_compbench(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Vqa:
        @classmethod
        def from_pretrained(cls, source: str, device: object) -> Callable[..., list[list[float]]]:
            assert source == blip_vqa.BLIP_VQA
            return lambda images, questions: [[0.25] * len(q) for q in questions]

    monkeypatch.setattr(blip_vqa, "BlipVqa", Vqa)
    monkeypatch.setattr(t2i_compbench, "spacy_phrases", lambda: lambda prompt: [prompt])
    (tmp_path / "color_val.txt").write_text("a red star\na blue star\n")
    words = ["benchmark", "t2i-compbench", "--model", "shapes", "--prompts-file", "color_val.txt"]
    words += ["--images-per-prompt", 2, "--steps", 1, "--device", "cpu", "--output", "out"]
    code, out, err = run(*words)
    assert code == 0, err
    assert "| color | 2 | 4 | 0.2500 [0.0267, 0.8021] |" in out  # two prompts show little, however equal
    assert (tmp_path / "out" / "base" / "color" / "samples" / "a blue star_000003.png").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["geneval"], "--model to generate with or --images to score"),
        (["geneval", "--model", "shapes", "--images", "x"], "one of them"),
        (["geneval", "--model", "shapes", "--sides", "best"], "base, masker, search, search+masker"),
        (["geneval", "--model", "shapes", "--sides", "base,base"], "each once"),
        (["geneval", "--model", "shapes", "--sides", "search+masker"], "(--masker)"),
        (["geneval", "--model", "shapes", "--sides", "both"], "a masker for the sides both"),
        (["geneval", "--model", "nowhere", "--sides", "search"], "(--reward)"),
        (["geneval", "--model", "shapes", "--reward", "shapes"], "only with the sides search"),
        (["geneval", "--model", "shapes", "--sides", "search", "--preset", "best"], "expected a preset"),
        (["geneval", "--model", "shapes", "--vqa", "x/y"], "no such option: --vqa"),
        (["geneval", "--model", "shapes", "--features", "shapes"], "no such option: --features"),
        (["geneval", "--model", "shapes", "--clip", "x/y"], "no clip with the judge"),
        (["geneval", "--model", "nowhere"], "evaluation_metadata.jsonl"),
        (["geneval", "--images", "x", "--detector", "judge"], "GenEval"),
        (["geneval", "--images", "x", "--detector", "./x"], "expected a Mask2Former"),
        (["t2i-compbench", "--model", "shapes"], "color_val.txt"),
        (["mmlu", "--model", "shapes"], "no such command 'mmlu'"),
    ],
)
def test_mistakes_are_one_line(run: Run, tmp_path: Path, words: list[object], message: str) -> None:
    code, _, err = run("benchmark", *words, *(["--device", "cpu"] if words[0] != "mmlu" else []))
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
