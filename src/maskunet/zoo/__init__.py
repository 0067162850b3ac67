"""The models that come with the package: a small Stable Diffusion, a masker for it, a CLIP and three rewards.

`path("shapes")` is a folder in the standard diffusers format, so `StableDiffusionPipeline.from_pretrained` reads it
like any other checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..errors import CheckpointError

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPModel

#: Folders of weights by name, and what each is.
NAMES = {
    "shapes": "text-to-image pipeline",
    "shapes-masker": "masker for the pipeline",
    "shapes-clip": "CLIP of the shapes world, for features of pictures",
    "shapes-reward": "reward of the shapes world",
    "shapes-matching": "reward that reads the caption beside the picture",
    "shapes-referee": "a second reward, trained apart, that nothing is optimised for",
}
_WEIGHTS = Path(__file__).parent / "weights"


def path(name: str) -> Path:
    """Return the folder of a bundled model.

    Raises:
        CheckpointError: there is no such model, or its weights are missing from the installation.
    """
    if name not in NAMES:
        raise CheckpointError(f"expected a bundled model ({', '.join(NAMES)}), got {name!r}")
    folder = _WEIGHTS / name
    if not folder.is_dir():
        raise CheckpointError(f"expected the weights of {name!r} in {folder}, they are missing; reinstall maskunet")
    return folder


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
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(path(name), dtype=dtype, local_files_only=True)
    pipe.set_progress_bar_config(leave=False)
    return pipe.to(device)  # type: ignore[no-any-return]


def load_clip(*, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> CLIPModel:
    """Load the small CLIP of the shapes world, whose picture features measure distances between sets of pictures."""
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(path("shapes-clip"), dtype=dtype, local_files_only=True)
    return model.to(device).eval()  # type: ignore[no-any-return]
