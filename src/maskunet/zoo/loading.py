"""Load the bundled models by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..errors import CheckpointError
from ..moving import outside_inference_mode
from ..pipelines import load_pipeline
from ..pretrained import bundled_path

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPModel


def load(
    name: str = "shapes", *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> StableDiffusionPipeline:
    """Load the bundled text-to-image pipeline.

    Args:
        name: "shapes", the only one.
        dtype: dtype of its networks; the files hold float16, and float32 for the text encoder.
        device: device of its networks.

    Returns:
        The pipeline: images of 64 by 64 pixels, prompts of the shapes world.

    Raises:
        CheckpointError: no pipeline has that name.
    """
    if name != "shapes":
        raise CheckpointError(f"expected a bundled pipeline ('shapes'), got {name!r}")
    pipe = load_pipeline(name, dtype=dtype, device=device)
    pipe.set_progress_bar_config(leave=False)
    return pipe  # type: ignore[no-any-return]


@outside_inference_mode()
def load_clip(*, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> CLIPModel:
    """Load the small CLIP of the shapes world, whose image features measure distances between sets of images.

    Args:
        dtype: dtype of its weights; the files hold float16.
        device: device of its weights.

    Raises:
        CheckpointError: its weights are missing from the installation.
    """
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(path("shapes-clip"), dtype=dtype, local_files_only=True)
    return model.to(device).eval()  # type: ignore[no-any-return]


def path(name: str) -> Path:
    """Return the folder of a bundled model.

    Args:
        name: "shapes" (pipeline, in diffusers' format), "shapes-masker", "shapes-clip", "shapes-reward", "shapes-matching"
            or "shapes-referee" (in transformers' format, the matcher excepted).

    Raises:
        CheckpointError: no such model, or its weights are missing from the installation.
    """
    return bundled_path(name)
