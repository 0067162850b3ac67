r"""How strongly masks act: :math:`W' = W (1 - s (1 - m))`, between the base model (s = 0) and the masks (s = 1).

A layer is linear in its weight, so its output at strength s lies between the plain and the masked output,
whichever operator computes it.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch

from ..errors import SettingError

#: One strength for all blocks, one per block by its name ("up_blocks.1"; others have 1), or a function of the timestep.
Strength = float | Mapping[str, float] | Callable[[float | None], float]


def check_strength(strength: Any, blocks: Collection[str]) -> Strength:
    """Return a strength that can be used.

    Args:
        strength: see `Strength`.
        blocks: names of the masker's blocks.

    Raises:
        SettingError: a value outside [0, 1], a block without masks, or something else.
    """
    if isinstance(strength, Mapping):
        for block, value in strength.items():
            if block not in blocks:
                raise SettingError(
                    f"expected strengths of the masker's blocks ({', '.join(blocks)}), got {block!r:.80}"
                )
            _check_value(value, f"the strength of {block!r}")
    elif not callable(strength):
        _check_value(strength, "strength")
    return strength  # type: ignore[no-any-return]


def strength_at(strength: Strength, block: str, timestep: Any) -> float:
    """Return the strength of a block at a timestep.

    Args:
        strength: see `Strength`.
        block: name of the block.
        timestep: the call's timestep, a number or a tensor, of which the first value counts; None if unknown.

    Raises:
        SettingError: a function returned a value outside [0, 1].
    """
    if isinstance(strength, Mapping):
        return float(strength.get(block, 1.0))
    if callable(strength):
        value = strength(None if timestep is None else float(torch.as_tensor(timestep).reshape(-1)[0]))
        _check_value(value, "what the strength function returns")
        return float(value)
    return float(strength)


def _check_value(value: Any, name: str) -> None:
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= 1:
        raise SettingError(f"expected {name} to be a number >= 0 and <= 1, got {value!r:.80}")
