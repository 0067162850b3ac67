"""What `maskunet convert` does."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..maskers import MaskGenerator
from ..pipelines import load_pipeline, silence_loading


def _state_dict(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # a wrong file can raise anything from the unpickler
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(
            f"expected a state dict of tensors in {path} (weights only), could not read it: {lines[0]}"
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"expected a state dict of tensors in {path}, got {type(state).__name__}")
    return state


def convert_authors(mask_generators: Path, adapters: Path, output: Path, model: str) -> Path:
    """Convert the authors' two files into a masker's folder.

    Raises:
        CheckpointError: a file that is not a state dict, or that does not fit the model.
    """
    states = _state_dict(mask_generators), _state_dict(adapters)
    silence_loading()
    pipe = load_pipeline(model)
    return Path(MaskGenerator.from_authors(pipe.unet, *states).save_pretrained(output, base_model=model))
