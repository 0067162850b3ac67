"""Errors that a user can act on. Each message says what was expected, what came, and what to do."""

from __future__ import annotations

from typing import Any


class MaskUNetError(Exception):
    """Base of all errors that maskunet raises on purpose."""


class TargetError(MaskUNetError, ValueError):
    """Targets that match nothing, or match something that cannot be masked."""


class CheckpointError(MaskUNetError, ValueError):
    """A file, folder or state dict that is missing, unreadable or made for something else."""


class DataError(MaskUNetError, ValueError):
    """Prompts, pictures or settings that cannot be used."""


class RewardError(MaskUNetError, ValueError):
    """A reward that is missing or returns something that is not a reward."""


class UnscoredError(RewardError):
    """A search that finished its pictures, which the reward then failed to score.

    Args:
        message: what happened.
        result: the `SearchResult`; its rewards are NaN.
    """

    def __init__(self, message: str, result: Any) -> None:
        super().__init__(message)
        self.result = result
