"""Defaults of the bundled model: what every command takes for `shapes` where nothing else is asked for."""

from __future__ import annotations

from typing import Any

GUIDANCE_SCALE = 4.0
NUM_INFERENCE_STEPS = 25
RESOLUTION = 64
REWARD = "shapes-matching"
FEATURES = "shapes"
#: Settings of `TrainConfig` that differ from those of a large model: images of 64 pixels fit in large batches.
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
