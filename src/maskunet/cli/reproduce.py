"""`maskunet reproduce`: the paper's tables in kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

reproduce_app = typer.Typer(help="The paper's tables in kind, on the bundled model.", no_args_is_help=True)


@reproduce_app.callback()
def _group() -> None:
    """Keep `table1` a command of its own while it is the only one."""


@reproduce_app.command()
def table1(
    output: Annotated[Path, typer.Option(help="Folder for table1.json and table1.md.")] = Path("docs/results"),
    work: Annotated[Path, typer.Option(help="Folder of runs and finished cells.")] = Path("runs/table1"),
    share: Annotated[float, typer.Option(min=0.001, max=1.0, help="Share of the whole, to try it out.")] = 1.0,
) -> None:
    """Fine-tune on the art domain, evaluate zero-shot on the first world; the same command again goes on."""
    from ..reproduce.report import to_markdown
    from ..reproduce.table1 import Table1Config, reproduce_table1, shortened
    from .pictures import make_folder, save_text

    make_folder(output)
    config = Table1Config() if share == 1.0 else shortened(Table1Config(), share)
    result = reproduce_table1(work, config, say=typer.echo)
    save_text(json.dumps(result, indent=1) + "\n", output / "table1.json")
    text = "# Table 1, in kind\n\n" + to_markdown(result)
    save_text(text, output / "table1.md")
    typer.echo(text)
