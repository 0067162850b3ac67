"""Settings check every field when they are built, and refuse in one line."""

from __future__ import annotations

import dataclasses
import importlib
import math
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import maskunet
from maskunet.errors import SettingError
from maskunet.settings import (
    Settings,
    Targets,
    check_value,
    choice,
    counts,
    flag,
    integer,
    layer_targets,
    number,
    text,
    texts,
)


@dataclass(frozen=True)
class Example(Settings):
    """One field of every kind."""

    steps: int = integer(10, at_least=1, at_most=100)
    seed: int | None = integer(None, optional=True)
    rate: float = number(0.5, above=0, at_most=1)
    shift: float = number(0.0, at_least=-1, below=1)
    limit: float | None = number(None, above=0, optional=True)
    rule: str = choice("all", "any")
    unit: str | None = choice(None, "pixel", optional=True)
    is_fast: bool = flag(False)
    name: str = text("a")
    note: str | None = text(None, optional=True)
    prompts: tuple[str, ...] = texts()
    targets: Targets = layer_targets("decoder-attention")
    sizes: Any = counts(8, at_least=2)

    def check(self) -> None:
        if self.steps == 13:
            raise SettingError("expected another number of steps than 13")


def refusal(name: str, value: Any) -> str:
    """Return the one line with which a value is refused."""
    with pytest.raises(SettingError) as caught:
        Example(**{name: value})
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    with pytest.raises(SettingError) as alone:
        check_value(Example, name, value)
    assert str(alone.value) == message
    return message


NAN, INF = math.nan, math.inf
REFUSED: list[tuple[str, Any, str]] = [
    ("steps", 0, "expected steps to be an integer >= 1 and <= 100, got 0"),
    ("steps", 101, "expected steps to be an integer >= 1 and <= 100, got 101"),
    ("steps", True, "expected steps to be an integer >= 1 and <= 100, got True"),
    ("steps", 2.0, "expected steps to be an integer >= 1 and <= 100, got 2.0"),
    ("steps", None, "expected steps to be an integer >= 1 and <= 100, got None"),
    ("steps", "2", "expected steps to be an integer >= 1 and <= 100, got '2'"),
    ("seed", False, "expected seed to be an integer or None, got False"),
    ("rate", 0, "expected rate to be a finite number > 0 and <= 1, got 0"),
    ("rate", 1.001, "expected rate to be a finite number > 0 and <= 1, got 1.001"),
    ("rate", NAN, "expected rate to be a finite number > 0 and <= 1, got nan"),
    ("rate", True, "expected rate to be a finite number > 0 and <= 1, got True"),
    ("rate", None, "expected rate to be a finite number > 0 and <= 1, got None"),
    ("rate", 1j, "expected rate to be a finite number > 0 and <= 1, got 1j"),
    ("shift", 1.0, "expected shift to be a finite number >= -1 and < 1, got 1.0"),
    ("limit", INF, "expected limit to be a finite number > 0 or None, got inf"),
    ("limit", -INF, "expected limit to be a finite number > 0 or None, got -inf"),
    ("limit", 10**400, "expected limit to be a finite number > 0 or None, got 1000"),
    ("rule", "most", "expected rule to be 'all' or 'any', got 'most'"),
    ("rule", None, "expected rule to be 'all' or 'any', got None"),
    ("unit", "inch", "expected unit to be 'pixel' or None, got 'inch'"),
    ("is_fast", 1, "expected is_fast to be True or False, got 1"),
    ("is_fast", None, "expected is_fast to be True or False, got None"),
    ("name", None, "expected name to be a string, got None"),
    ("note", 3, "expected note to be a string or None, got 3"),
    ("prompts", "a red circle", "expected prompts to be a sequence of strings, got 'a red circle'"),
    ("prompts", ("a", 1), "expected prompts to be a sequence of strings, got ('a', 1)"),
    ("targets", (), "expected targets to be a preset, a regular expression or a list of suffixes, got ()"),
    ("targets", "", "expected targets to be a preset, a regular expression or a list of suffixes, got ''"),
    ("targets", 3, "expected targets to be a preset, a regular expression or a list of suffixes, got 3"),
    ("targets", b"to_q", "expected targets to be a preset, a regular expression or a list of suffixes, got b'to_q'"),
    ("sizes", 1, "expected sizes to be an integer >= 2, or a non-empty sequence of them, got 1"),
    ("sizes", (), "expected sizes to be an integer >= 2, or a non-empty sequence of them, got ()"),
    ("sizes", (4, True), "expected sizes to be an integer >= 2, or a non-empty sequence of them, got (4, True)"),
    ("sizes", "44", "expected sizes to be an integer >= 2, or a non-empty sequence of them, got '44'"),
]


