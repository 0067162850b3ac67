"""`maskunet convert`: the authors' checkpoints as a masker."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .checks import check_output


def convert(
    mask_generators: Annotated[Path, typer.Argument(help="The authors' mask generators (.pth).")],
    adapters: Annotated[Path, typer.Argument(help="The authors' adapters (.pth).")],
    model: Annotated[str, typer.Option(help="Model that they were trained for, such as a hub id.")],
    output: Annotated[Path, typer.Option(help="Folder for the masker.")],
) -> None:
    """Convert the authors' two checkpoint files into a masker; only weights are read from the pickles."""
    check_output(output)
    typer.echo(f"masker in {convert_authors(mask_generators, adapters, output, model)}")


def convert_authors(mask_generators: Path, adapters: Path, output: Path, model: str) -> Path:
    """Convert the authors' two files into a masker's folder.

    Args:
        mask_generators: the authors' mask generators.
        adapters: the authors' adapters.
        output: folder for the masker.
        model: the model that they were trained for.

    Returns:
        The masker's folder.

    Raises:
        CheckpointError: a file that is not a state dict, or that does not fit the model.
    """
    from ..maskers import MaskGenerator
    from ..pipelines import load_pipeline, silence_loading

    states = _state_dict(mask_generators), _state_dict(adapters)
    silence_loading()
    pipe = load_pipeline(model)
    return Path(MaskGenerator.from_authors(pipe.unet, *states).save_pretrained(output, base_model=model))


def _state_dict(path: Path) -> dict[str, Any]:
    import torch

    from ..errors import CheckpointError, first_line

    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # a wrong file can raise anything from the unpickler
        raise CheckpointError(
            f"expected a state dict of tensors in {path} (weights only), could not read it: {first_line(error)}"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not state or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise CheckpointError(f"expected a state dict of tensors in {path}, got {type(state).__name__}")
    return state
