"""Ranks of this process, from the environment variables that `torchrun` and `accelerate launch` set."""

from __future__ import annotations

import os


def process_rank() -> tuple[int, int]:
    """Return this process's rank and the number of processes; (0, 1) outside a launcher."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int | None:
    """Return this process's rank on its machine, which is its GPU's index; None outside a launcher."""
    rank = os.environ.get("LOCAL_RANK")
    return None if rank is None else int(rank)