@pytest.mark.parametrize(("name", "value", "message"), REFUSED)
def test_refused_values(name: str, value: Any, message: str) -> None:
    assert refusal(name, value).startswith(message)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 1), ("steps", 100), ("steps", np.int64(5)), ("seed", None), ("seed", -3), ("rate", 1), ("rate", 1e-9),
        ("rate", np.float32(0.5)), ("shift", -1), ("limit", None), ("limit", 1e300), ("rule", "any"), ("unit", None),
        ("is_fast", True), ("note", None), ("note", ""), ("prompts", []), ("prompts", ("a", "b")), ("targets", ["to_q"]),
        ("targets", r"up_blocks\..*"), ("sizes", 2), ("sizes", [2, 9]),
    ],
)  # fmt: skip
def test_accepted_values(name: str, value: Any) -> None:
    assert getattr(Example(**{name: value}), name) is value
    check_value(Example, name, value)


@given(st.integers())
def test_integers_are_checked_against_both_bounds(value: int) -> None:
    if 1 <= value <= 100 and value != 13:
        assert Example(steps=value).steps == value
    else:
        with pytest.raises(SettingError):
            Example(steps=value)


@given(st.floats())
def test_numbers_are_finite_and_inside_their_bounds(value: float) -> None:
    if 0 < value <= 1:
        assert Example(rate=value).rate == value
    else:
        assert refusal("rate", value).endswith(f"got {value!r}")


@given(
    st.one_of(
        st.none(),
        st.booleans(),
        st.binary(),
        st.text(),
        st.lists(st.integers()),
        st.dictionaries(st.text(), st.text()),
    )
)
def test_other_types_are_no_numbers(value: Any) -> None:
    for name in ("steps", "rate"):
        assert refusal(name, value).startswith(f"expected {name} to be ")


@given(st.text(), st.lists(st.text()))
def test_sequences_of_strings(value: str, values: list[str]) -> None:
    assert Example(prompts=values).prompts == values  # type: ignore[arg-type]
    refusal("prompts", value)
    assert Example(name=value).name == value


def test_a_long_value_is_shown_short_and_on_one_line() -> None:
    message = refusal("rate", torch.zeros(90, 3))
    assert message.endswith("...")
    assert refusal("name", ["x" * 1000]).endswith("...")


def test_fields_that_contradict_each_other_and_unknown_fields() -> None:
    with pytest.raises(SettingError, match="another number of steps than 13"):
        Example(steps=13)
    with pytest.raises(SettingError, match=r"expected a setting of Example \(steps, seed, .*\), got 'colour'"):
        check_value(Example, "colour", 1)
    with pytest.raises(TypeError, match="colour"):
        Example(colour=1)  # type: ignore[call-arg]


def test_settings_are_frozen_and_replace_checks_again() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Example().steps = 3  # type: ignore[misc]
    with pytest.raises(SettingError, match="got 0"):
        dataclasses.replace(Example(), steps=0)


PUBLIC = ("TrainConfig", "SearchConfig", "LowRankMaskerConfig", "MaskGeneratorConfig")


def configs() -> Iterator[type[Settings]]:
    for module in pkgutil.walk_packages(maskunet.__path__, "maskunet."):
        if not module.name.endswith(("__main__", "triton_kernels")):  # the one needs Triton
            importlib.import_module(module.name)
    pending = [Settings]
    while pending:
        for subclass in pending.pop().__subclasses__():
            pending.append(subclass)
            if subclass.__module__.startswith("maskunet"):
                yield subclass


def test_every_config_checks_all_its_fields() -> None:
    found = list(configs())
    assert set(PUBLIC) <= {config.__name__ for config in found}
    for config in found:
        for item in dataclasses.fields(config):  # type: ignore[arg-type]
            assert "check" in item.metadata or config.check is not Settings.check, f"{config.__name__}.{item.name}"
            if "check" in item.metadata and item.default is not dataclasses.MISSING:
                check_value(config, item.name, item.default)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_configs_document_every_field(name: str) -> None:
    config = getattr(maskunet, name)
    for item in dataclasses.fields(config):
        # Fields that belong together may share a line: "adam_beta1, adam_beta2: ...".
        assert re.search(rf"^\s+(\w+, )*{item.name}(, \w+)*: ", config.__doc__, re.MULTILINE), item.name


def test_the_module_imports_no_torch() -> None:
    code = "import sys, maskunet.settings; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("keep", np.array([1, 2])),
        ("halves", np.array(["both"])),
        ("iterations", b"x"),
        ("iterations", [10**29]),
        ("height", 10**29),
        ("candidates", 2**31),
    ],
)
def test_values_that_torch_could_not_take(name: str, value: Any) -> None:
    with pytest.raises(SettingError, match=f"^expected {name} to be .*, got .*$"):
        maskunet.SearchConfig(**{name: value})
