"""`maskunet analyze`: what masks switch off, when, and what that does, each as plot (PNG, SVG) and data (CSV, JSON)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .inputs import BatchSize, Device, Dtype, Model, Seed, Steps

analyze_app = typer.Typer(
    help="What masks switch off, when, and what that does, as plots and data.", no_args_is_help=True
)

Output = Annotated[Path, typer.Option(help="Folder for NAME.png, .svg, .csv and .json.")]
Prompt = Annotated[list[str] | None, typer.Option(help="Prompt; may be repeated. 'shapes' has its own.")]
PromptsFile = Annotated[Path | None, typer.Option(help="Text file with a prompt a line.")]
Count = Annotated[int | None, typer.Option(min=1, help="Pictures a side; prompts repeat. By default as needed.")]
Guidance = Annotated[float | None, typer.Option(help="Classifier-free guidance; 4 for 'shapes', else 7.5.")]
Scheduler = Annotated[str | None, typer.Option(help="ddim, euler, dpm-solver++, ...; the model's own.")]
_OUTPUT = Path("analysis")


def _analyze(
    name: str,
    output: Path,
    model: str,
    masker: str | None,
    prompts: tuple[list[str] | None, Path | None],
    guidance_scale: float | None,
    loading: tuple[str | None, str | None, str | None],
    **settings: Any,
) -> None:
    """Open the pipeline, analyse, save, and print the answer."""
    from tqdm.auto import tqdm

    from ..analysis import AnalysisSettings, analyze
    from ..files import make_folder
    from .inputs import open_pipeline, read_prompts

    texts = tuple(read_prompts(*prompts)) if prompts[0] or prompts[1] else None
    guidance = guidance_scale if guidance_scale is not None else 4.0 if model == "shapes" else 7.5
    found = AnalysisSettings(prompts=texts, guidance_scale=guidance, **settings)
    make_folder(output)  # before minutes of work
    pipe = open_pipeline(model, masker, *loading)
    with tqdm(total=100, desc=name, bar_format="{desc}: {percentage:3.0f} %|{bar}| {postfix}", leave=False) as bar:

        def show(share: float, word: str) -> None:
            bar.set_postfix_str(word, refresh=False)
            bar.update(round(100 * share) - bar.n)

        analysis = analyze(name, pipe, found, progress=show)
    written = analysis.save(output)
    typer.echo(f"{analysis.title}\n{analysis.answer}\n{', '.join(str(path) for path in written)}")


@analyze_app.command()
def random(
    model: Model = "shapes",
    output: Output = _OUTPUT,
    prompt: Prompt = None,
    prompts_file: PromptsFile = None,
    rate: Annotated[list[float] | None, typer.Option(help="Drop ratio, in (0, 1); may be repeated.")] = None,
    mask_seeds: Annotated[int, typer.Option(min=1, help="Sets of random masks a drop ratio.")] = 3,
    count: Count = None,
    scheduler: Scheduler = None,
    steps: Steps = 25,
    guidance_scale: Guidance = None,
    seed: Seed = 0,
    batch_size: BatchSize = 24,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Random masks: what they remove, single pictures that they mend or spoil, and the average."""
    own: dict[str, Any] = {"mask_seeds": mask_seeds, "count": count} | ({"rates": tuple(rate)} if rate else {})
    _analyze(
        "random",
        output,
        model,
        None,
        (prompt, prompts_file),
        guidance_scale,
        (device, dtype, scheduler),
        num_inference_steps=steps,
        seed=seed,
        batch_size=batch_size,
        **own,
    )
