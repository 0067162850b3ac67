"""Drawing and the judge: the judge names at least 99 % of drawn pictures exactly, and says so when it cannot."""

from __future__ import annotations

import pytest
import torch

from maskunet.metrics.geneval_rules import check
from maskunet.shapes.drawing import distance_table, draw
from maskunet.shapes.judge import is_exact, judge
from maskunet.shapes.layout import Shape
from maskunet.shapes.scenes import Scene, held_out_prompts, held_out_scenes, training_scene
from maskunet.shapes.vocabulary import COLOURS, HUES, SHAPES


def scene(*objects: Shape) -> Scene:
    return Scene(objects, "", "", ())


def test_pictures_are_in_range_and_do_not_depend_on_their_batch() -> None:
    scenes = [training_scene(i) for i in range(12)]
    for style in ("plain", "art"):
        together = draw(scenes, style)
        assert together.shape == (12, 3, 64, 64)
        assert together.min() >= 0
        assert together.max() <= 1
        alone = torch.cat([draw([s], style) for s in scenes])
        torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


def test_styles_differ_and_unknown_style_is_refused() -> None:
    one = [training_scene(0)]
    assert (draw(one, "plain") - draw(one, "art")).abs().mean() > 0.02
    with pytest.raises(ValueError, match="plain, art"):
        draw(one, "oil")


def test_empty_scene_is_ground_only() -> None:
    picture = draw([scene()])
    assert judge(picture) == [[]]


@pytest.mark.parametrize("shape", SHAPES)
def test_distances_are_distances(shape: str) -> None:
    """Signed distances change by at most the distance walked (1-Lipschitz), and the inside is where the shape is."""
    table = distance_table(shape)
    step = 3.0 / (table.shape[0] - 1)
    assert (table[1:] - table[:-1]).abs().max() <= step * 1.01
    assert (table[:, 1:] - table[:, :-1]).abs().max() <= step * 1.01
    area = float((table < 0).float().mean()) * 9
    assert 1.0 < area < 2.6


def test_coverage_matches_area() -> None:
    """Anti-aliasing keeps the area: a circle of radius 0.9 * 15 pixels."""
    picture = draw([scene(Shape("circle", "red", 32, 32, 15, saturation=0.9, value=0.9))])[0]
    chroma = picture.amax(0) - picture.amin(0)
    ground = chroma[:4].mean()
    covered = ((chroma - ground) / (chroma[32, 32] - ground)).clamp(0, 1)
    assert float(covered[14:50, 14:50].sum()) == pytest.approx(3.14159 * 13.5**2, rel=0.03)


def test_judge_is_exact_on_drawn_pictures() -> None:
    scenes = held_out_scenes(300) + [training_scene(i, seed=9) for i in range(300)]
    found = judge(draw(scenes))
    right = [is_exact(d, [(o.shape, o.colour) for o in s.objects]) for d, s in zip(found, scenes, strict=True)]
    assert sum(right) / len(right) >= 0.99
    prompts = held_out_prompts(300)
    met = [check(d, p.metadata()) is None for d, p in zip(found, prompts, strict=False)]
    assert sum(met) / len(met) >= 0.99


def test_judge_names_every_shape_in_every_colour() -> None:
    objects = [Shape(s, c, 32, 32, 13) for s in SHAPES for c in COLOURS]
    found = judge(draw([scene(o) for o in objects]))
    for o, d in zip(objects, found, strict=True):
        assert is_exact(d, [(o.shape, o.colour)])
        assert d[0].confidence > 0.9
        assert abs((d[0].box[0] + d[0].box[2]) / 2 - 32) < 2


def test_judge_separates_touching_objects_of_two_colours() -> None:
    picture = draw([scene(Shape("square", "blue", 22, 32, 12), Shape("circle", "red", 41, 32, 11))])
    assert is_exact(judge(picture)[0], [("square", "blue"), ("circle", "red")])


@pytest.mark.parametrize("shape", SHAPES)
def test_judge_takes_an_object_of_shifting_colour_for_one(shape: str) -> None:
    """Generated objects can lie between two hues: the left part is called red then, the right part pink."""
    red, pink = draw([scene(Shape(shape, c, 32, 32, 14)) for c in ("red", "pink")])
    share = torch.linspace(-1.5, 2.5, 64).clamp(0, 1)
    found = [d for d in judge((red * (1 - share) + pink * share)[None])[0] if d.confidence >= 0.3]
    assert [d.name for d in found] == [shape]
    assert found[0].colour in ("red", "pink")


def test_wrong_pictures_are_called_wrong() -> None:
    """Against another prompt of its task, a drawn picture fails unless it happens to meet it."""
    prompts, scenes = held_out_prompts(240), held_out_scenes(240)
    found = judge(draw(scenes))
    wrong = sum(check(found[i], prompts[i + 6].metadata()) is not None for i in range(234))
    assert wrong / 234 > 0.9


def test_shapeless_region_gets_no_confidence() -> None:
    picture = torch.full((1, 3, 64, 64), 0.85)
    picture[0, 1:, 10:14, 5:60] = 0.1  # a long red bar
    detections = judge(picture)[0]
    assert len(detections) == 1
    assert detections[0].colour == "red"
    assert detections[0].confidence < 0.3


def test_hues_are_apart() -> None:
    hues = sorted(HUES.values())
    gaps = [(b - a) % 360 for a, b in zip(hues, [*hues[1:], hues[0]], strict=True)]
    assert min(gaps) >= 27
