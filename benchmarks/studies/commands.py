"""`maskunet reproduce`: the paper's tables in kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

reproduce_app = typer.Typer(help="The paper's tables in kind, on the bundled model.", no_args_is_help=True)

Output = Annotated[
    Path | None,
    typer.Option(
        help="Folder for record (JSON), table (Markdown), figures; docs/results, or runs/<name> for a share."
    ),
]
Work = Annotated[Path | None, typer.Option(help="Folder of runs and finished cells; runs/<name> by default.")]
Share = Annotated[float, typer.Option(min=0.001, max=1.0, help="Share of the whole, to try it out.")]


def _report(
    name: str,
    title: str,
    output: Path | None,
    whole: bool,
    run: Callable[[], dict[str, Any]],
    table: Callable[[dict[str, Any]], str],
    plot: Callable[[dict[str, Any], Path], list[Path]],
) -> None:
    """Run a study and write its record, table and figures."""
    from maskunet.files import make_folder, save_text
    from maskunet.machine import machine

    # A trial must not take the place of the whole.
    output = output or (Path("docs/results") if whole else Path("runs") / name)
    make_folder(output)
    result = run() | {"machine": machine()}
    save_text(json.dumps(result, indent=1) + "\n", output / f"{name}.json")
    text = f"# {title}\n\n{table(result)}"
    save_text(text, output / f"{name}.md")
    plot(result, output)
    typer.echo(text)


@reproduce_app.command()
def table1(output: Output = None, work: Work = None, share: Share = 1.0) -> None:
    """Fine-tune on the art domain, evaluate zero-shot on the first world; the same command again goes on."""
    from benchmarks.studies.plots import plot_table1
    from benchmarks.studies.report import table1_markdown
    from benchmarks.studies.table1 import Table1Config, reproduce_table1, shortened

    config = Table1Config() if share == 1.0 else shortened(Table1Config(), share)
    folder = work or Path("runs/table1")
    _report(
        "table1",
        "Table 1, in kind",
        output,
        share == 1.0,
        lambda: reproduce_table1(folder, config, say=typer.echo),
        table1_markdown,
        plot_table1,
    )


@reproduce_app.command()
def ablations(
    output: Output = None,
    work: Work = None,
    share: Share = 1.0,
    seeds: Annotated[int, typer.Option(min=1, help="Training seeds.")] = 3,
    variant: Annotated[
        list[str] | None, typer.Option(help="A row beside the reference; may be repeated; all by default.")
    ] = None,
) -> None:
    """Masks without timestep, without sample, on more layers, and over training; the same command again goes on."""
    from benchmarks.studies.ablations import AblationConfig, reproduce_ablations, shortened
    from benchmarks.studies.plots import plot_ablations
    from benchmarks.studies.report import ablations_markdown

    config = AblationConfig(seeds=seeds) if share == 1.0 else shortened(AblationConfig(seeds=seeds), share)
    folder = work or Path("runs/ablations")
    _report(
        "ablations",
        "Ablations, in kind",
        output,
        share == 1.0,
        lambda: reproduce_ablations(folder, config, variants=variant, say=typer.echo),
        ablations_markdown,
        plot_ablations,
    )


@reproduce_app.command()
def amortised(
    output: Output = None,
    work: Work = None,
    share: Share = 1.0,
    seeds: Annotated[int, typer.Option(min=1, help="Training seeds.")] = 3,
    reward: Annotated[str, typer.Option(help="What is climbed: shapes or shapes-matching.")] = "shapes",
) -> None:
    """Masks and LoRA trained by the reward, on prompts held out from training; the same command again goes on."""
    from benchmarks.studies.amortised import AmortisedConfig, reproduce_amortised, shortened
    from benchmarks.studies.amortised_report import amortised_markdown, plot_amortised

    config = AmortisedConfig.of(reward, seeds=seeds)
    config = config if share == 1.0 else shortened(config, share)
    name = "amortised" if reward == AmortisedConfig.reward else f"amortised_{reward}"
    folder = work or Path("runs") / name
    _report(
        name,
        "The search, amortised",
        output,
        share == 1.0,
        lambda: reproduce_amortised(folder, config, say=typer.echo),
        amortised_markdown,
        partial(plot_amortised, name=name),
    )


@reproduce_app.command()
def search(
    output: Output = None,
    work: Work = None,
    prompts: Annotated[int, typer.Option(min=6, help="Held-out prompts.")] = 60,
    seeds: Annotated[int, typer.Option(min=1, help="Sets of starting noises.")] = 3,
    reward: Annotated[str, typer.Option(help="What methods see: shapes or shapes-matching.")] = "shapes",
) -> None:
    """Search of masks against its rivals at equal compute; the same command again goes on."""
    from benchmarks.studies.amortised import AmortisedConfig, amortised_masker
    from benchmarks.studies.search import METHODS, SearchStudy, run_study
    from benchmarks.studies.search_report import plot_search, search_markdown

    study, folder = SearchStudy(seeds=seeds, prompts=prompts, reward=reward), work or Path("runs/search")
    name = "search" if reward == SearchStudy.reward else f"search_{reward}"

    def run() -> dict[str, Any]:
        # The gentlest of the rates that `reproduce amortised` tries for masks.
        settings = AmortisedConfig.of(reward)
        masker = amortised_masker(folder, settings, rate=min(settings.rates["mask"]), say=typer.echo)
        return run_study(folder, study, METHODS | {"amortised masker": masker}, memory=True, say=typer.echo)

    _report(
        name,
        "Search of masks and its rivals",
        output,
        study == SearchStudy(reward=reward),
        run,
        search_markdown,
        partial(plot_search, name=name),
    )
