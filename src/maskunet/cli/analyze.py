"""`maskunet analyze`: what masks switch off, when, and what that does, as plots (PNG, SVG) and data (CSV, JSON)."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import TargetError
from ..settings import MAX_PIXELS
from .app import Command, new_app, without_options
from .checks import all_finite, check_exists, check_features, check_output, read_prompts
from .defaults import guidance_scale as guidance_of
from .defaults import is_bundled, num_inference_steps
from .loading import open_pipeline
from .options import (
    Device,
    Dtype,
    Guidance,
    GuidanceRescale,
    MaskerSource,
    Model,
    Prompts,
    PromptsFile,
    Scheduler,
    Seed,
    Steps,
    batch_size,
    option,
    output,
)

analyze_app = new_app("Analyse what masks switch off, when, and what that does, as plots and data.")

#: Commands and their help; "all" runs one after the other.
_HELP = {
    "random": "Measure random masks: the weights that they remove, the images that they fix or break, and the average.",
    "density": "Measure how many weights are switched off: by layer, projection, block, timestep, and over training.",
    "masks": "Compare the masks of a layer between timesteps and between samples.",
    "weights": "Compare the magnitudes of removed and kept weights, by step.",
    "emergence": "Compare the predicted clean images over the steps, without and with masks.",
    "samples": "Place base, masked and real images in a plane of features, and measure their distances.",
    "all": "Run all analyses, one after the other.",
}
#: Options that one analysis alone reads.
_ONLY = {
    "rate": "random",
    "mask_seeds": "random",
    "layer": "masks",
    "run": "density",
    "reference": "samples",
    "features": "samples",
    "resolution": "samples",
}


def _analyze(
    context: typer.Context,
    model: Model = "shapes",
    masker: MaskerSource = None,
    output: Annotated[Path, output("Folder for NAME.png, NAME.csv and NAME.json.", "analysis")] = Path("analysis"),
    svg: Annotated[bool, option("--svg", text="Also write NAME.svg.", default="off")] = False,
    prompt: Prompts = None,
    prompts_file: PromptsFile = None,
    count: Annotated[
        int | None,
        option(text="Images per side; prompts repeat with other noise.", default="what the analysis needs", min=1),
    ] = None,
    rate: Annotated[
        list[float] | None,
        option(
            text="Drop ratio between 0 and 1; may be repeated.", default="0.03, 0.1, 0.3 and 0.5", callback=all_finite
        ),
    ] = None,
    mask_seeds: Annotated[int | None, option(text="Sets of masks per drop ratio.", default=3, min=1)] = None,
    layer: Annotated[
        str | None, option(text="Layer whose bits are drawn.", default="the one with most weights switched off")
    ] = None,
    run: Annotated[
        Path | None,
        option(text="Training run (folder or stats.jsonl), for density over training.", default="none"),
    ] = None,
    reference: Annotated[
        Path | None, option(text="Folder of real images.", default="drawn with shapes, else required")
    ] = None,
    features: Annotated[
        str | None,
        option(
            text="Feature space: clip:SOURCE, dinov2:SOURCE or inception.",
            default="the bundled CLIP with shapes, else required",
        ),
    ] = None,
    resolution: Annotated[
        int | None,
        option(
            text="Pixels per side that images are resized to.", default="256; 64 with shapes", min=8, max=MAX_PIXELS
        ),
    ] = None,
    scheduler: Scheduler = None,
    steps: Steps = None,
    guidance_scale: Guidance = None,
    guidance_rescale: GuidanceRescale = 0.0,
    seed: Seed = 0,
    batch_size: Annotated[int | None, batch_size("4; 24 with shapes")] = None,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    from ..analysis import NAMES, AnalysisSettings

    command = str(context.info_name)
    names = NAMES if command == "all" else (command,)
    options: dict[str, Any] = {
        "rates": tuple(rate) if rate else None,
        "mask_seeds": mask_seeds,
        "layer": layer,
        "run": run,
        "reference": reference,
        "features": features,
        "resolution": resolution,
    }
    settings = AnalysisSettings(
        prompts=tuple(read_prompts(prompt, prompts_file)) if prompt or prompts_file else None,
        num_inference_steps=num_inference_steps(model, steps),
        guidance_scale=guidance_of(model, guidance_scale),
        guidance_rescale=guidance_rescale,
        seed=seed,
        batch_size=batch_size or (24 if is_bundled(model) else 4),
        count=count,
        **{name: value for name, value in options.items() if value is not None},
    )
    if masker is None and command != "random":
        raise TargetError(f"expected a masker to analyse (--masker) with {command}, got none")
    if features is not None:
        check_features(features)
    check_exists(run, "--run", "a training run's folder or its stats.jsonl")
    check_exists(reference, "--reference", "a folder of images")
    check_output(output)
    pipe = open_pipeline(model, masker, device, dtype, scheduler)
    if layer is not None:
        _check_layer(layer, pipe)
    for name in names:
        _run(name, pipe, settings, output, svg)


def _check_layer(layer: str, pipe: Any) -> None:
    from ..attaching import attachment_of

    attachment = attachment_of(pipe)
    names = [] if attachment is None else [spec.name for spec in attachment.masker.network.layers]
    if layer not in names:
        near = difflib.get_close_matches(layer, names, cutoff=0) or names[:3]
        raise TargetError(f"expected --layer to be a masked layer, such as {', '.join(near)}; got {layer!r}")


def _run(name: str, pipe: Any, settings: Any, output: Path, svg: bool) -> None:
    """Analyse with a progress bar, save, and print the answer."""
    from tqdm.auto import tqdm

    from ..analysis import analyze

    with tqdm(
        total=100, desc=name, leave=False, delay=1, bar_format="{desc}: {percentage:3.0f} %|{bar}|{postfix}"
    ) as bar:

        def show(share: float, word: str) -> None:
            bar.set_postfix_str(word, refresh=False)
            bar.update(round(100 * share) - bar.n)

        analysis = analyze(name, pipe, settings, progress=show)
    written = analysis.save(output, svg=svg)
    typer.echo(f"{name}: {analysis.title}\n{analysis.answer}\n{', '.join(str(path) for path in written)}")


for _name, _help in _HELP.items():
    _others = {option for option, owner in _ONLY.items() if _name not in ("all", owner)}
    analyze_app.command(_name, help=_help, cls=Command)(without_options(_analyze, _others))
