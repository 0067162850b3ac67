"""The bundled data sets: scenes of the shapes world in two styles, drawn and encoded for training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tqdm.auto import tqdm

from ..data import CachedLatents, encode_pictures
from ..errors import DataError
from ..shapes.drawing import STYLES, draw
from ..shapes.scenes import Scene, training_scene

#: Data sets that come with the package, and the style of each.
WORLDS = {"shapes": "plain", "shapes-art": "art"}
#: How many of their scenes to train on, and the seeds that scenes to train on and to hold out are drawn from; the bundled
#: denoiser saw others.
POOL, TRAIN_SEED, HELD_OUT_SEED = 6000, 11, 12
_CHUNK = 128


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
    """Draw scenes and encode them with a pipeline's autoencoder.

    Args:
        pipe: a pipeline with a `vae`.
        scenes: what to draw.
        style: one of `maskunet.shapes.drawing.STYLES`.
        progress: show a progress bar.

    Raises:
        DataError: there is nothing to draw, or no such style.
    """
    if not scenes or style not in STYLES:
        raise DataError(f"expected scenes and a style among {STYLES}, got {len(scenes)} scenes and {style!r}")
    means, stds = [], []
    for start in tqdm(range(0, len(scenes), _CHUNK), desc="encode pictures", disable=not progress):
        mean, std = encode_pictures(pipe.vae, draw(scenes[start : start + _CHUNK], style))
        means.append(mean)
        stds.append(std)
    source = next(name for name, of in WORLDS.items() if of == style)
    return CachedLatents(torch.cat(means), torch.cat(stds), tuple(s.caption for s in scenes), source=source)
