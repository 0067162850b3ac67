"""Mask2Former and CLIP as GenEval's detector, on tiny random checkpoints in the real format."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPTokenizer, Mask2FormerImageProcessorPil

from maskunet.errors import CheckpointError
from maskunet.evaluation.mask2former import ClipColours, Mask2FormerDetector, crop_object
from maskunet.metrics.geneval_rules import COLOURS, Detection


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


class Fixed:
    """A network that always gives the same logits."""

    device = torch.device("cpu")
    config = SimpleNamespace(id2label={0: "dog", 1: "mouse"})

    def __init__(self, classes: torch.Tensor, masks: torch.Tensor) -> None:
        self.out = SimpleNamespace(class_queries_logits=classes[None], masks_queries_logits=masks[None])

    def __call__(self, pixel_values: torch.Tensor) -> Any:
        self.seen = pixel_values
        return self.out


def test_from_a_folder(mask2former_folder: Path, clip_folder: Path) -> None:
    detector = Mask2FormerDetector.from_pretrained(mask2former_folder, clip=str(clip_folder))
    assert detector.names == {"person", "computer mouse", "potted plant", "bench"}
    picture = noise(50, 40)
    found = detector(picture)
    assert found
    assert [d.confidence for d in found] == sorted((d.confidence for d in found), reverse=True)
    for d in found:
        assert d.mask is not None
        assert d.mask.shape == (40, 50)
        assert d.confidence > 0.3
        ys, xs = np.nonzero(d.mask)
        assert d.box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    assert set(detector.colours(picture, found)) <= set(COLOURS)


def test_equals_transformers_where_it_works_at_the_pictures_size(mask2former_folder: Path, clip_folder: Path) -> None:
    """transformers brings masks to 384 x 384 and to the picture from there, so only at that size are both the same."""
    detector = Mask2FormerDetector.from_pretrained(mask2former_folder, clip=str(clip_folder))
    detector.shortest_edge = detector.longest_edge = 384
    picture = noise(384, 384, 1)
    pixels, _ = detector._prepare(picture)
    with torch.inference_mode():
        out = detector.model(pixel_values=pixels)
    options = {"threshold": 0.3, "target_sizes": [(384, 384)], "return_binary_maps": True}
    # Its own limit on candidates is the number of queries; ours is the detector's that GenEval runs.
    (theirs,) = Mask2FormerImageProcessorPil().post_process_instance_segmentation(out, **options)
    scores = {round(s["score"], 4): s["label_id"] for s in theirs["segments_info"]}
    mine = {round(d.confidence, 4): detector.labels.index(d.name) for d in detector(picture)}
    assert scores
    assert scores.items() <= mine.items()


def test_confidence_box_and_padding() -> None:
    classes = torch.tensor([[4.0, -4.0, -4.0], [-4.0, 4.0, -4.0], [-4.0, -4.0, 4.0], [0.0, 0.0, 0.0]])
    masks = torch.full((4, 8, 8), -6.0)
    masks[0, :4, :4] = 6.0  # the top left quarter of the padded input
    masks[1, 2:, :] = 0.1  # sure of the class, unsure of the pixels
    model = Fixed(classes, masks)
    detector = Mask2FormerDetector(model, lambda p, o: [], {"size": {"shortest_edge": 32, "longest_edge": 64}})
    found = detector(noise(128, 64))
    assert model.seen.shape == (1, 3, 32, 64)
    dog, mouse = found
    assert (dog.name, mouse.name) == ("dog", "computer mouse")
    assert dog.confidence == pytest.approx(0.98, abs=0.03)
    assert mouse.confidence == pytest.approx(0.52, abs=0.02)
    assert dog.box == pytest.approx((0, 0, 64, 32), abs=3)
    # 40 x 30 pictures are brought to 43 x 32 and padded to 64 x 32; the padding is cut off before masks go back.
    found = detector(noise(40, 30))
    assert model.seen.shape == (1, 3, 32, 64)
    assert model.seen[..., 43:].abs().max() == 0
    assert found[0].box == pytest.approx((0, 0, 32 * 40 / 43, 15), abs=2)


def test_nothing_found() -> None:
    model = Fixed(torch.tensor([[-4.0, -4.0, 4.0]]), torch.ones(1, 8, 8))
    assert Mask2FormerDetector(model, lambda p, o: [])(noise(16, 16)) == []


def test_crop_is_the_object_on_grey() -> None:
    picture = Image.new("RGB", (40, 20), "#f00")
    mask = np.zeros((20, 40), bool)
    mask[:, :15] = True
    crop = np.asarray(crop_object(picture, Detection("dog", None, 1.0, (10, 0, 30, 20), mask), 16))
    assert crop.shape == (16, 16, 3)
    assert tuple(crop[8, 1]) == (255, 0, 0)
    assert tuple(crop[8, 12]) == (153, 153, 153)
    wide = crop_object(picture, Detection("dog", None, 1.0, (0, 0, 40, 10)), 16)
    assert wide.size == (16, 16)


def test_colours_are_zero_shot_over_three_templates(mask2former_folder: Path, clip_folder: Path) -> None:
    detector = Mask2FormerDetector.from_pretrained(mask2former_folder, clip=str(clip_folder))
    assert isinstance(detector.name_colours, ClipColours)
    model, tokenizer = CLIPModel.from_pretrained(clip_folder), CLIPTokenizer.from_pretrained(clip_folder)
    picture, objects = noise(60, 60), [Detection("dog", None, 1.0, (i, i, i + 30, i + 40)) for i in (0, 8, 20)]
    expected = []
    with torch.inference_mode():
        rows = []
        for colour in COLOURS:
            texts = [
                f"a photo of a {colour} dog",
                f"a photo of a {colour}-colored dog",
                f"a photo of a {colour} object",
            ]
            found = model.get_text_features(**tokenizer(texts, padding=True, return_tensors="pt")).pooler_output
            row = (found / found.norm(dim=-1, keepdim=True)).mean(0)
            rows.append(row / row.norm())
        for one in objects:
            pixels = torch.from_numpy(np.array(crop_object(picture, one, 28))).permute(2, 0, 1) / 255
            seen = model.get_image_features(pixel_values=(pixels[None] - 0.5) / 0.25).pooler_output[0]
            expected.append(COLOURS[int((torch.stack(rows) @ seen).argmax())])
    assert detector.colours(picture, objects) == expected
    assert detector.colours(picture, []) == []


def test_unreadable_networks(tmp_path: Path, mask2former_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="Mask2Former in transformers' format"):
        Mask2FormerDetector.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="expected a model in transformers' format"):
        Mask2FormerDetector.from_pretrained(mask2former_folder, clip=str(tmp_path))
