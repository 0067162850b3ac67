"""Drawing: images in range, independent of their batch, with the area of their shapes and the right patch labels."""

from __future__ import annotations

import pytest
import torch

from maskunet.errors import SettingError
from maskunet.shapes.drawing import distance_table, draw, patch_labels
from maskunet.shapes.layout import Shape
from maskunet.shapes.scenes import Scene, training_scene
from maskunet.shapes.vocabulary import COLOURS, HUES, SHAPES


def scene(*objects: Shape) -> Scene:
    return Scene(objects, "", "", ())


RECORDED = {
    "plain": [[0.72904, 0.5473, 0.02376], [0.75926, 0.59875, 0.09554], [0.75183, 0.58576, 0.54135]],
    "art": [[0.79943, 0.66009, 0.57556], [0.82439, 0.69919, 0.64837], [0.82501, 0.69773, 0.72592]],
}


@pytest.mark.parametrize("style", list(RECORDED))
def test_images_stay_those_that_the_bundled_models_were_trained_on(style: str) -> None:
    """Mean, mean square and mean squared gradient (times 100) of three recorded images."""
    images = draw([training_scene(i) for i in range(3)], style)
    gradient = 100 * images[:, 0].diff(dim=-1).square().mean((1, 2))
    moments = torch.stack([images.mean((1, 2, 3)), images.square().mean((1, 2, 3)), gradient], 1)
    torch.testing.assert_close(moments, torch.tensor(RECORDED[style]), atol=2e-5, rtol=1e-4)


def test_images_are_in_range_and_do_not_depend_on_their_batch() -> None:
    scenes = [training_scene(i) for i in range(12)]
    for style in ("plain", "art"):
        together = draw(scenes, style)
        assert together.shape == (12, 3, 64, 64)
        assert together.min() >= 0
        assert together.max() <= 1
        alone = torch.cat([draw([s], style) for s in scenes])
        torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


def test_styles_differ_and_an_unknown_style_is_refused() -> None:
    scenes = [training_scene(0)]
    assert (draw(scenes, "plain") - draw(scenes, "art")).abs().mean() > 0.02
    with pytest.raises(SettingError, match="expected a style among plain, art, got 'oil'"):
        draw(scenes, "oil")


@pytest.mark.parametrize("shape", SHAPES)
def test_distances_are_distances(shape: str) -> None:
    """Signed distances change by at most the distance walked (1-Lipschitz), and the inside has the shape's area."""
    table = distance_table(shape)
    step = 3.0 / (table.shape[0] - 1)
    assert (table[1:] - table[:-1]).abs().max() <= step * 1.01
    assert (table[:, 1:] - table[:, :-1]).abs().max() <= step * 1.01
    area = float((table < 0).float().mean()) * 9
    assert 1.0 < area < 2.6


def test_coverage_matches_area() -> None:
    """Anti-aliasing preserves the area: a circle of radius 0.9 * 15 pixels."""
    image = draw([scene(Shape("circle", "red", 32, 32, 15, saturation=0.9, value=0.9))])[0]
    chroma = image.amax(0) - image.amin(0)
    ground = chroma[:4].mean()
    coverage = ((chroma - ground) / (chroma[32, 32] - ground)).clamp(0, 1)
    assert float(coverage[14:50, 14:50].sum()) == pytest.approx(3.14159 * 13.5**2, rel=0.03)


def test_patches_are_labelled_with_their_shape_and_colour() -> None:
    star, ring = Shape("star", "blue", 16, 16, 12), Shape("square", "red", 48, 48, 12)
    labels = patch_labels([scene(star, ring)]).view(2, 8, 8)
    assert labels[:, 2, 2].tolist() == [SHAPES.index("star"), COLOURS.index("blue")]
    assert labels[:, 5, 5].tolist() == [SHAPES.index("square"), COLOURS.index("red")]
    assert labels[:, 0, 7].tolist() == [len(SHAPES), len(COLOURS)]
    assert set(labels[0].unique().tolist()) == {SHAPES.index("star"), SHAPES.index("square"), len(SHAPES)}


def test_hues_are_at_least_27_degrees_apart() -> None:
    hues = sorted(HUES.values())
    gaps = [(b - a) % 360 for a, b in zip(hues, [*hues[1:], hues[0]], strict=True)]
    assert min(gaps) >= 27
