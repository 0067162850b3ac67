"""The one folder that the page writes to: saved masks, analyses, and what the browser is shown.

<folder>/found/<name>/     a search's result: images, history, and masks/00000, which `maskunet.load` reads
<folder>/analyses/<name>/  figures and tables
<folder>/cache/            images on their way to a browser; cleared by the server
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..files import make_folder

_MASKS = Path("masks") / "00000"


class ResultsFolder:
    """Files of the page.

    Args:
        path: made if missing.

    Raises:
        DataError: it cannot be made or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().resolve()
        self.cache = self.path / "cache"
        for folder in (self.path / "found", self.path / "analyses", self.cache):
            make_folder(folder)

    def masks(self) -> dict[str, Path]:
        """Return the folders of all saved masks by name."""
        folders = sorted((self.path / "found").iterdir())
        return {folder.name: folder / _MASKS for folder in folders if (folder / _MASKS / "config.json").is_file()}

    def save(self, kind: str, name: str, write: Callable[[Path], Any]) -> str:
        """Write a folder under a temporary name, then rename it.

        Args:
            kind: "found" or "analyses".
            name: what a visitor typed; anything but letters, digits, dots, dashes and underscores becomes a dash, and a
                number is added if the name is taken.
            write: writes into the folder that it is called with.

        Returns:
            The name that it got.

        Raises:
            DataError: it cannot be written.
        """
        parent, base_name = self.path / kind, safe_name(name)
        try:
            part = Path(tempfile.mkdtemp(prefix=".part-", dir=parent))
            try:
                write(part)
                part.chmod(0o755)  # mkdtemp's folders are readable by their owner alone
                for number in range(1, 10_000):
                    target = parent / (base_name if number == 1 else f"{base_name}-{number}")
                    if not target.exists():
                        part.rename(target)
                        return target.name
            finally:
                shutil.rmtree(part, ignore_errors=True)
        except OSError as error:
            raise DataError(f"expected to write below {parent}, could not: {error}") from error
        raise DataError(f"expected a free name, there are too many called {base_name!r}; choose another")


def safe_name(name: str) -> str:
    """Return a file name: letters, digits, inner dots, dashes and underscores, at most 60 characters.

    Args:
        name: any text.
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:60].rstrip("-._") or "masks"
