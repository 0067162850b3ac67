"""From images to a network's input, differentiable: resize, crop or pad to a square, normalise.

Bicubic with a = -1/2 and antialiasing, as in PIL and torchvision. PIL rounds to bytes after each of its two passes. Rounding
has no gradient, so it is left out here; the two differ by up to 1.1 levels of 255, and by 0.3 on average (tests/rewards).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import RewardError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Preprocess:
    """Resize to a square of `side` pixels and normalise.

    Args:
        side: height and width of the result, in pixels.
        mean: mean of each channel, subtracted.
        std: standard deviation of each channel, the divisor.
        fit: "crop": the shorter edge becomes `side` and the centre is cropped; "pad": the longer edge becomes `side` and
            the rest is black.
        clamp: clip to [0, 1] after resizing along rows and along columns, as PIL's bytes do.
        odd: start of the crop if the margin is odd: "even" rounds half to even (torchvision), "down" rounds down
            (transformers).
    """

    side: int
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    fit: Literal["crop", "pad"] = "crop"
    clamp: bool = True
    odd: Literal["even", "down"] = "even"

    def __call__(self, images: Tensor) -> Tensor:
        """Return pixel values (B, 3, side, side), float32.

        Args:
            images: (B, 3, H, W), floating, in [0, 1].
        """
        x = images.float()
        size = self._size(x.shape[-2], x.shape[-1])
        # Bytes cannot overshoot between PIL's two passes, which run along rows, then along columns.
        for target in ((x.shape[-2], size[1]), size) if self.clamp else (size,):
            if target != x.shape[-2:]:
                x = F.interpolate(x, size=target, mode="bicubic", antialias=True)
            x = x.clamp(0, 1) if self.clamp else x
        if self.fit == "crop":
            top, left = (self._start(d - self.side) for d in size)
            x = x[..., top : top + self.side, left : left + self.side]
        else:
            (top, bottom), (left, right) = ((m // 2, m - m // 2) for m in (self.side - d for d in size))
            x = F.pad(x, (left, right, top, bottom))
        mean, std = (torch.tensor(v, device=x.device)[:, None, None] for v in (self.mean, self.std))
        return (x - mean) / std

    def _size(self, height: int, width: int) -> tuple[int, int]:
        if self.fit == "pad":
            scale = self.side / max(height, width)
            return max(1, round(height * scale)), max(1, round(width * scale))
        longer = int(self.side * max(height, width) / min(height, width))
        return (self.side, longer) if height <= width else (longer, self.side)

    def _start(self, margin: int) -> int:
        return round(margin / 2) if self.odd == "even" else margin // 2


def shared_crop(side: int = 224) -> Preprocess:
    """Return the one preprocessing that the authors' search uses for all its rewards.

    Shorter edge to `side`, bicubic, centre crop, CLIP's mean and deviation, on floats that are not clipped.

    Args:
        side: height and width of the result, in pixels.
    """
    return Preprocess(side, clamp=False)


def resolve_preprocess(preprocess: Preprocess | str, original: Preprocess) -> Preprocess:
    """Return the preprocessing that an argument names.

    Args:
        preprocess: "original", "shared" (the authors' one crop) or a `Preprocess`.
        original: the reward's own preprocessing.

    Raises:
        RewardError: another name, or a side that does not fit the network.
    """
    if isinstance(preprocess, Preprocess):
        if preprocess.side != original.side:
            raise RewardError(f"expected preprocessing to a side of {original.side} pixels, got {preprocess.side}")
        return preprocess
    if preprocess not in ("original", "shared"):
        raise RewardError(f"expected preprocess 'original', 'shared' or a Preprocess, got {preprocess!r}")
    return original if preprocess == "original" else shared_crop(original.side)
