"""`maskunet`: the commands. Heavy imports wait until a command runs, so that help is quick."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import MaskUNetError
from .analyze import analyze_app
from .evaluate import evaluate
from .options import BatchSize, Device, Dtype, Guidance, MaskerPath, Model, Seed, Steps, open_pipeline, read_prompts
from .search import search
from .train import train
from .ui import ui

app = typer.Typer(
    name="maskunet",
    help="Masks that switch off the parameters of a diffusion model that hurt, by timestep and by sample.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
zoo_app = typer.Typer(help="The bundled model: train it again, sample from it.", no_args_is_help=True)
app.add_typer(zoo_app, name="zoo")
app.add_typer(analyze_app, name="analyze")
app.command()(train)
app.command()(evaluate)
app.command()(search)
app.command()(ui)


@app.callback()
def _settings(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what the libraries do.")] = False,
) -> None:
    from ..allocator import keep_freed_memory

    keep_freed_memory()
    _share_cores()
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(message)s")
    if not verbose:
        _quiet()


def _share_cores() -> None:
    """Let OpenMP's threads sleep soon at a barrier; read when torch is imported, which no command has done yet.

    They spin for milliseconds by default. Where another process takes a core, a thread then waits for one that waits for
    it: a picture of the bundled model took thirty times as long.
    """
    import os

    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")


def _quiet() -> None:
    """Leave third-party chatter out of a user's terminal; errors still come through."""
    import os

    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the page and the pictures.")] = Path("demo"),
    count: Annotated[int, typer.Option(min=6, help="Prompts; they alternate over the six tasks.")] = 96,
    steps: Steps = 25,
    guidance_scale: Guidance = 4.0,
    seed: Seed = 0,
) -> None:
    """Main job on the bundled model: base against masked from the same noise, judged, as a table and a page."""
    from .demo import run_demo

    run_demo(output, count=count, steps=steps, guidance_scale=guidance_scale, seed=seed)


