"""The bundled data sets: scenes of the shapes world in two styles, drawn and encoded for training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tqdm.auto import tqdm

from ..data import CachedLatents, encode_posterior
from ..data.scaling import uses_statistics
from ..errors import DataError
from ..shapes.drawing import STYLES, draw
from ..shapes.scenes import Scene, training_scene

#: Bundled data sets, and the style that each is drawn in.
WORLDS = {"shapes": "plain", "shapes-art": "art"}
#: Default number of scenes to train on.
TRAIN_SAMPLES = 6000
#: Seeds of the scenes to train on and of those held out. The bundled pipeline was trained on scenes of other seeds.
TRAIN_SEED, HELD_OUT_SEED = 11, 12
_CHUNK = 128


def scenes_of(name: str, count: int, seed: int) -> tuple[list[Scene], str]:
    """Return scenes of a bundled data set and the style to draw them in.

    Args:
        name: a key of `WORLDS`.
        count: number of scenes.
        seed: seed of the scenes.

    Raises:
        DataError: no bundled data set has that name.
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
        scenes: the scenes.
        style: one of `maskunet.shapes.drawing.STYLES`.
        progress: show a progress bar.

    Raises:
        DataError: no scenes, or no such style.
    """
    if not scenes or style not in STYLES:
        raise DataError(f"expected scenes and a style among {STYLES}, got {len(scenes)} scenes and {style!r}")
    means, stds = [], []
    for start in tqdm(range(0, len(scenes), _CHUNK), desc="encode images", disable=not progress):
        images = draw(scenes[start : start + _CHUNK], style)
        mean, std = encode_posterior(pipe.vae, images, statistics=uses_statistics(pipe))
        means.append(mean)
        stds.append(std)
    source = next(name for name, world_style in WORLDS.items() if world_style == style)
    captions = tuple(scene.caption for scene in scenes)
    return CachedLatents(torch.cat(means), torch.cat(stds), captions, source=source)


def encode_world(
    pipe: Any,
    name: str,
    *,
    train_samples: int = TRAIN_SAMPLES,
    held_out_samples: int = 1024,
    progress: bool = False,
) -> tuple[CachedLatents, CachedLatents]:
    """Draw and encode a bundled data set.

    Args:
        pipe: a pipeline with a `vae`.
        name: a key of `WORLDS`.
        train_samples: number of scenes to train on.
        held_out_samples: number of scenes held out, which are none of those to train on.
        progress: show a progress bar.

    Returns:
        The samples to train on, and those held out.

    Raises:
        DataError: no bundled data set has that name, or a number of scenes is 0.
    """
    scenes, style = scenes_of(name, train_samples, TRAIN_SEED)
    held_out, _ = scenes_of(name, held_out_samples, HELD_OUT_SEED)
    return encode_scenes(pipe, scenes, style, progress=progress), encode_scenes(pipe, held_out, style)
