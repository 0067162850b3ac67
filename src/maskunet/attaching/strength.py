r"""How strongly masks act: :math:`W' = W (1 - s (1 - m))`, between the base model (s = 0) and the masks (s = 1).

A layer is linear in its weight, so its output at strength s lies between the plain and the masked output,
whichever operator computes it.

The maskers of a composition can have strengths of their own. Their keys are always the maskers' names; strengths by block
then stand inside, `{"style": {"up_blocks.1": 0.5}}`.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch

from ..errors import SettingError
from ..maskers import ComposedMasker, Masker

#: One strength for all blocks, one per block by its name ("up_blocks.1"; others have 1), or a function of the timestep.
Strength = float | Mapping[str, float] | Callable[[float | None], float]
#: The strength of a masker. Of a composition: one for all as a number or a function, or one per masker by its name.
Strengths = Strength | Mapping[str, Strength]


def check_strength(strength: Any, masker: Masker) -> Strengths:
    """Return a strength that can be used.

    Args:
        strength: see `Strengths`; maskers of a composition that it leaves out have 1.
        masker: the masker.

    Raises:
        SettingError: a value outside [0, 1], a block without masks, an unknown masker, or something else.
    """
    if not isinstance(masker, ComposedMasker) or not isinstance(strength, Mapping):
        return _check_single(strength, [block.name for block in masker.network.blocks])
    if masker.compose == "majority":
        raise SettingError(
            "expected one strength for maskers composed by majority, a number or a function of the timestep, got one per "
            "masker; compose them by product"
        )
    maskers = masker.maskers
    for name, value in strength.items():
        if name not in maskers:
            raise SettingError(
                f"expected strengths by the maskers' names ({', '.join(maskers)}), got {name!r:.80}; strengths by block "
                f"stand inside, as in {{{next(iter(maskers))!r}: {{'up_blocks.1': 0.5}}}}"
            )
        _check_single(value, [block.name for block in maskers[name].network.blocks], f"the strength of {name!r}")
    return {name: strength.get(name, 1.0) for name in maskers}


def _check_single(strength: Any, blocks: Collection[str], name: str = "strength") -> Strength:
    if isinstance(strength, Mapping):
        for block, value in strength.items():
            if block not in blocks:
                raise SettingError(
                    f"expected strengths of the masker's blocks ({', '.join(blocks)}), got {block!r:.80}"
                )
            _check_value(value, f"the strength of {block!r}")
    elif not callable(strength):
        _check_value(strength, name)
    return strength  # type: ignore[no-any-return]


def strengths_at(strengths: Strengths, masker: Masker, block: str, timestep: Any) -> float | dict[str, float]:
    """Return the strength of a block at a timestep; by name where the maskers of a composition have their own.

    Args:
        strengths: what `check_strength` returned.
        masker: the masker, or a selection of a composition.
        block: name of the block.
        timestep: see `strength_at`.

    Raises:
        SettingError: a function returned a value outside [0, 1].
    """
    if not isinstance(masker, ComposedMasker) or not isinstance(strengths, Mapping):
        return strength_at(strengths, block, timestep)  # type: ignore[arg-type]
    return {name: strength_at(strengths[name], block, timestep) for name in masker.names}


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
