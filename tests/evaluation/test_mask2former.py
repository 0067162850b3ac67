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
    """A network that always returns the same logits."""

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
    image = noise(50, 40)
    detections = detector(image)
    assert detections
    assert [d.confidence for d in detections] == sorted((d.confidence for d in detections), reverse=True)
    for d in detections:
        assert d.mask is not None
        assert d.mask.shape == (40, 50)
        assert d.confidence > 0.3
        ys, xs = np.nonzero(d.mask)
        assert d.box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    assert set(detector.colours(image, detections)) <= set(COLOURS)


def test_equals_transformers_at_its_working_size(mask2former_folder: Path, clip_folder: Path) -> None:
    """transformers resizes masks to 384 x 384 and then to the image, so that the two agree at that size alone."""
    detector = Mask2FormerDetector.from_pretrained(mask2former_folder, clip=str(clip_folder))
    detector.shortest_edge = detector.longest_edge = 384
    image = noise(384, 384, 1)
    pixels, _ = detector._prepare(image)
    with torch.inference_mode():
        out = detector.model(pixel_values=pixels)
    options = {"threshold": 0.3, "target_sizes": [(384, 384)], "return_binary_maps": True}
    # transformers keeps as many candidates as there are queries, GenEval's detector 100.
    (reference,) = Mask2FormerImageProcessorPil().post_process_instance_segmentation(out, **options)
    scores = {round(s["score"], 4): s["label_id"] for s in reference["segments_info"]}
    scored = {round(d.confidence, 4): detector.labels.index(d.name) for d in detector(image)}
    assert scores
    assert scores.items() <= scored.items()


def test_confidence_box_and_padding() -> None:
    classes = torch.tensor([[4.0, -4.0, -4.0], [-4.0, 4.0, -4.0], [-4.0, -4.0, 4.0], [0.0, 0.0, 0.0]])
    masks = torch.full((4, 8, 8), -6.0)
    masks[0, :4, :4] = 6.0  # the top left quarter of the padded input
    masks[1, 2:, :] = 0.1  # sure of the class, unsure of the pixels
    model = Fixed(classes, masks)
    detector = Mask2FormerDetector(model, lambda p, o: [], {"size": {"shortest_edge": 32, "longest_edge": 64}})
    detections = detector(noise(128, 64))
    assert model.seen.shape == (1, 3, 32, 64)
    dog, mouse = detections
    assert (dog.name, mouse.name) == ("dog", "computer mouse")
    assert dog.confidence == pytest.approx(0.98, abs=0.03)
    assert mouse.confidence == pytest.approx(0.52, abs=0.02)
    assert dog.box == pytest.approx((0, 0, 64, 32), abs=3)
    # 40 x 30 images are resized to 43 x 32 and padded to 64 x 32; the padding is removed before masks are resized.
    detections = detector(noise(40, 30))
    assert model.seen.shape == (1, 3, 32, 64)
    assert model.seen[..., 43:].abs().max() == 0
    assert detections[0].box == pytest.approx((0, 0, 32 * 40 / 43, 15), abs=2)


def test_no_objects() -> None:
    model = Fixed(torch.tensor([[-4.0, -4.0, 4.0]]), torch.ones(1, 8, 8))
    assert Mask2FormerDetector(model, lambda p, o: [])(noise(16, 16)) == []


def test_crop_is_the_object_on_grey() -> None:
    image = Image.new("RGB", (40, 20), "#f00")
    mask = np.zeros((20, 40), bool)
    mask[:, :15] = True
    crop = np.asarray(crop_object(image, Detection("dog", None, 1.0, (10, 0, 30, 20), mask), 16))
    assert crop.shape == (16, 16, 3)
    assert tuple(crop[8, 1]) == (255, 0, 0)
    assert tuple(crop[8, 12]) == (153, 153, 153)
    wide = crop_object(image, Detection("dog", None, 1.0, (0, 0, 40, 10)), 16)
    assert wide.size == (16, 16)


def test_colours_are_zero_shot_over_three_templates(mask2former_folder: Path, clip_folder: Path) -> None:
    detector = Mask2FormerDetector.from_pretrained(mask2former_folder, clip=str(clip_folder))
    assert isinstance(detector.name_colours, ClipColours)
    model, tokenizer = CLIPModel.from_pretrained(clip_folder), CLIPTokenizer.from_pretrained(clip_folder)
    image, objects = noise(60, 60), [Detection("dog", None, 1.0, (i, i, i + 30, i + 40)) for i in (0, 8, 20)]
    expected = []
    with torch.inference_mode():
        rows = []
        for colour in COLOURS:
            texts = [
                f"a photo of a {colour} dog",
                f"a photo of a {colour}-colored dog",
                f"a photo of a {colour} object",
            ]
            features = model.get_text_features(**tokenizer(texts, padding=True, return_tensors="pt")).pooler_output
            row = (features / features.norm(dim=-1, keepdim=True)).mean(0)
            rows.append(row / row.norm())
        for one in objects:
            pixels = torch.from_numpy(np.array(crop_object(image, one, 28))).permute(2, 0, 1) / 255
            seen = model.get_image_features(pixel_values=(pixels[None] - 0.5) / 0.25).pooler_output[0]
            expected.append(COLOURS[int((torch.stack(rows) @ seen).argmax())])
    assert detector.colours(image, objects) == expected
    assert detector.colours(image, []) == []


def test_unreadable_networks(tmp_path: Path, mask2former_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="Mask2Former in transformers' format"):
        Mask2FormerDetector.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="expected a model in transformers' format"):
        Mask2FormerDetector.from_pretrained(mask2former_folder, clip=str(tmp_path))
