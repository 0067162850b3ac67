"""Errors that a user can act on. Each message states what was expected, what came, and what to do."""

from __future__ import annotations

from typing import Any


class MaskUNetError(Exception):
    """Base of all errors that maskunet raises on purpose."""


class TargetError(MaskUNetError, ValueError):
    """Targets that match nothing, or match something that cannot be masked."""


class CheckpointError(MaskUNetError, ValueError):
    """A file, folder or state dict that is missing, unreadable or made for something else."""


class DataError(MaskUNetError, ValueError):
    """Prompts, images or files of data that cannot be used."""


class SettingError(DataError):
    """A setting that is out of range, unknown, or contradicts another."""


class RewardError(MaskUNetError, ValueError):
    """A reward that is missing or returns something that is not a reward."""


class UnscoredError(RewardError):
    """The reward failed to score the images of a search that had finished.

    Args:
        message: what happened.
        result: the `SearchResult`; its rewards are NaN.
    """

    def __init__(self, message: str, result: Any) -> None:
        super().__init__(message)
        self.result = result


def first_line(error: BaseException) -> str:
    """Return the first non-empty line of an error's message, or the error's type.

    Args:
        error: the error.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
