"""What the commands share: their options, opening a pipeline with its masker, reading prompts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

Model = Annotated[str, typer.Option(help="Pipeline: 'shapes', a diffusers folder, a .safetensors file or a hub id.")]
MaskerPath = Annotated[
    str | None,
    typer.Option(
        "--masker",
        "--masks",
        help="Masker: a folder, a hub id, 'shapes', or a search's output, whose masks are merged; none for the base.",
    ),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; the first accelerator by default.")]
Dtype = Annotated[str | None, typer.Option(help="float32, float16 or bfloat16; the device's usual one by default.")]
Steps = Annotated[int, typer.Option(min=1, help="Denoising steps.")]
Guidance = Annotated[float, typer.Option(help="Strength of classifier-free guidance.")]
Rewards = Annotated[
    list[str] | None,
    typer.Option(
        help="NAME, NAME:WEIGHT, NAME=SOURCE or NAME=SOURCE:WEIGHT; may be repeated. The bundled model has its own."
    ),
]
Preset = Annotated[str | None, typer.Option(help="Of the search: default, masks, fast or paper.")]
Seed = Annotated[int, typer.Option(help="Seed; picture i has the noise of seed + i.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Prompts a call.")]


def local_device(name: str | None) -> Any:
    """Return the device to run on; under torchrun, the process's own GPU.

    Raises:
        DataError: no such device here.
    """
    import torch

    from ..pipelines import choose_device

    where, local = choose_device(name), os.environ.get("LOCAL_RANK")
    own = local is not None and where.type == "cuda" and where.index is None
    return torch.device("cuda", int(local)) if own and local else where


def open_pipeline(model: str, masker: str | None, device: str | None, dtype: str | None, scheduler: str | None) -> Any:
    """Load a masker and a pipeline, and attach the one to the other."""
    from .. import attach, pipelines

    where = local_device(device)
    found = None if masker is None else open_masker(masker)
    pipelines.silence_loading()
    pipe = pipelines.load_pipeline(
        model, dtype=pipelines.choose_dtype(dtype, where), device=where, scheduler=scheduler
    )
    if found is not None:
        attach(pipe, found)
    return pipe


def open_masker(source: str) -> Any:
    """Load a masker, or the schedules of a search's output folder, merged by majority where there are several."""
    from .. import load, zoo
    from ..maskers import MaskSchedule

    if source in ("shapes", "shapes-masker"):
        return load(zoo.path("shapes-masker"))
    folder = Path(source)
    parts = sorted(p.parent for p in folder.glob("masks/*/config.json"))
    if (folder / "config.json").is_file() or not parts:
        return load(source)
    found = [masker for masker in map(load, parts) if isinstance(masker, MaskSchedule)]
    if len(found) == 1:
        return found[0]
    typer.echo(f"merged {len(found)} schedules of {folder} by majority; one alone is at {parts[0]}")
    return MaskSchedule.merge(found)


def reward_sources(given: list[str] | None, model: str) -> list[str]:
    """Return the descriptions of rewards that were given, or the bundled one's with the bundled model.

    Raises:
        DataError: none given, and the model has none of its own.
    """
    from ..errors import DataError
    from ..zoo import defaults

    if not given and model != "shapes":
        raise DataError("expected --reward (as image-reward, hpsv2:5); only the model 'shapes' has one of its own")
    return list(given or [defaults.REWARD])


def open_rewards(sources: list[str], pipe: Any) -> Any:
    """Load the weighted sum of rewards, on the pipeline's device and in its precision.

    Raises:
        RewardError: an unknown name, or a weight that is no number.
        CheckpointError: its weights cannot be read.
    """
    from ..rewards import parse_reward

    return parse_reward(sources).to(pipe.unet.device, pipe.unet.dtype)


def read_prompts(given: list[str] | None, file: Path | None) -> list[str]:
    """Return the prompts given and those of a file, a prompt a line.

    Raises:
        DataError: none, an empty one, or a file that cannot be read.
    """
    from ..errors import DataError

    prompts = list(given or [])
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"expected a text file with a prompt a line, could not read {file}: {error}") from error
        found = [line.strip() for line in lines if line.strip()]
        if not found:
            raise DataError(f"expected a prompt a line in {file}, it has none")
        prompts += found
    if any(not p.strip() for p in prompts) or not prompts:
        raise DataError("expected at least one prompt and no empty one; give --prompt or --prompts-file")
    return prompts


def hold_masks(pipe: Any, every: int | None, tolerance: float | None) -> None:
    """Let the masks of the attached masker serve for several steps; see `HeldMasks`.

    Raises:
        DataError: no masker is attached.
    """
    from ..attaching.attachment import attach, attachment_of
    from ..errors import DataError
    from ..maskers import HeldMasks

    attachment = attachment_of(pipe)
    if attachment is None:
        raise DataError(
            "expected --masker with --mask-every or --mask-tolerance; without one there is nothing to hold"
        )
    attach(pipe, HeldMasks(attachment.masker, every=every, tolerance=tolerance))
