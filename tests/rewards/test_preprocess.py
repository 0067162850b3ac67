"""Preprocessing against PIL, which the original rewards resize with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from maskunet.errors import RewardError
from maskunet.rewards import Preprocess, shared_crop
from maskunet.rewards.preprocess import resolve_preprocess
from maskunet.shapes.drawing import draw
from maskunet.shapes.scenes import training_scene

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def noise(height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def by_pil(image: Tensor, side: int) -> Tensor:
    """torchvision's Resize, CenterCrop and ToTensor on a byte image, from its documentation."""
    height, width = image.shape[1:]
    long = int(side * max(height, width) / min(height, width))
    size = (long, side) if width > height else (side, long)
    image = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(size, Image.Resampling.BICUBIC)
    left, top = (round((d - side) / 2) for d in size)
    image = image.crop((left, top, left + side, top + side))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


@pytest.mark.parametrize(
    ("height", "width"), [(512, 512), (300, 451), (451, 300), (96, 64), (64, 64), (224, 227), (1024, 768)]
)
@pytest.mark.parametrize("kind", ["noise", "drawn"])
def test_crop_agrees_with_pil_to_one_level(height: int, width: int, kind: str) -> None:
    image = noise(height, width)
    if kind == "drawn":
        drawn = (draw([training_scene(3, 0)])[0].clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()
        resized = np.array(Image.fromarray(drawn).resize((width, height), Image.Resampling.BICUBIC))
        image = torch.from_numpy(resized).permute(2, 0, 1).contiguous()
    ours = Preprocess(224, **PLAIN)(image[None] / 255)[0]
    off = (ours - by_pil(image, 224)).abs() * 255
    # PIL rounds to bytes twice, half a level each time; 1.09 and 0.32 were measured.
    assert float(off.max()) <= 1.2
    assert float(off.mean()) <= 0.35


def test_padding_shows_the_full_image_on_black() -> None:
    images = 0.25 + 0.5 * torch.rand(1, 3, 20, 41)
    values = Preprocess(28, **PLAIN, fit="pad", clamp=False)(images)
    assert values.shape == (1, 3, 28, 28)
    rows = values.abs().sum((0, 1, 3)) > 0
    assert rows.nonzero().flatten().tolist() == list(range(7, 21))  # round(20 * 28 / 41) = 14


def test_square_images_are_the_same_cropped_padded_and_shared() -> None:
    images = 0.25 + 0.5 * torch.rand(2, 3, 64, 64)
    crop, pad, shared = (
        Preprocess(32)(images),
        Preprocess(32, fit="pad", clamp=False)(images),
        shared_crop(32)(images),
    )
    assert torch.equal(pad, shared)
    assert torch.allclose(crop, shared)


def test_an_odd_margin_is_cut_as_each_original_cuts_it() -> None:
    column = torch.arange(7.0).expand(1, 3, 4, 7) / 7
    even, down = (Preprocess(4, **PLAIN, odd=odd)(column)[0, 0, 0] for odd in ("even", "down"))
    assert (even * 7).round().tolist() == [2, 3, 4, 5]
    assert (down * 7).round().tolist() == [1, 2, 3, 4]


def test_gradients_reach_the_images() -> None:
    images = torch.rand(1, 3, 40, 40, dtype=torch.float16).requires_grad_()
    values = Preprocess(28)(images)
    values.sum().backward()
    assert values.dtype == torch.float32
    assert images.grad is not None
    assert (images.grad != 0).all()


def test_preprocessing_is_chosen_by_name() -> None:
    original = Preprocess(28)
    assert resolve_preprocess("original", original) is original
    assert resolve_preprocess("shared", original) == shared_crop(28)
    assert resolve_preprocess(Preprocess(28, fit="pad"), original).fit == "pad"
    with pytest.raises(RewardError, match="'shared' or a Preprocess, got 'crop'"):
        resolve_preprocess("crop", original)
    with pytest.raises(RewardError, match="side of 28"):
        resolve_preprocess(Preprocess(32), original)
