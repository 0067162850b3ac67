"""Scores by task, and paired differences of sides."""

from __future__ import annotations

import pytest
import torch

from maskunet.errors import DataError
from maskunet.evaluation.scores import Score, Scores
from maskunet.metrics.intervals import wilson


def rows(values: list[list[float]], task: str = "counting", first: int = 0) -> list[Score]:
    return [Score(first + i, task, v) for i, of_prompt in enumerate(values) for v in of_prompt]


def test_overall_is_the_mean_over_tasks_and_a_task_the_mean_over_images() -> None:
    """As in GenEval's summary: a prompt with more images weighs more in its task."""
    base = rows([[1, 0, 1, 1], [0]]) + rows([[1.0]] * 3 + [[0.0]], "colors", 2)
    scores = Scores.gather({"base": base})
    assert scores.task_names == ["counting", "colors"]
    assert scores.estimate("base", "counting").value == pytest.approx(3 / 5)
    assert scores.estimate("base").value == pytest.approx((3 / 5 + 3 / 4) / 2)
    lines = scores.to_markdown().splitlines()
    assert lines[0] == "| task | prompts | images | base |"
    assert lines[2].startswith("| counting | 2 | 5 | 0.600 [")
    assert lines[-1].startswith("| **overall** | 6 | 9 | 0.675 [")
    assert scores.to_dict()["overall"]["base"]["value"] == pytest.approx(0.675)


def test_sides_are_compared_in_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    values = (torch.rand(200, 2, generator=generator) < 0.5).float()
    better = values.clone()
    better[::10] = 1
    scores = Scores.gather({"base": rows(values.tolist()), "masker": rows(better.tolist())})
    gain, side = scores.gain("masker", "base"), scores.estimate("masker")
    assert 0 < gain.low < gain.value < gain.high
    assert gain.high - gain.low < side.high - side.low
    assert "| masker - base |" in scores.to_markdown()
    assert scores.to_dict()["counting"]["masker - base"]["value"] == pytest.approx(gain.value)


def test_an_interval_has_width_where_all_prompts_agree() -> None:
    scores = Scores.gather({"base": rows([[1.0]] * 80) + rows([[0.0]] * 80, "position", 80)})
    right, wrong = scores.estimate("base", "counting"), scores.estimate("base", "position")
    assert (right.value, right.high, wrong.value, wrong.low) == pytest.approx((1, 1, 0, 0))
    assert right.low == pytest.approx(80 / (80 + 1.96**2), abs=1e-3)
    assert wrong.high == pytest.approx(1 - right.low)
    half = wilson(0.5, 100)
    assert (half.low, half.high) == pytest.approx((0.4038, 0.5962), abs=1e-3)


def test_repeats_of_a_text_are_one_prompt() -> None:
    repeated = [Score(i, "colors", float(i % 5 > 0), f"prompt {i % 5}") for i in range(100)]
    scores = Scores.gather({"base": repeated})
    distinct = Scores.gather({"base": [Score(i, "colors", float(i > 0)) for i in range(5)]})
    many, few = scores.estimate("base"), distinct.estimate("base")
    assert (many.value, many.low, many.high) == pytest.approx((few.value, few.low, few.high))
    assert "| colors | 5 | 100 | 0.800 [" in scores.to_markdown()


def test_changed_images_are_counted() -> None:
    base = [Score(i, "colors", float(k)) for i in range(6) for k in range(2)]
    better = [Score(i, "colors", 1.0 if i < 5 else 0.0) for i in range(6) for _ in range(2)]
    scores = Scores.gather({"base": base, "masker": better})
    changes = scores.changes("masker", "base")
    assert (changes.mended, changes.spoilt) == (5, 1)
    assert changes.p == pytest.approx(2 * (1 + 6) / 2**6)
    assert scores.to_markdown().splitlines()[-1] == "| images better, worse |  |  |  |  | 5, 1 (p = 0.219) |"
    difference = scores.to_dict()["overall"]["masker - base"]
    assert (difference["mended"], difference["spoilt"]) == (5, 1)


def test_a_second_mean_leaves_a_task_out() -> None:
    base = rows([[1.0]] * 4) + rows([[0.0]] * 4, "position", 4)
    scores = Scores.gather({"base": base}, without="position")
    assert "| **overall without position** | 4 | 4 | 1.000 [" in scores.to_markdown()
    assert scores.to_dict()["overall without position"]["base"]["value"] == 1
    assert "without" not in Scores.gather({"base": base}).to_markdown()
    assert "without" not in Scores.gather({"base": rows([[1.0]])}, without="position").to_markdown()


def test_without_an_overall_figure() -> None:
    scores = Scores.gather({"base": rows([[0.12344]], "color")}, overall=None, digits=4)
    assert "overall" not in scores.to_markdown()
    assert "| color | 1 | 1 | 0.1234 [" in scores.to_markdown()
    assert list(scores.to_dict()) == ["color"]


def test_sides_that_differ_are_refused() -> None:
    with pytest.raises(DataError, match="same number of images"):
        Scores.gather({"base": rows([[1.0]]), "masker": rows([[1.0, 0.0]])})
    with pytest.raises(DataError, match="prompt 0 of masker differs"):
        Scores.gather({"base": rows([[1.0]]), "masker": rows([[1.0]], "colors")})
    with pytest.raises(DataError, match="at least one image"):
        Scores.gather({"base": []})
