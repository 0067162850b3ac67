"""Defaults of the bundled model: the settings that commands, the page and studies use for `shapes` if you set none.

Imports no torch, so that the command line can show them at once.
"""

from __future__ import annotations

from typing import Any

from ..settings import BUNDLED_GUIDANCE_SCALE

#: Classifier-free guidance of images and of validation.
GUIDANCE_SCALE = BUNDLED_GUIDANCE_SCALE
#: Denoising steps.
NUM_INFERENCE_STEPS = 25
#: Height and width of an image, in pixels.
RESOLUTION = 64
#: The reward that searches and training optimise.
REWARD = "shapes-matching"
#: The network whose features measure distances between sets of images.
FEATURES = "shapes"
#: Fields of `TrainConfig` that differ from the defaults, which fit SD 1.5: images of 64 pixels fit in large batches.
TRAIN: dict[str, Any] = {
    "train_batch_size": 64,
    "gradient_accumulation_steps": 1,
    "mixed_precision": "no",
    "validation_samples": 1024,
    "validation_batch_size": 64,
    "validation_guidance_scale": GUIDANCE_SCALE,
    "reward_guidance_scale": GUIDANCE_SCALE,
    "reward_batch_size": 8,
}
#: The task at chance: the bundled model ignores words of relation.
CHANCE_TASK = "position"
