"""A tiny safety checker of the real class, which flags a chosen image."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessor

from maskunet.images import to_pil
from tiny_pipelines import seeded

_TINY = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32}


def add_checker(pipe: Any, flagged: Tensor, passed: Tensor) -> None:
    """Give a pipeline a safety checker that flags what looks more like one image than like another.

    Args:
        pipe: a Stable Diffusion pipeline; its images are checked from now on.
        flagged: image (3, H, W) in [0, 1] to flag.
        passed: image (3, H, W) in [0, 1] to pass.
    """
    config = CLIPConfig.from_dict(
        {"vision_config": _TINY | {"image_size": 16, "patch_size": 8, "initializer_range": 3.0}, "projection_dim": 16}
    )
    processor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    checker = seeded(lambda: StableDiffusionSafetyChecker(config))
    pixels = processor(to_pil(torch.stack([flagged, passed])), return_tensors="pt").pixel_values
    with torch.no_grad():
        embeds = checker.visual_projection(checker.vision_model(pixels)[1])
        first, second = torch.nn.functional.normalize(embeds)
        checker.concept_embeds.copy_((first - second).expand(17, -1))
        checker.concept_embeds_weights.fill_(0.0)
        assert float((first - second).norm()) > 0.01  # the checker rounds its scores
    pipe.register_modules(safety_checker=checker, feature_extractor=processor)
