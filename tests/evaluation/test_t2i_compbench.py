"""T2I-CompBench's folders, prompts and scores."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from maskunet.errors import DataError
from maskunet.evaluation import T2ICompBench, run_benchmark
from maskunet.evaluation.blip_vqa import BlipVqa
from maskunet.evaluation.t2i_compbench import read_prompts, spacy_phrases

PROMPTS = {"color": ["a red bench and a blue bowl.", "a cat."], "shape": ["a round clock"]}


def grey(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
    return torch.stack([torch.full((3, 32, 32), (seed % 256) / 255) for seed in seeds])


def phrases(prompt: str) -> list[str]:
    return [part.strip(". ") for part in prompt.split(" and ")]


def test_layout_and_scores(tmp_path: Path) -> None:
    received: list[list[str]] = []

    def vqa(images: Sequence[Image.Image], questions: Sequence[Sequence[str]]) -> list[list[float]]:
        received.extend(list(q) for q in questions)
        assert all(image.size == (32, 32) for image in images)
        return [[0.33336 if "red" in q else 0.5 for q in of_image] for of_image in questions]

    benchmark = T2ICompBench(PROMPTS, vqa, phrases, images_per_prompt=2, batch_size=4)
    scores = run_benchmark(benchmark, {"base": grey}, tmp_path, progress=False)
    assert scores is not None
    folder = tmp_path / "base" / "color"
    assert sorted(f.name for f in (folder / "samples").iterdir()) == [
        "a cat._000002.png",
        "a cat._000003.png",
        "a red bench and a blue bowl._000000.png",
        "a red bench and a blue bowl._000001.png",
    ]
    assert received == [["a red bench?", "a blue bowl?"]] * 2 + [["a cat?"]] * 2 + [["a round clock?"]] * 2
    answers = json.loads((folder / "annotation_blip" / "vqa_result.json").read_text())
    # 0.33336 is rounded to 0.3334, and its product with 0.5 stays 0.1667.
    assert answers == [{"question_id": i, "answer": a} for i, a in enumerate(["0.1667", "0.1667", "0.5000", "0.5000"])]
    assert (folder / "annotation_blip" / "blip_vqa_score.txt").read_text().startswith("BLIP-VQA score:0.33335")
    assert scores.estimate("base", "color").value == pytest.approx(0.33335)
    assert scores.task_names == ["color", "shape"]
    assert "overall" not in scores.to_markdown()
    seeds = [json.loads(f.read_text())["seed"] for f in tmp_path.glob("base/*/records/*.json")]
    assert len(set(seeds)) == 6


def test_a_network_and_a_folder_of_the_original_script(blip_folder: Path, tmp_path: Path) -> None:
    """One category's folder as the original script writes it: numbers of more than six digits' width, and a grid."""
    folder = tmp_path / "color"
    (folder / "samples").mkdir(parents=True)
    for number in (100000, 9):
        Image.new("RGB", (40, 32), "red").save(folder / "samples" / f"a red bench_{number:06d}.png")
    Image.new("RGB", (8, 8)).save(folder / "a red bench-grid-00000.png")
    vqa = BlipVqa.from_pretrained(blip_folder)
    scores = T2ICompBench({}, vqa, phrases).score(folder, tmp_path / "out", progress=False)
    assert [(s.prompt, s.task) for s in scores] == [(0, "color")] * 2
    ((expected,),) = vqa([Image.new("RGB", (40, 32), "red")], [["a red bench?"]])
    assert scores[0].value == round(expected, 4)
    assert (tmp_path / "out" / "color" / "annotation_blip" / "vqa_result.json").is_file()
    assert [int(i.file.stem[-6:]) for i in T2ICompBench({}).find_images(tmp_path)] == [9, 100000]


def test_eight_phrases_count_and_no_phrase_scores_one(tmp_path: Path) -> None:
    def vqa(images: Sequence[Image.Image], questions: Sequence[Sequence[str]]) -> list[list[float]]:
        return [[0.5] * len(q) for q in questions]

    prompts = {"color": ["many", "none"]}
    benchmark = T2ICompBench(prompts, vqa, lambda p: ["x"] * 20 if p == "many" else [], images_per_prompt=1)
    scores = run_benchmark(benchmark, {"base": grey}, tmp_path, progress=False)
    assert scores is not None
    assert scores.values["base"].tolist() == [pytest.approx(0.0039), 1]


def test_prompts_files(tmp_path: Path) -> None:
    (tmp_path / "color_val.txt").write_text("a red bench\tmore\n\na cat\n")
    (tmp_path / "shape_val.txt").write_text("a round clock\n")
    (tmp_path / "spatial_val.txt").write_text("a cat above a dog\n")
    assert read_prompts(tmp_path) == {"color": ["a red bench", "a cat"], "shape": ["a round clock"]}
    assert read_prompts(tmp_path / "spatial_val.txt") == {"spatial": ["a cat above a dog"]}
    (tmp_path / "bad.txt").write_text("a red/blue bench\n")
    with pytest.raises(DataError, match="no slash or underscore"):
        read_prompts(tmp_path / "bad.txt")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DataError, match="it has none"):
        read_prompts(tmp_path / "empty.txt")
    with pytest.raises(DataError, match="could not read"):
        read_prompts(tmp_path / "missing.txt")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=r"color_val\.txt"):
        read_prompts(tmp_path / "folder")


def test_the_splitter_is_spacys_or_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(DataError, match=r"pip install 'maskunet\[t2i-compbench\]' && python -m spacy download"):
        spacy_phrases()

    def load(name: str) -> object:
        assert name == "en_core_web_sm"
        return lambda text: types.SimpleNamespace(noun_chunks=text.split(" and "))

    monkeypatch.setitem(sys.modules, "spacy", types.SimpleNamespace(load=load))
    assert spacy_phrases()("a red bench and a cat") == ["a red bench", "a cat"]


def test_spacys_own_noun_chunks(monkeypatch: pytest.MonkeyPatch, english: Path) -> None:
    monkeypatch.setattr("maskunet.evaluation.t2i_compbench._SPACY_MODEL", str(english))
    split = spacy_phrases()
    assert split("a red dog and a small blue cat") == ["a red dog", "a small blue cat"]
    assert split("a bowl on a red and blue table") == ["a bowl", "a red and blue table"]


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a splitter of prompts"):
        T2ICompBench(PROMPTS).score(tmp_path, tmp_path)
    with pytest.raises(DataError, match="T2I-CompBench's folders"):
        T2ICompBench({}).find_images(tmp_path)
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "cat.png").write_text("")
    with pytest.raises(DataError, match="named <prompt>_<number>"):
        T2ICompBench({}).find_images(tmp_path)
