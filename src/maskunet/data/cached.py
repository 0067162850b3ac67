"""A data set of cached latents and token ids: pictures are encoded once, before training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..errors import DataError
from ..shapes.drawing import STYLES, draw
from ..shapes.scenes import Scene, training_scene

#: Data sets that come with the package, and the style of each.
WORLDS = {"shapes": "plain", "shapes-art": "art"}
_CHUNK = 128


@dataclass(frozen=True)
class CachedLatents:
    """Latents and captions of a data set.

    Args:
        mean: posterior means (N, C, h, w), scaled for the U-Net.
        std: posterior standard deviations, of the same shape.
        input_ids: token ids of the captions (N, L).
        empty_ids: token ids of the empty caption (1, L).
    """

    mean: Tensor
    std: Tensor
    input_ids: Tensor
    empty_ids: Tensor

    def __len__(self) -> int:
        return len(self.mean)

    def batch(self, size: int, generator: torch.Generator, caption_dropout: float = 0.0) -> tuple[Tensor, Tensor]:
        """Draw a batch: sampled latents (size, C, h, w) and token ids (size, L), some of the empty caption."""
        index = torch.randint(len(self), (size,), generator=generator)
        mean, std = self.mean[index].float(), self.std[index].float()
        latents = mean + std * torch.randn(mean.shape, generator=generator)
        dropped = torch.rand(size, generator=generator) < caption_dropout
        return latents, torch.where(dropped[:, None], self.empty_ids, self.input_ids[index])


def scenes_of(name: str, count: int, seed: int) -> tuple[list[Scene], str]:
    """Return training scenes of a bundled world and the style to draw them in.

    Raises:
        DataError: no bundled world has that name.
    """
    if name not in WORLDS:
        raise DataError(f"expected a bundled data set ({', '.join(WORLDS)}), got {name!r}")
    return [training_scene(i, seed) for i in range(count)], WORLDS[name]


def encode_scenes(
    pipe: Any, scenes: Sequence[Scene], style: str = "plain", *, progress: bool = False
) -> CachedLatents:
    """Draw scenes and encode them with a pipeline's autoencoder and tokenizer.

    Args:
        pipe: a pipeline with `vae` and `tokenizer`.
        scenes: what to draw.
        style: one of `maskunet.shapes.drawing.STYLES`.
        progress: show a progress bar.

    Raises:
        DataError: there is nothing to draw, or no such style.
    """
    if not scenes or style not in STYLES:
        raise DataError(f"expected scenes and a style among {STYLES}, got {len(scenes)} scenes and {style!r}")
    vae, tokenizer = pipe.vae, pipe.tokenizer
    means, stds = [], []
    with torch.inference_mode():
        for start in tqdm(range(0, len(scenes), _CHUNK), desc="encode pictures", disable=not progress):
            pictures = draw(scenes[start : start + _CHUNK], style).to(vae.device, vae.dtype)
            posterior = vae.encode(pictures * 2 - 1).latent_dist
            means.append((posterior.mean * vae.config.scaling_factor).half().cpu())
            stds.append((posterior.std * vae.config.scaling_factor).half().cpu())

    def tokens(captions: list[str]) -> Tensor:
        options = {"padding": "max_length", "truncation": True, "max_length": tokenizer.model_max_length}
        ids: Tensor = tokenizer(captions, return_tensors="pt", **options).input_ids
        return ids

    return CachedLatents(torch.cat(means), torch.cat(stds), tokens([s.caption for s in scenes]), tokens([""]))
