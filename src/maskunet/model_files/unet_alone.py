"""U-Nets without a pipeline: a folder or a file that takes the place of the U-Net of a base model."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ..errors import CheckpointError, first_line
from .single_file import UNETS, content_of, original_unet, read_shapes
from .variants import choose_variant

#: Pipelines from text, and those that give the 9 channels of inpainting.
_INPAINTING = {
    "StableDiffusionPipeline": "StableDiffusionInpaintPipeline",
    "StableDiffusionXLPipeline": "StableDiffusionXLInpaintPipeline",
}
#: Settings that the text encoders and the rest of a pipeline determine.
_SHARED = ("cross_attention_dim", "addition_embed_type", "projection_class_embeddings_input_dim", "out_channels")


def put_unet(pipe: Any, source: str) -> Any:
    """Replace the U-Net of a pipeline, in place.

    Args:
        pipe: the base model's pipeline.
        source: a U-Net's folder, a folder with a `unet/`, a .safetensors file in the layout of diffusers or of the original
            code, or a hub id.

    Returns:
        The pipeline.

    Raises:
        CheckpointError: the source holds no U-Net, or not one for this pipeline.
    """
    base = pipe.unet
    try:
        path = Path(source).expanduser()
        if path.is_file():
            unet = _from_file(path, base)
        elif path.is_dir():
            unet = _from_folder(path, type(base), base.dtype)
        elif source.count("/") == 1 and not source.startswith((".", "/", "~")):
            unet = _from_hub(source, type(base), base.dtype)
        else:
            raise CheckpointError(
                f"expected unet (--unet) to be a folder, a .safetensors file or a hub id, {source!r} is not there"
            )
    except CheckpointError:
        raise
    except Exception as error:  # diffusers, safetensors and hub clients raise types of their own
        raise CheckpointError(
            f"expected a U-Net that diffusers can read as unet (--unet), {source!r} is not: {first_line(error)}"
        ) from error
    for name in _SHARED:
        expected, got = base.config.get(name), unet.config.get(name)
        if expected != got:
            raise CheckpointError(
                f"expected a U-Net for this model ({name} {expected}), {source!r} has {got}; name its own base as model"
            )
    pipe.register_modules(unet=unet.to(base.device).eval())
    return pipe


def _from_file(path: Path, base: Any) -> Any:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"expected a .safetensors file as unet (--unet), got {str(path)!r}; pickles are not read. Convert it: "
            "safetensors.torch.save_file(torch.load(FILE, weights_only=True), NEW_FILE)"
        )
    shapes = read_shapes(path)
    content = content_of(shapes)
    if content not in ("checkpoint", *UNETS):
        raise CheckpointError(f"expected a U-Net in {str(path)!r}, got {content}")
    tensors, config = load_file(path), dict(base.config)
    if content == "diffusers U-Net":
        first = tensors["conv_in.weight"]
    else:
        tensors = convert_ldm_unet_checkpoint(original_unet(tensors), config)
        first = tensors["conv_in.weight"]
    unet = type(base).from_config(config | {"in_channels": first.shape[1]})
    try:
        unet.load_state_dict(tensors)
    except RuntimeError as error:
        reason = next((line.strip() for line in str(error).splitlines()[1:] if line.strip()), first_line(error))
        raise CheckpointError(
            f"expected a U-Net of the base model's kind in {str(path)!r}, got another: {reason:.160}"
        ) from error
    return unet.to(base.dtype)


def _from_folder(path: Path, unet_class: Any, dtype: torch.dtype) -> Any:
    folder = path / "unet" if (path / "unet" / "config.json").is_file() else path
    config = folder / "config.json"
    if not config.is_file():
        raise CheckpointError(f"expected a U-Net's config.json in {str(path)!r} or its unet/, there is none")
    kind = json.loads(config.read_text()).get("_class_name")
    if kind != unet_class.__name__:
        raise CheckpointError(f"expected a {unet_class.__name__} in {str(folder)!r}, got {kind}")
    variant = choose_variant([f"unet/{file.name}" for file in folder.iterdir()], None, str(folder))
    return _complete(unet_class, str(folder), variant=variant, dtype=dtype, local_files_only=True)


def _from_hub(source: str, unet_class: Any, dtype: torch.dtype) -> Any:
    try:
        return _complete(unet_class, source, subfolder="unet", dtype=dtype)
    except OSError:  # a repository of the U-Net alone
        return _complete(unet_class, source, dtype=dtype)


def _complete(unet_class: Any, source: str, **options: Any) -> Any:
    """Read a U-Net; refuse one with weights that its files lack, since they would be random."""
    unet, report = unet_class.from_pretrained(source, use_safetensors=True, output_loading_info=True, **options)
    problems = [*report["missing_keys"], *report.get("mismatched_keys", [])]
    if problems:
        raise CheckpointError(
            f"expected a complete U-Net in {source!r}, {len(problems)} tensors are missing, such as {problems[0]!r}"
        )
    return unet


def fit_pipeline(pipe: Any) -> Any:
    """Return a pipeline whose class feeds its U-Net: 9 input channels need an inpainting pipeline.

    Args:
        pipe: a pipeline.
    """
    import diffusers

    name = _INPAINTING.get(type(pipe).__name__)
    if name is None or pipe.unet.config.in_channels != 9:
        return pipe
    kind = getattr(diffusers, name)
    names = inspect.signature(kind.__init__).parameters
    parts = {key: part for key, part in pipe.components.items() if key in names}
    settings = {key: pipe.config[key] for key in names if key not in parts and key in pipe.config}
    fitting = kind(**parts, **settings)
    fitting.register_to_config(_name_or_path=pipe.config.get("_name_or_path"))
    return fitting
