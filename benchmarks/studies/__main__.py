"""`python -m benchmarks.studies table1|ablations|amortised|search|guidance`: the paper's experiments on the bundled model.

Each command writes NAME.json, the table NAME.md and figures, to docs/results or, for a share, to runs/NAME; finished
cells are saved in runs/NAME, and the same command resumes. On two cores table1 takes two hours, ablations six, amortised
one and a half, search one.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.records import RESULTS, save_record
from maskunet.errors import MaskUNetError

app = typer.Typer(
    help="The paper's experiments on the bundled model.",
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Output = Annotated[
    Path | None,
    typer.Option(
        help="Folder of record (JSON), table (Markdown) and figures; docs/results by default, runs/NAME for a share."
    ),
]
Work = Annotated[Path | None, typer.Option(help="Folder of runs and finished cells; runs/NAME by default.")]
Share = Annotated[
    float,
    typer.Option(min=0.001, max=1.0, help="Share of seeds, steps and prompts, to try the command out."),
]
Seeds = Annotated[int, typer.Option(min=1, help="Training seeds.")]
RewardName = Annotated[str, typer.Option(help="Reward to optimise: 'shapes' or 'shapes-matching'.")]


def _run_and_save(
    name: str,
    title: str,
    output: Path | None,
    is_complete: bool,
    run: Callable[[], dict[str, Any]],
    table: Callable[[dict[str, Any]], str],
    plot: Callable[[dict[str, Any], Path], list[Path]],
) -> None:
    """Run a study and write its record, table and figures."""
    from maskunet.allocator import keep_freed_memory
    from maskunet.files import make_folder
    from maskunet.machine import machine

    keep_freed_memory()
    # A trial must not replace the complete record.
    folder = output or (RESULTS if is_complete else Path("runs") / name)
    make_folder(folder)
    record = run() | {"machine": machine()}
    text = table(record)
    save_record(record, folder / f"{name}.json", title, text, plot(record, folder))
    typer.echo(text)


@app.callback()
def _show_help(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def table1(output: Output = None, work: Work = None, share: Share = 1.0) -> None:
    """Fine-tune on the art domain, evaluate zero-shot on the first domain."""
    from benchmarks.studies.plots import plot_table1
    from benchmarks.studies.report import table1_markdown
    from benchmarks.studies.table1 import Table1Config, run_table1
    from benchmarks.studies.trial import shortened

    run = partial(run_table1, work or Path("runs/table1"), shortened(Table1Config(), share), log=typer.echo)
    _run_and_save("table1", "Table 1 on the bundled model", output, share == 1.0, run, table1_markdown, plot_table1)


@app.command()
def ablations(
    output: Output = None,
    work: Work = None,
    share: Share = 1.0,
    seeds: Seeds = 3,
    variant: Annotated[
        list[str] | None, typer.Option(help="A row in addition to the reference; repeatable; all rows by default.")
    ] = None,
) -> None:
    """Train masks without timestep, without sample, on more layers, at other settings."""
    from benchmarks.studies.ablations import AblationConfig, run_ablations
    from benchmarks.studies.plots import plot_ablations
    from benchmarks.studies.report import ablations_markdown
    from benchmarks.studies.trial import shortened

    config = shortened(AblationConfig(seeds=seeds), share)
    run = partial(run_ablations, work or Path("runs/ablations"), config, names=variant, log=typer.echo)
    is_complete = share == 1.0 and not variant
    _run_and_save(
        "ablations", "Ablations on the bundled model", output, is_complete, run, ablations_markdown, plot_ablations
    )


@app.command()
def amortised(
    output: Output = None,
    work: Work = None,
    share: Share = 1.0,
    seeds: Seeds = 3,
    reward: RewardName = "shapes",
) -> None:
    """Train masks and LoRA by the reward, and test them on held-out prompts."""
    from benchmarks.studies.amortised import AmortisedConfig, run_amortised
    from benchmarks.studies.amortised_report import amortised_markdown, plot_amortised
    from benchmarks.studies.trial import shortened

    name = "amortised" if reward == AmortisedConfig.reward else f"amortised_{reward}"
    config = shortened(AmortisedConfig.preset(reward, seeds=seeds), share)
    run = partial(run_amortised, work or Path("runs") / name, config, log=typer.echo)
    _run_and_save(
        name,
        "The amortised search",
        output,
        share == 1.0,
        run,
        amortised_markdown,
        partial(plot_amortised, name=name),
    )


@app.command()
def search(
    output: Output = None,
    work: Work = None,
    prompts: Annotated[int, typer.Option(min=6, help="Held-out prompts.")] = 60,
    seeds: Annotated[int, typer.Option(min=1, help="Sets of starting noises.")] = 3,
    reward: RewardName = "shapes",
) -> None:
    """Compare mask search with its rivals at equal compute."""
    from benchmarks.studies.amortised import AmortisedConfig, amortised_masker
    from benchmarks.studies.generation_methods import METHODS
    from benchmarks.studies.search import SearchStudyConfig, run_search_study
    from benchmarks.studies.search_report import plot_search, search_markdown

    config, folder = SearchStudyConfig(seeds=seeds, prompts=prompts, reward=reward), work or Path("runs/search")
    name = "search" if reward == SearchStudyConfig.reward else f"search_{reward}"

    def run() -> dict[str, Any]:
        # The lowest learning rate of the study `amortised` for masks.
        settings = AmortisedConfig.preset(reward)
        masker = amortised_masker(folder, settings, rate=min(settings.rates["mask"]), log=typer.echo)
        return run_search_study(folder, config, METHODS | {"amortised masker": masker}, memory=True, log=typer.echo)

    _run_and_save(
        name,
        "Mask search and its rivals",
        output,
        config == SearchStudyConfig(reward=reward),
        run,
        search_markdown,
        partial(plot_search, name=name),
    )


@app.command()
def guidance(
    output: Output = None,
    work: Work = None,
    share: Share = 1.0,
    seeds: Seeds = 3,
    side: Annotated[list[str] | None, typer.Option(help="A trained side; repeatable; all by default.")] = None,
) -> None:
    """Train masks and LoRA to do the work of guidance, and measure quality against network calls."""
    from benchmarks.studies.guidance import GuidanceConfig, run_guidance
    from benchmarks.studies.guidance_report import guidance_markdown, plot_guidance
    from benchmarks.studies.trial import shortened

    config = shortened(GuidanceConfig(seeds=seeds), share)
    run = partial(run_guidance, work or Path("runs/guidance"), config, names=side, log=typer.echo)
    is_complete = config == GuidanceConfig() and not side
    _run_and_save("guidance", "Guidance for free", output, is_complete, run, guidance_markdown, plot_guidance)


def main() -> None:
    """Run a study; a wrong value ends in one line on stderr and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        code = app(standalone_mode=False)
    except MaskUNetError as error:
        message = str(error)
    except typer.BadParameter.__mro__[2] as error:  # every error of usage
        message = error.format_message()  # type: ignore[attr-defined]
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    else:
        sys.exit(code if isinstance(code, int) else 0)
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(2)


if __name__ == "__main__":
    main()