@app.command()
def generate(
    prompt: Annotated[list[str] | None, typer.Option(help="Prompt; may be repeated.")] = None,
    prompts_file: Annotated[Path | None, typer.Option(help="Text file with a prompt a line.")] = None,
    model: Model = "shapes",
    masker: MaskerPath = None,
    mask_every: Annotated[
        int | None, typer.Option(min=1, help="Side masks anew every so many steps; every step by default.")
    ] = None,
    mask_tolerance: Annotated[
        float | None, typer.Option(min=0.0, help="Side masks anew once their condition has moved by this share.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("pictures"),
    compare_base: Annotated[
        bool, typer.Option(help="Also make each picture without masks and SynGen, side by side.")
    ] = False,
    syngen: Annotated[
        bool, typer.Option(help="Bind modifiers to their nouns by attention (SynGen); needs spaCy but for 'shapes'.")
    ] = False,
    syngen_scale: Annotated[float, typer.Option(min=0.0, help="Length of SynGen's gradient steps.")] = 20.0,
    negative_prompt: Annotated[str | None, typer.Option(help="What to steer away from.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="ddim, euler, dpm-solver++, ...; the model's own.")] = None,
    steps: Steps = 25,
    guidance_scale: Guidance = 7.5,
    seed: Seed = 0,
    batch_size: BatchSize = 4,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Side pictures from prompts, with or without masks; each has its settings beside it as JSON."""
    from ..errors import DataError
    from .image_files import write_pictures
    from .options import hold_masks

    prompts = read_prompts(prompt, prompts_file)
    if compare_base and masker is None and not syngen:
        raise DataError("expected --masker or --syngen with --compare-base; without one there is nothing to compare")
    pipe = open_pipeline(model, masker, device, dtype, scheduler)
    settings: dict[str, Any] = {"model": model, "masker": masker, "scheduler": type(pipe.scheduler).__name__}
    if (mask_every or 1) > 1 or mask_tolerance is not None:
        hold_masks(pipe, mask_every, mask_tolerance)
        settings |= {"mask_every": mask_every, "mask_tolerance": mask_tolerance}
    make = None
    if syngen:
        from ..syngen import shapes_phrases, syngen_side

        make = syngen_side(
            pipe,
            phrases=shapes_phrases if model == "shapes" else None,
            scale=syngen_scale,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            negative_prompt=negative_prompt,
        )
        settings["syngen_scale"] = syngen_scale
    written = write_pictures(
        pipe,
        prompts,
        output,
        compare_base=compare_base,
        settings=settings,
        seed=seed,
        make=make,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        negative_prompt=negative_prompt,
        batch_size=batch_size,
    )
    typer.echo(f"{len(written)} pictures in {output}")


@app.command()
def info(
    source: Annotated[
        str, typer.Argument(help="A masker's folder or hub id, 'shapes-masker', or a model as in --model.")
    ],
    targets: Annotated[str, typer.Option(help="Targets to count in a model.")] = "decoder-attention",
) -> None:
    """Show the parameters, the targets and the density of a masker or a model."""
    from .info import describe_source

    for line in describe_source(source, targets):
        typer.echo(line)


@app.command()
def convert(
    mask_generators: Annotated[Path, typer.Argument(help="The authors' mask generators (.pth).")],
    adapters: Annotated[Path, typer.Argument(help="The authors' adapters (.pth).")],
    output: Annotated[Path, typer.Option(help="Folder for the masker.")],
    model: Annotated[str, typer.Option(help="The model that they were trained for.")],
) -> None:
    """Convert the authors' two checkpoint files into a masker's folder; only weights are read from the pickles."""
    from .convert import convert_authors

    path = convert_authors(mask_generators, adapters, output, model)
    typer.echo(f"masker in {path}")


@zoo_app.command("train")
def zoo_train(
    output: Annotated[Path, typer.Option(help="Folder that receives the models' folders.")] = Path("runs/zoo"),
    work: Annotated[Path | None, typer.Option(help="Folder of the runs under way; <output>/work by default.")] = None,
    share: Annotated[float, typer.Option(min=0.0001, max=1.0, help="Share of the recipe, to try it out.")] = 1.0,
    rewards_only: Annotated[
        bool, typer.Option("--rewards-only", help="Only the rewards and their referee, for the pipeline as it is.")
    ] = False,
) -> None:
    """Train the bundled model from nothing; the same command again resumes. About three hours on two CPU cores."""
    from ..zoo.recipe.pipeline import Recipe, train_rewards, train_shapes

    recipe = Recipe() if share == 1.0 else Recipe().shortened(share)
    folder = work or output / "work"
    if rewards_only:
        from .. import zoo

        pipe, clip = open_pipeline("shapes", None, "cpu", None, None), zoo.load_clip()
        typer.echo(f"reward in {train_rewards(pipe, output, folder, recipe, clip=clip)}")
    else:
        typer.echo(f"pipeline in {train_shapes(output, folder, recipe)}")


@zoo_app.command("sample")
def zoo_sample(
    output: Annotated[Path, typer.Option(help="PNG file for the sheet.")] = Path("sheet.png"),
    model: Model = "shapes",
    masker: MaskerPath = None,
    count: Annotated[int, typer.Option(min=1, help="Held-out prompts to draw.")] = 48,
    steps: Steps = 25,
    guidance_scale: Guidance = 4.0,
    seed: Seed = 0,
    device: Device = "cpu",
) -> None:
    """Draw a sheet of pictures from held-out prompts and say how many are right."""
    from .image_files import write_sheet

    pipe = open_pipeline(model, masker, device, None, None)
    right = write_sheet(pipe, output, count=count, steps=steps, guidance_scale=guidance_scale, seed=seed)
    typer.echo(f"{right} of {count} right; sheet in {output}")


def main() -> None:
    """Run the command line; a user's mistake ends in one line and exit code 2."""
    try:
        app(standalone_mode=True)
    except MaskUNetError as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        sys.exit(130)
