"""`maskunet export`: a model with merged masks, for programs that know nothing of masks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import SettingError
from .checks import check_output, finite, read_prompts
from .defaults import guidance_scale as guidance_of
from .defaults import num_inference_steps
from .loading import check_scheduler, local_device, open_masker
from .options import Device, Guidance, Prompts, PromptsFile, Scheduler, Seed, Steps, option

_PICKLES = (".ckpt", ".pt", ".pth", ".bin")
#: What was written, and what reads it.
_WRITTEN = {
    "pipeline": "pipeline       {}, for diffusers",
    "checkpoint": "checkpoint     {}, for every program that reads the model's own file",
    "U-Net": "U-Net          {}, without text encoder and autoencoder, for diffusers and ComfyUI (Load Diffusion Model)",
}


def export(
    masker: Annotated[
        str, typer.Option(help="Masker: a folder, a hub id, 'shapes-masker', or a search's output folder.")
    ],
    output: Annotated[Path, typer.Option(help="New folder for a pipeline, or new .safetensors file.")],
    model: Annotated[str, typer.Option(help="Model: 'shapes', a diffusers folder, a .safetensors file or a hub id.")],
    strength: Annotated[
        float,
        option(
            text="How strongly the masks act, from 0 (the base model) to 1.",
            default="1",
            min=0,
            max=1,
            callback=finite,
        ),
    ] = 1.0,
    prompt: Prompts = None,
    prompts_file: PromptsFile = None,
    steps: Steps = None,
    guidance_scale: Guidance = None,
    scheduler: Scheduler = None,
    seed: Seed = 0,
    dtype: Annotated[
        str | None, option(text="float32, float16 or bfloat16, of the written weights.", default="float32")
    ] = None,
    device: Device = None,
) -> None:
    """Write a model with a masker's masks merged into its weights, which any program reads without maskunet.

    Exact for masks that are the same at every step and for every sample. Others need prompts: the majority of their masks
    over a run is merged, and what that loses is printed.
    """
    check_output(output.parent)
    check_scheduler(scheduler)
    if output.suffix in _PICKLES:
        raise SettingError(f"expected --output to be a folder or a .safetensors file, got {str(output)!r}")
    from .. import pipelines
    from ..merging import export as write
    from ..merging import merge
    from ..merging.export_files import check_new

    check_new(output)
    torch_device = local_device(device)
    loaded_masker = open_masker(masker)
    prompts = _prompts(loaded_masker, prompt, prompts_file)
    # A merge without a run only multiplies, which the CPU does in any dtype.
    torch_dtype = pipelines.DTYPES.get(dtype) if dtype and prompts is None else None
    torch_dtype = torch_dtype or pipelines.choose_dtype(dtype or "float32", torch_device)
    pipelines.silence_loading()
    pipe = pipelines.load_pipeline(model, dtype=torch_dtype, device=torch_device)
    pipe.set_progress_bar_config(disable=True)
    options: dict[str, Any] = {
        "seeds": seed,
        "num_inference_steps": num_inference_steps(model, steps),
        "guidance_scale": guidance_of(model, guidance_scale),
    }
    with _scheduler(pipe, scheduler):  # the exported pipeline keeps the model's own
        merged = merge(pipe, loaded_masker, strength, prompts=prompts, **options)
    typer.echo(f"density        {merged.density:.4f} of {merged.network.weights:,} weights")
    if prompts is None:
        typer.echo("loss           none: the masks depend on nothing")
    else:
        typer.echo(
            f"loss           {merged.disagreement:.4f} of the weights have another mask than the masker's, mean of "
            f"{options['num_inference_steps']} steps and {len(prompts)} prompts"
        )
    typer.echo(_WRITTEN[write(pipe, output, base_model=model, masker=masker)].format(output))


def _prompts(masker: Any, prompt: list[str] | None, file: Path | None) -> list[str] | None:
    """Return the prompts of the run that masks are taken from; None for masks that depend on nothing.

    Raises:
        SettingError: the masks depend on something and there are no prompts.
        DataError: an empty prompt, or a file that cannot be read.
    """
    if prompt is not None or file is not None:
        prompts = read_prompts(prompt, file)
        return prompts if masker.conditions else None
    if masker.conditions:
        raise SettingError(
            f"expected --prompt or --prompts-file, since the masks depend on the {' and the '.join(masker.conditions)}; "
            "their majority over a run is merged, which loses that"
        )
    return None


@contextlib.contextmanager
def _scheduler(pipe: Any, name: str | None) -> Iterator[None]:
    """Run with another scheduler inside the context."""
    import diffusers

    from ..pipelines import SCHEDULERS

    own = pipe.scheduler
    if name is not None:
        class_name, overrides = SCHEDULERS[name]
        pipe.scheduler = getattr(diffusers, class_name).from_config(own.config, **overrides)
    try:
        yield
    finally:
        pipe.scheduler = own
