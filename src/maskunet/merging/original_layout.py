"""Merged masks in a checkpoint of the original layout (`model.diffusion_model.…`), which most other programs read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import DataError
from .merged_masks import MergedMasks, mask_weight


def masked_checkpoint(
    path: Path, unet: Any, merged: MergedMasks
) -> tuple[dict[str, Tensor], Mapping[str, str]] | None:
    """Return the tensors and metadata of a checkpoint file with masked weights; all others are as they were.

    Args:
        path: a `.safetensors` file.
        unet: the U-Net that was read from it.
        merged: the masks.

    Returns:
        None if it is no file of the original layout.

    Raises:
        DataError: it also holds averaged (EMA) weights of the U-Net, which other programs may prefer.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {"format": "pt"}
    except (OSError, SafetensorError):
        return None
    names = original_names(tensors, dict(unet.config))
    layers = [layer.name for layer in merged.network.layers]
    if not all(f"{layer}.weight" in names for layer in layers):
        return None
    if any(key.startswith("model_ema.") for key in tensors):
        raise DataError(
            f"expected a checkpoint without averaged weights (model_ema) to mask, {path} has some; export a folder instead"
        )
    for layer in layers:
        weight = tensors[names[f"{layer}.weight"]]
        mask_weight(weight, merged.mask(layer, weight), merged.strength_of(layer))
    return tensors, metadata


def original_names(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, str]:
    """Return the names of U-Net parameters in a checkpoint of the original layout, by their names in diffusers.

    Args:
        tensors: the checkpoint.
        config: the U-Net's config.
    """
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    try:
        converted = convert_ldm_unet_checkpoint(dict(tensors), dict(config))
    except (KeyError, IndexError, ValueError):  # another layout
        return {}
    # diffusers' own conversion renames the tensors without copying them.
    keys = {id(tensor): key for key, tensor in tensors.items()}
    return {name: keys[id(tensor)] for name, tensor in converted.items() if id(tensor) in keys}
