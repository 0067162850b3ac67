"""`maskunet ui`: the page in the browser."""

from __future__ import annotations

import importlib.util
import shutil
import socket
from pathlib import Path
from typing import Annotated

import typer

from ..errors import DataError, MaskUNetError, first_line
from .checks import check_output
from .loading import check_scheduler, local_device
from .options import Device, Dtype, Rewards, Scheduler, option, output


def ui(
    model: Annotated[
        list[str] | None, option(text="Model to offer; may be repeated.", default="shapes, bundled")
    ] = None,
    masker: Annotated[
        list[str] | None,
        option(text="Masker to offer: a folder or a hub id; may be repeated.", default="the bundled one with shapes"),
    ] = None,
    reward: Rewards = None,
    output: Annotated[Path, output("Folder for everything that the page writes.", "maskunet-ui")] = Path(
        "maskunet-ui"
    ),
    host: Annotated[str, option(text="Address to listen on.", default="127.0.0.1, this machine only")] = "127.0.0.1",
    port: Annotated[int, option(text="Port to listen on.", default=7860, min=1, max=65535)] = 7860,
    open_browser: Annotated[bool, option("--open", text="Also open the page in a browser.", default="off")] = False,
    scheduler: Scheduler = None,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Serve a page for the browser: compare, search and analyse masks."""
    check_output(output)
    if not _has_gradio():
        raise DataError('expected gradio for the page, it is not installed; pip install "maskunet[ui]"')
    _check_address(host, port)
    from ..pipelines import choose_dtype

    choose_dtype(dtype, local_device(device))
    check_scheduler(scheduler)
    from ..ui.backend import Backend
    from ..ui.offered_models import OfferedModels
    from ..ui.results_folder import ResultsFolder
    from ..ui.serve import serve

    is_new = not output.exists()
    folder = ResultsFolder(output)
    try:
        models = OfferedModels(
            model or ["shapes"], masker or [], reward or [], folder, device=device, dtype=dtype, scheduler=scheduler
        )
        backend = Backend(models, folder)
        backend.warm_up()
        page = serve(backend, host=host, port=port, open_browser=open_browser)
    except MaskUNetError:
        if is_new:  # leave no empty folder after a wrong value
            shutil.rmtree(folder.path, ignore_errors=True)
        raise
    address = "127.0.0.1" if host == "0.0.0.0" else host
    typer.echo(f"page: http://{address}:{port}   files: {folder.path}   end: Ctrl-C")
    page.block_thread()


def _has_gradio() -> bool:
    try:
        return importlib.util.find_spec("gradio") is not None
    except ValueError:  # a module that was imported without a spec
        return False


def _check_address(host: str, port: int) -> None:
    """Refuse an address that cannot be listened on before models are loaded.

    Raises:
        DataError: no such address on this machine, or the port is taken.
    """
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        raise DataError(
            f"expected an address that is free, {host}:{port} cannot be listened on ({first_line(error)}); choose another "
            "with --host or --port"
        ) from error
