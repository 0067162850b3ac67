"""Write a model with merged masks for other programs: a pipeline's folder, or one `.safetensors` file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from ..checkpoint import hub_id
from ..errors import DataError, TargetError, first_line
from ..files import save_folder, save_whole
from ..pretrained import local_path
from ..sampling.supported_pipelines import check_is_pipeline
from ..targets import unet_of
from .merged_masks import MergedMasks, merged_masks_of
from .original_layout import masked_checkpoint


def export(
    pipe: Any,
    output: str | os.PathLike[str],
    *,
    base_model: str | None = None,
    masker: str | None = None,
) -> str:
    """Write a pipeline with merged masks, in safetensors only and all or nothing.

    Args:
        pipe: the pipeline that masks were merged into.
        output: a new folder, for a pipeline in the diffusers format; or a new `.safetensors` file. A file has the format
            of `base_model` if that is a file too, in which only the masked weights differ; else it holds the U-Net alone,
            in the diffusers format.
        base_model: path or hub id of the model, for the card; its file is read again for a file.
        masker: path or hub id of the masker, for the card.

    Returns:
        What was written: "pipeline", "U-Net" or "checkpoint".

    Raises:
        TargetError: no masks are merged, or a LoRA lies beside the weights.
        DataError: the output exists already, or cannot be written.
    """
    path = Path(output)
    unet = unet_of(pipe)
    merged = merged_masks_of(unet)
    if merged is None:
        raise TargetError(
            "expected a pipeline with merged masks to export, none are merged; call maskunet.merge first"
        )
    if any(".base_layer." in name for name in unet.state_dict()):
        raise TargetError(
            "expected a U-Net without a LoRA to export, one lies beside its weights; call unload_lora_weights first, or "
            "fuse it into the base before the merge"
        )
    check_new(path)
    note = describe_merge(merged, base_model, masker)
    if path.suffix != ".safetensors":
        check_is_pipeline(pipe)

        def write(folder: Path) -> None:
            pipe.save_pretrained(folder, safe_serialization=True)
            (folder / "README.md").write_text(_card(note, base_model), encoding="utf-8")

        _save(path, save_folder, write)
        return "pipeline"
    checkpoint = masked_checkpoint(local_path(base_model), unet, merged) if base_model else None
    tensors, metadata = checkpoint or (_cpu_tensors(unet), {"format": "pt"})
    _save(path, save_whole, lambda part: save_file(tensors, part, metadata=dict(metadata) | {"maskunet": note}))
    return "U-Net" if checkpoint is None else "checkpoint"


def _cpu_tensors(unet: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in unet.state_dict().items()}


def check_new(path: Path) -> None:
    """Refuse an output that exists already, so that nothing of a user's is replaced.

    Args:
        path: the file or folder.

    Raises:
        DataError: it exists, and is no empty folder.
    """
    if path.is_dir() and path.suffix != ".safetensors":
        if not any(path.iterdir()):
            return
        raise DataError(f"expected a new or empty folder to export to, {path} holds files; choose another")
    if path.exists():
        raise DataError(f"expected a new file or folder to export to, {path} exists; choose another, or remove it")


def _save(path: Path, save: Any, write: Any) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save(path, write)
    except (OSError, SafetensorError) as error:
        raise DataError(f"expected an output that can be written, {path} cannot be: {first_line(error)}") from error


def describe_merge(merged: MergedMasks, base_model: str | None, masker: str | None) -> str:
    """Return one line that says what was merged into what, for cards and files.

    Args:
        merged: the merged masks.
        base_model: path or hub id of the model.
        masker: path or hub id of the masker.
    """
    strength = merged.strength
    shown = json.dumps(dict(strength)) if isinstance(strength, Mapping) else f"{strength:g}"
    text = (
        f"Masks of {_public(masker) or f'a {merged.masker}'} are merged into the U-Net of "
        f"{_public(base_model) or 'the base model'} at strength {shown}: {merged.density:.2%} of "
        f"{merged.network.weights:,} weights in {len(merged.network.layers)} layers are kept."
    )
    if merged.disagreement:
        text += (
            f" They are the majority of masks that depend on the timestep or the sample, and differ from those in "
            f"{merged.disagreement:.2%} of the weights on average."
        )
    return text


def _public(source: str | None) -> str | None:
    """A name that others can use: only the last part of a path, which is private."""
    return source and (hub_id(source) or Path(source).name)


def _card(note: str, base_model: str | None) -> str:
    header = ["---", "library_name: diffusers", "pipeline_tag: text-to-image"]
    if (model := hub_id(base_model)) is not None:
        header += [f"base_model: {model}"]
    header += ["tags:", "- maskunet", "- text-to-image", "- diffusers", "---", ""]
    use = ["## Use", "", "```python", "from diffusers import DiffusionPipeline", ""]
    use += ['pipe = DiffusionPipeline.from_pretrained("this folder or repository")', "```", ""]
    return "\n".join([*header, "# Stable Diffusion with merged masks", "", note, "", *use])
