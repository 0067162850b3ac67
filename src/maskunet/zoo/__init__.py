"""The models that come with the package: a small Stable Diffusion, a masker for it, a CLIP and three rewards.

`path("shapes")` is a folder in the standard diffusers format, so `StableDiffusionPipeline.from_pretrained` reads it
like any other checkpoint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..errors import CheckpointError
from ..pipelines import load_pipeline
from ..pretrained import bundled_path

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPModel

path = bundled_path


def load(
    name: str = "shapes", *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> StableDiffusionPipeline:
    """Load the bundled text-to-image pipeline.

    Args:
        name: "shapes".
        dtype: dtype of its weights (the files hold half precision, but for the text encoder).
        device: where to put it.

    Raises:
        CheckpointError: no pipeline has that name.
    """
    if name != "shapes":
        raise CheckpointError(f"expected a bundled pipeline ('shapes'), got {name!r}")
    pipe = load_pipeline(name, dtype=dtype, device=device)
    pipe.set_progress_bar_config(leave=False)
    return pipe  # type: ignore[no-any-return]


def load_clip(*, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> CLIPModel:
    """Load the small CLIP of the shapes world, whose picture features measure distances between sets of pictures."""
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(path("shapes-clip"), dtype=dtype, local_files_only=True)
    return model.to(device).eval()  # type: ignore[no-any-return]
