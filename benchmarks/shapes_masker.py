"""The bundled masker: trained on the diffusion loss of the bundled pipeline's own world."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from maskunet.maskers import MaskGenerator, MaskGeneratorConfig
from maskunet.shapes.scenes import training_scene
from maskunet.training import Run, TrainConfig, train
from maskunet.zoo.dataset import HELD_OUT_SEED, POOL, TRAIN_SEED, encode_scenes

#: Settings of the masker that is shipped; `benchmarks/first_masker.py` says how they were chosen.
MASK = MaskGeneratorConfig(initial_logit=0.3)
TRAIN = TrainConfig(
    max_train_steps=550,
    train_batch_size=64,
    learning_rate=1e-3,
    gumbel=False,
    snr_gamma=5.0,
    validation_steps=110,
    checkpointing_steps=110,
)
HELD_OUT = 1024  # scenes of validation


def train_masker(
    pipe: Any,
    folder: Path,
    *,
    mask: MaskGeneratorConfig = MASK,
    config: TrainConfig = TRAIN,
    style: str = "plain",
    pool: int = POOL,
    progress: bool = True,
) -> Run:
    """Train a masker for the bundled pipeline.

    Args:
        pipe: the bundled pipeline.
        folder: where the run is kept; the same call again resumes it.
        mask: settings of the masker.
        config: settings of the training.
        style: style of the pictures: "plain" or "art".
        pool: how many pictures.
        progress: show progress bars.
    """
    data = encode_scenes(pipe, [training_scene(i, TRAIN_SEED) for i in range(pool)], style, progress=progress)
    held_out = [training_scene(i, HELD_OUT_SEED) for i in range(HELD_OUT)]
    validation = encode_scenes(pipe, held_out, style, progress=progress)
    masker = MaskGenerator.for_unet(pipe.unet, mask, seed=config.seed)
    return train(pipe, masker, data, config, folder, validation=validation, progress=progress)
