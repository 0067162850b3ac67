"""`maskunet ui`: the page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Device, Dtype, Rewards


def ui(
    model: Annotated[
        list[str] | None, typer.Option(help="Pipeline to offer, as for `generate`; may be repeated. 'shapes' if none.")
    ] = None,
    masker: Annotated[
        list[str] | None, typer.Option(help="Masker to offer: a folder or a hub id; may be repeated.")
    ] = None,
    reward: Rewards = None,
    directory: Annotated[Path, typer.Option(help="The one folder that is written to.")] = Path("maskunet-ui"),
    host: Annotated[str, typer.Option(help="Address to listen on; only this machine by default.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
    open_browser: Annotated[bool, typer.Option("--open", help="Also open the page in a browser.")] = False,
    scheduler: Annotated[str | None, typer.Option(help="ddim, euler, dpm-solver++, ...; the models' own.")] = None,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """A page in the browser: base against masked, a gallery of seeds, a search to watch, analyses."""
    from ..ui.backend import Backend
    from ..ui.offered_models import OfferedModels
    from ..ui.results_folder import ResultsFolder
    from ..ui.serve import serve

    folder = ResultsFolder(directory)
    models = OfferedModels(
        model or ["shapes"], masker or [], reward or [], folder, device=device, dtype=dtype, scheduler=scheduler
    )
    backend = Backend(models, folder)
    backend.warm_up()
    page = serve(backend, host=host, port=port, open_browser=open_browser)
    typer.echo(
        f"page: http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}   files: {folder.path}   end: Ctrl-C"
    )
    page.block_thread()
