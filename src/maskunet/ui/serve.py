"""Serve the page on an address of this machine, with every file below one folder."""

from __future__ import annotations

import os
from typing import Any

from ..errors import DataError
from .backend import Backend

_MAX_QUEUED = 32  # runs; the page refuses more


def serve(backend: Backend, *, host: str = "127.0.0.1", port: int = 7860, open_browser: bool = False) -> Any:
    """Start the page, and return its Gradio application; it runs in threads of its own.

    Args:
        backend: what the page computes with.
        host: address to listen on; this machine alone by default.
        port: port to listen on.
        open_browser: also open it in a browser.

    Raises:
        DataError: Gradio is missing, or the address cannot be listened on.
    """
    # Gradio reads both when it is imported.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(backend.folder.cache)
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise DataError('expected gradio for the page, it is not installed; pip install "maskunet[ui]"') from error
    from .page import CSS, build, theme

    page = build(backend).queue(max_size=_MAX_QUEUED)
    try:
        page.launch(
            server_name=host,
            server_port=port,
            inbrowser=open_browser,
            prevent_thread_lock=True,
            share=False,
            quiet=True,
            ssr_mode=False,
            run_history=False,
            max_file_size="64kb",  # the page takes no uploads
            footer_links=["api"],
            state_session_capacity=100,
            theme=theme(),
            css=CSS,
        )
    except OSError as error:
        raise DataError(
            f"expected a free port on {host}, {port} cannot be listened on; choose another with --port"
        ) from error
    return page
