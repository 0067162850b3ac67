"""`maskunet reproduce`: the paper's tables in kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

reproduce_app = typer.Typer(help="The paper's tables in kind, on the bundled model.", no_args_is_help=True)

Output = Annotated[Path, typer.Option(help="Folder for the record (JSON), the table (Markdown) and the figures.")]
Share = Annotated[float, typer.Option(min=0.001, max=1.0, help="Share of the whole, to try it out.")]


@reproduce_app.command()
def table1(
    output: Output = Path("docs/results"),
    work: Annotated[Path, typer.Option(help="Folder of runs and finished cells.")] = Path("runs/table1"),
    share: Share = 1.0,
) -> None:
    """Fine-tune on the art domain, evaluate zero-shot on the first world; the same command again goes on."""
    from ..reproduce.plots import plot_table1
    from ..reproduce.report import table1_markdown
    from ..reproduce.table1 import Table1Config, reproduce_table1, shortened
    from .pictures import make_folder, save_text

    make_folder(output)
    config = Table1Config() if share == 1.0 else shortened(Table1Config(), share)
    result = reproduce_table1(work, config, say=typer.echo)
    save_text(json.dumps(result, indent=1) + "\n", output / "table1.json")
    text = "# Table 1, in kind\n\n" + table1_markdown(result)
    save_text(text, output / "table1.md")
    plot_table1(result, output)
    typer.echo(text)


@reproduce_app.command()
def ablations(
    output: Output = Path("docs/results"),
    work: Annotated[Path, typer.Option(help="Folder of runs and finished cells.")] = Path("runs/ablations"),
    share: Share = 1.0,
) -> None:
    """Masks without timestep, without sample, on more layers, and over training; the same command again goes on."""
    from ..reproduce.ablations import AblationConfig, reproduce_ablations, shortened
    from ..reproduce.plots import plot_ablations
    from ..reproduce.report import ablations_markdown
    from .pictures import make_folder, save_text

    make_folder(output)
    config = AblationConfig() if share == 1.0 else shortened(AblationConfig(), share)
    result = reproduce_ablations(work, config, say=typer.echo)
    save_text(json.dumps(result, indent=1) + "\n", output / "ablations.json")
    text = "# Ablations, in kind\n\n" + ablations_markdown(result)
    save_text(text, output / "ablations.md")
    plot_ablations(result, output)
    typer.echo(text)
