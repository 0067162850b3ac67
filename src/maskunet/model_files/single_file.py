"""Single files: whole checkpoints of Stable Diffusion in the layout of their original code, as A1111 and kohya save them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..errors import CheckpointError, first_line

#: Prefix of the U-Net in original checkpoints.
ORIGINAL = "model.diffusion_model."
_FIRST_CONVOLUTION = f"{ORIGINAL}input_blocks.0.0.weight"
UNETS = ("diffusers U-Net", "original U-Net")
#: Pipelines by the kinds of models that diffusers tells apart.
_PIPELINES = {
    "v1": "StableDiffusionPipeline",
    "v2": "StableDiffusionPipeline",
    "inpainting": "StableDiffusionInpaintPipeline",
    "inpainting_v2": "StableDiffusionInpaintPipeline",
    "xl_base": "StableDiffusionXLPipeline",
    "playground-v2-5": "StableDiffusionXLPipeline",
    "xl_inpaint": "StableDiffusionXLInpaintPipeline",
    "xl_refiner": "StableDiffusionXLImg2ImgPipeline",
}
_CONFIG_FILES = ["*.json", "*/*.json", "*/*.txt", "*/*.model"]


def read_shapes(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file without their values.

    Args:
        path: the file.
    """
    with safe_open(path, "pt") as file:
        names = list(file.keys())
        return {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in names}


def content_of(names: Iterable[str]) -> str:
    """Return what a file holds: "checkpoint", "diffusers U-Net", "original U-Net", or a description of something else.

    Args:
        names: names of its tensors.
    """
    names = set(names)

    def has(*prefixes: str) -> bool:
        return any(name.startswith(prefixes) for name in names)

    if has("lora_unet_", "lora_te") or any(".lora_" in name or ".lora." in name for name in names):
        return "a LoRA, which goes on a base model: load the base and call pipe.load_lora_weights"
    if _FIRST_CONVOLUTION in names and has("first_stage_model.") and has("cond_stage_model.", "conditioner."):
        return "checkpoint"
    if "conv_in.weight" in names and has("down_blocks.") and has("time_embedding."):
        return "diffusers U-Net"
    if _FIRST_CONVOLUTION in names or "input_blocks.0.0.weight" in names:
        return "original U-Net"
    if has("first_stage_model.", "decoder.conv_in."):
        return "an autoencoder"
    if has(
        "double_blocks.",
        f"{ORIGINAL}double_blocks.",
        "joint_blocks.",
        f"{ORIGINAL}joint_blocks.",
        "transformer_blocks.",
    ):
        return "a transformer (Flux or Stable Diffusion 3), which has no U-Net"
    return f"tensors such as {min(names, default='none')!r:.80}"


def read_single_file(path: Path, *, dtype: torch.dtype, config: str | None = None) -> Any:
    """Read a whole checkpoint of Stable Diffusion 1.x, 2.x or XL, also of their inpainting models.

    Args:
        path: the .safetensors file.
        dtype: dtype of the weights.
        config: a pipeline's folder or hub id whose configs and tokenizer fit the file; the kind's own on the hub if None.

    Raises:
        CheckpointError: the file holds something else, or its configs cannot be had.
    """
    import diffusers
    from diffusers.loaders.single_file_utils import fetch_diffusers_config, infer_diffusers_model_type

    shapes = read_shapes(path)
    content = content_of(shapes)
    if content in UNETS:
        raise CheckpointError(
            f"expected a whole checkpoint in {str(path)!r}, got a U-Net alone; pass it as unet (--unet) with a base model"
        )
    if content != "checkpoint":
        raise CheckpointError(f"expected a checkpoint of Stable Diffusion 1, 2 or XL in {str(path)!r}, got {content}")
    kind = infer_diffusers_model_type(shapes)
    channels = shapes[_FIRST_CONVOLUTION].shape[1]
    if kind not in _PIPELINES or channels not in (4, 9):
        raise CheckpointError(
            f"expected a text-to-image or inpainting model of Stable Diffusion 1, 2 or XL in {str(path)!r}, got a U-Net of "
            f"{channels} input channels ({kind})"
        )
    folder = _config_folder(config or fetch_diffusers_config(shapes)["pretrained_model_name_or_path"], path, config)
    pipeline_class = getattr(diffusers, _PIPELINES[kind])
    return pipeline_class.from_single_file(str(path), config=str(folder), dtype=dtype, local_files_only=True)


def _config_folder(source: str, path: Path, config: str | None) -> Path:
    """The folder with the configs and the tokenizer of a kind of model, from this disk or the hub."""
    from huggingface_hub import snapshot_download

    folder = Path(source).expanduser()
    if not folder.is_dir():
        try:
            if source.count("/") != 1:
                raise CheckpointError("there is no such folder")
            folder = Path(snapshot_download(source, allow_patterns=_CONFIG_FILES))
        except Exception as error:  # the hub's clients raise types of their own
            raise CheckpointError(
                f"expected the configs of {source!r} for the file {str(path)!r}, could not get them: {first_line(error)}. "
                + ("Pass" if config is None else "config (--config) takes")
                + " a folder in the diffusers format of such a model; its weights may be missing"
                + (" from it, as config (--config)." if config is None else ".")
            ) from error
    if not (folder / "model_index.json").is_file():
        raise CheckpointError(f"expected a folder with a model_index.json as config (--config), {source!r} has none")
    return folder


def original_unet(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a U-Net in the original layout, all under their usual prefix.

    Args:
        tensors: tensors by name, with or without the prefix.
    """
    if _FIRST_CONVOLUTION in tensors:
        return {name: tensor for name, tensor in tensors.items() if name.startswith(ORIGINAL)}
    return {ORIGINAL + name: tensor for name, tensor in tensors.items()}
