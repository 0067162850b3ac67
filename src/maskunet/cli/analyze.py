"""`maskunet analyze`: what masks switch off, when, and what that does, each as plot (PNG, SVG) and data (CSV, JSON)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import DataError
from .options import Device, Dtype, MaskerPath, Model, Seed, Steps

analyze_app = typer.Typer(
    help="What masks switch off, when, and what that does, as plots and data.", no_args_is_help=True
)

#: Commands and their help; "all" runs one after the other.
_HELP = {
    "random": "Random masks: what they remove, single pictures that they mend or spoil, and the average.",
    "density": "How many weights are switched off: by layer, projection, block, timestep, and over training.",
    "masks": "Bits of a layer over timesteps; overlap of masks between timesteps and between samples.",
    "weights": "Are large weights switched off too? Removed against kept magnitudes, by step.",
    "emergence": "Predicted clean pictures over steps, without and with masks: what comes earlier?",
    "samples": "Base, masked and real pictures in a plane of features, and their distances.",
    "all": "All of them, one after the other.",
}
#: Options that one analysis alone reads.
_OWN = {
    "rates": "random",
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
    masker: MaskerPath = None,
    output: Annotated[Path, typer.Option(help="Folder for NAME.png, .svg, .csv and .json.")] = Path("analysis"),
    prompt: Annotated[list[str] | None, typer.Option(help="Prompt; may be repeated. 'shapes' has its own.")] = None,
    prompts_file: Annotated[Path | None, typer.Option(help="Text file with a prompt a line.")] = None,
    count: Annotated[
        int | None,
        typer.Option(min=1, help="Pictures a side; prompts repeat with other noise. As each analysis needs."),
    ] = None,
    rate: Annotated[list[float] | None, typer.Option(help="random: a drop ratio, in (0, 1); may be repeated.")] = None,
    mask_seeds: Annotated[int | None, typer.Option(min=1, help="random: sets of masks a drop ratio; 3.")] = None,
    layer: Annotated[str | None, typer.Option(help="masks: the layer whose bits are drawn; the most masked.")] = None,
    run: Annotated[
        Path | None, typer.Option(help="density: a training run's folder or stats.jsonl, for 'over training'.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="samples: folder of real pictures; 'shapes' has its own.")
    ] = None,
    features: Annotated[
        str | None, typer.Option(help="samples: clip:SOURCE, dinov2:SOURCE or inception; 'shapes' has its own.")
    ] = None,
    resolution: Annotated[
        int | None, typer.Option(min=8, help="samples: pixels a side that real pictures are brought to.")
    ] = None,
    scheduler: Annotated[str | None, typer.Option(help="ddim, euler, dpm-solver++, ...; the model's own.")] = None,
    steps: Steps = 25,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Strength of classifier-free guidance; 4 for 'shapes', else 7.5.")
    ] = None,
    seed: Seed = 0,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Prompts a call; 24 for 'shapes', else 4.")] = None,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    from ..analysis import NAMES, AnalysisSettings
    from ..files import make_folder
    from .options import open_pipeline, read_prompts

    command = str(context.info_name)
    names = NAMES if command == "all" else (command,)
    own: dict[str, Any] = {
        "rates": tuple(rate) if rate else None,
        "mask_seeds": mask_seeds,
        "layer": layer,
        "run": run,
    }
    own |= {"reference": reference, "features": features, "resolution": resolution}
    given = {name: value for name, value in own.items() if value is not None}
    if wrong := [name for name in given if _OWN[name] not in names]:
        raise DataError(
            f"expected --{wrong[0].replace('_', '-').rstrip('s')} with {_OWN[wrong[0]]}, got it with {command}"
        )
    settings = AnalysisSettings(
        prompts=tuple(read_prompts(prompt, prompts_file)) if prompt or prompts_file else None,
        num_inference_steps=steps,
        guidance_scale=guidance_scale if guidance_scale is not None else 4.0 if model == "shapes" else 7.5,
        seed=seed,
        batch_size=batch_size or (24 if model == "shapes" else 4),
        count=count,
        **given,
    )
    make_folder(output)  # before minutes of work
    pipe = open_pipeline(model, masker, device, dtype, scheduler)
    for name in names:
        _run(name, pipe, settings, output)


def _run(name: str, pipe: Any, settings: Any, output: Path) -> None:
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
    written = analysis.save(output)
    typer.echo(f"{name}: {analysis.title}\n{analysis.answer}\n{', '.join(str(path) for path in written)}")


for _name, _help in _HELP.items():
    analyze_app.command(_name, help=_help)(_analyze)
