"""`maskunet zoo`: train the bundled model again, and sample from it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .app import Command, new_app
from .checks import check_output, check_seeds, finite
from .defaults import guidance_scale as guidance_of
from .defaults import num_inference_steps
from .loading import open_pipeline
from .options import MAX_IMAGES, Device, Guidance, MaskerSource, Model, Seed, Steps, option, output

zoo_app = new_app("Train the bundled model again, or sample from it.")


@zoo_app.command("train", cls=Command)
def zoo_train(
    output: Annotated[Path, output("Folder that receives the models' folders.", "runs/zoo")] = Path("runs/zoo"),
    work: Annotated[Path | None, option(text="Folder of the unfinished runs.", default="OUTPUT/work")] = None,
    share: Annotated[
        float, option(text="Share of the recipe to run, as a trial.", default=1, min=0.0001, max=1.0, callback=finite)
    ] = 1.0,
    rewards_only: Annotated[
        bool, option("--rewards-only", text="Train only the rewards, for the bundled pipeline.", default="off")
    ] = False,
) -> None:
    """Train the bundled model from nothing, in about three hours on two CPU cores. The same command again resumes."""
    check_output(output)
    work = work or output / "work"
    check_output(work)
    from ..zoo.recipe.pipeline import Recipe, train_rewards, train_shapes

    recipe = Recipe() if share == 1.0 else Recipe().shortened(share)
    if rewards_only:
        from ..zoo import load_clip

        pipe = open_pipeline("shapes", None, "cpu", None, None)
        typer.echo(f"reward in {train_rewards(pipe, output, work, recipe, clip=load_clip())}")
    else:
        typer.echo(f"pipeline in {train_shapes(output, work, recipe)}")


@zoo_app.command("sample", cls=Command)
def zoo_sample(
    output: Annotated[Path, output("PNG file for the sheet.", "sheet.png")] = Path("sheet.png"),
    model: Model = "shapes",
    masker: MaskerSource = None,
    count: Annotated[int, option(text="Number of held-out prompts.", default=48, min=1, max=MAX_IMAGES)] = 48,
    steps: Steps = None,
    guidance_scale: Guidance = None,
    seed: Seed = 0,
    device: Device = "cpu",
) -> None:
    """Generate a sheet of images from held-out prompts, and count how many match their prompt."""
    check_seeds(seed, count)
    check_output(output.parent)
    pipe = open_pipeline(model, masker, device, None, None)
    from ..sampling.supported_pipelines import check_steps
    from .image_files import write_sheet

    steps = num_inference_steps(model, steps)
    check_steps(pipe.scheduler, steps)
    correct = write_sheet(
        pipe,
        output,
        count=count,
        steps=steps,
        guidance_scale=guidance_of(model, guidance_scale),
        seed=seed,
    )
    typer.echo(f"{correct} of {count} match their prompt; sheet in {output}")
