"""Settings: frozen dataclasses that check every field when they are built.

Each field declares its values, and a bad value raises an error of one line:

    @dataclass(frozen=True)
    class TrainConfig(Settings):
        max_train_steps: int = integer(1000, at_least=1)
        lr_scheduler: str = choice("cosine", "linear", "constant")

    TrainConfig(max_train_steps=0)   # SettingError: expected max_train_steps to be an integer >= 1, got 0

Nothing here imports torch, so that the command line shows its help at once.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import Field, field, fields
from typing import Any

from .errors import SettingError

#: A preset's name, a regular expression that must match whole layer names, or a list of name suffixes.
Targets = str | Sequence[str]

#: Default guidance of every model, and of the bundled one; `sampling.guidance_scale` decides.
GUIDANCE_SCALE, BUNDLED_GUIDANCE_SCALE = 7.5, 4.0
#: Bounds that several configs share: guidance overflows float16 long before, and no image is as large.
MAX_GUIDANCE_SCALE, MAX_PIXELS = 1000.0, 16384
#: Most starting noises that a search drafts per prompt.
MAX_CANDIDATES = 10_000

_CHECK = "check"
#: No size or count is meant to be this large, and torch fails on larger ones with errors of its own.
_TOO_LARGE = 2**31


class Settings:
    """Base of all configs: a subclass is a frozen dataclass whose fields come from the functions of this module."""

    def __post_init__(self) -> None:
        for item in fields(self):  # type: ignore[arg-type]
            check = item.metadata.get(_CHECK)
            if check is not None:
                check(item.name, getattr(self, item.name))
        self.check()

    def check(self) -> None:
        """Check how the fields fit together; subclasses override it.

        Raises:
            SettingError: settings contradict each other.
        """


def _checked(default: Any, check: Callable[[str, Any], None]) -> Any:
    return field(default=default, metadata={_CHECK: check})


def _refuse(name: str, expected: str, value: Any) -> SettingError:
    shown = " ".join(repr(value).split())  # the repr of a tensor has several lines
    return SettingError(f"expected {name} to be {expected}, got {shown if len(shown) <= 120 else shown[:117] + '...'}")


def _range(at_least: float | None, above: float | None, below: float | None, at_most: float | None) -> str:
    bounds = ((">=", at_least), (">", above), ("<", below), ("<=", at_most))
    return " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if bound is not None)


def _inside(
    value: float, at_least: float | None, above: float | None, below: float | None, at_most: float | None
) -> bool:
    return (
        (at_least is None or value >= at_least)
        and (above is None or value > above)
        and (below is None or value < below)
        and (at_most is None or value <= at_most)
    )


def _is_integer(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def integer(
    default: int | None, *, at_least: int | None = None, at_most: int | None = None, optional: bool = False
) -> Any:
    """Declare a field that holds an integer.

    Args:
        default: its default.
        at_least: inclusive lower bound.
        at_most: inclusive upper bound.
        optional: whether None is allowed.
    """
    expected = f"an integer {_range(at_least, None, None, at_most)}".rstrip() + (" or None" if optional else "")

    def check(name: str, value: Any) -> None:
        if optional and value is None:
            return
        if not _is_integer(value) or not _inside(int(value), at_least, None, None, at_most):
            raise _refuse(name, expected, value)
        if at_most is None and abs(int(value)) >= _TOO_LARGE:
            raise _refuse(name, f"{expected}, below 2**31", value)

    return _checked(default, check)


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the range of floats
        return False


def number(
    default: float | None,
    *,
    at_least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    optional: bool = False,
) -> Any:
    """Declare a field that holds a finite number.

    Args:
        default: its default.
        at_least: inclusive lower bound.
        above: exclusive lower bound.
        below: exclusive upper bound.
        at_most: inclusive upper bound.
        optional: whether None is allowed.
    """
    limits = _range(at_least, above, below, at_most)
    expected = f"a finite number {limits}".rstrip() + (" or None" if optional else "")

    def check(name: str, value: Any) -> None:
        if optional and value is None:
            return
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not is_number or not _is_finite(value) or not _inside(float(value), at_least, above, below, at_most):
            raise _refuse(name, expected, value)

    return _checked(default, check)


def choice(default: str | None, *others: str, optional: bool = False) -> Any:
    """Declare a field that holds one of several names.

    Args:
        default: its default, also a valid name.
        others: the other valid names.
        optional: whether None is allowed.
    """
    names = [name for name in (default, *others) if name is not None]
    expected = " or ".join(map(repr, names)) + (" or None" if optional else "")

    def check(name: str, value: Any) -> None:
        if not (optional and value is None) and not (isinstance(value, str) and value in names):
            raise _refuse(name, expected, value)

    return _checked(default, check)


def flag(default: bool) -> Any:
    """Declare a field that is True or False.

    Args:
        default: its default.
    """

    def check(name: str, value: Any) -> None:
        if not isinstance(value, bool):
            raise _refuse(name, "True or False", value)

    return _checked(default, check)


def text(default: str | None, *, optional: bool = False) -> Any:
    """Declare a field that holds a string.

    Args:
        default: its default.
        optional: whether None is allowed.
    """

    def check(name: str, value: Any) -> None:
        if not (optional and value is None) and not isinstance(value, str):
            raise _refuse(name, "a string" + (" or None" if optional else ""), value)

    return _checked(default, check)


def texts(default: Sequence[str] = ()) -> Any:
    """Declare a field that holds a sequence of strings.

    Args:
        default: its default.
    """

    def check(name: str, value: Any) -> None:
        if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(v, str) for v in value):
            raise _refuse(name, "a sequence of strings", value)

    return _checked(tuple(default), check)


def layer_targets(default: Targets) -> Any:
    """Declare a field that holds targets: a preset, a regular expression, or suffixes of layer names.

    Args:
        default: its default.
    """

    def check(name: str, value: Any) -> None:
        is_text = (
            isinstance(value, Sequence) and not isinstance(value, bytes) and all(isinstance(v, str) for v in value)
        )
        if not is_text or not value:
            raise _refuse(name, "a preset, a regular expression or a list of suffixes", value)

    return _checked(default, check)


def counts(default: int | Sequence[int], *, at_least: int = 0) -> Any:
    """Declare a field that holds an integer or a non-empty sequence of integers.

    Args:
        default: its default.
        at_least: inclusive lower bound of every integer.
    """

    def check(name: str, value: Any) -> None:
        values = value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]
        if not values or not all(map(_is_integer, values)) or min(values) < at_least:
            raise _refuse(name, f"an integer >= {at_least}, or a non-empty sequence of them", value)
        if max(values) >= _TOO_LARGE:
            raise _refuse(name, "integers below 2**31", value)

    return _checked(default, check)


def check_value(owner: type[Settings], name: str, value: Any) -> None:
    """Check a value for one field of a config class, as the command line does with its flags.

    Args:
        owner: the config class.
        name: name of the field.
        value: its value.

    Raises:
        SettingError: the field cannot hold the value, or there is no such field.
    """
    names = [item.name for item in fields(owner)]  # type: ignore[arg-type]
    if name not in names:
        raise SettingError(f"expected a setting of {owner.__name__} ({', '.join(names)}), got {name!r}")
    item: Field[Any] = next(f for f in fields(owner) if f.name == name)  # type: ignore[arg-type]
    if (check := item.metadata.get(_CHECK)) is not None:
        check(name, value)
