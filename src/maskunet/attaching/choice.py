"""Which maskers of a composition act, and how strongly: what `Attachment.set_maskers` sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import SettingError
from ..maskers import ComposedMasker, Masker
from .strength import Strength, Strengths, check_strength


def choose_maskers(
    masker: Masker,
    current: Strengths,
    names: str | Sequence[str],
    strengths: Strength | Sequence[Strength] | None = None,
) -> tuple[ComposedMasker, Strengths]:
    """Return the maskers of a composition that act, and their strengths.

    Args:
        masker: the attached masker.
        current: the strengths so far.
        names: the name of one masker, or names of several.
        strengths: their strengths in the same order; one alone applies to each; None leaves all as they are.

    Raises:
        SettingError: a single masker is attached, a name is unknown, or a strength cannot be used.
    """
    if not isinstance(masker, ComposedMasker):
        raise SettingError(
            f"expected maskers attached by name to choose among, got one {type(masker).__name__}; attach several as in "
            "maskunet.attach(pipe, {'style': a, 'detail': b})"
        )
    chosen = _checked_names(names, masker)
    selection = masker.select(chosen)
    if strengths is None:
        return selection, current
    values = [strengths] * len(chosen) if not isinstance(strengths, list | tuple) else list(strengths)
    if len(values) != len(chosen):
        raise SettingError(f"expected one strength, or one for each of {', '.join(chosen)}, got {len(values)}")
    own: dict[str, Any] = dict(current) if isinstance(current, Mapping) else dict.fromkeys(masker.names, current)
    return selection, check_strength(own | dict(zip(chosen, values, strict=True)), masker)


def _checked_names(names: Any, masker: ComposedMasker) -> list[str]:
    chosen = [names] if isinstance(names, str) else list(names) if isinstance(names, Sequence) else []
    known = [name for name in chosen if isinstance(name, str) and name in masker.names]
    if not chosen or len(known) < len(chosen) or len(set(known)) < len(known):
        raise SettingError(
            f"expected names among {', '.join(masker.names)}, at least one and each once, got {names!r:.80}; "
            "maskunet.disabled switches all off"
        )
    return known
