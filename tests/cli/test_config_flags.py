"""Flags that are read from config classes."""

from __future__ import annotations

from dataclasses import dataclass, fields

import pytest

import maskunet as mu
from maskunet.cli import defaults, search, train
from maskunet.cli.config_flags import ConfigFlags, docstring_args, shown
from maskunet.errors import SettingError
from maskunet.settings import Settings, counts, flag, integer, layer_targets, number, text, texts


@dataclass(frozen=True)
class Example(Settings):
    """An example.

    Args:
        steps: how many; a text
            of two lines.
        left, right: widths.
        name: its name.
        words: its words.
        per_step: one number, or several.
        targets: layers.
        is_quick: be quick.

    Raises:
        SettingError: never.
    """

    steps: int = integer(3, at_least=1)
    left: float | None = number(None, above=0, optional=True)
    right: float = number(1.0)
    name: str | None = text("a", optional=True)
    words: tuple[str, ...] = texts()
    per_step: int | tuple[int, ...] = counts(2)
    targets: str | tuple[str, ...] = layer_targets("all")
    is_quick: bool = flag(False)


FLAGS = ConfigFlags(Example, lambda name: shown(getattr(Example(), name)), heading="H", names={"left": ["--l"]})


def test_texts_come_from_the_docstring() -> None:
    texts_by_field = docstring_args(Example)
    assert texts_by_field["steps"] == "how many; a text of two lines."
    assert texts_by_field["left"] == texts_by_field["right"] == "widths."
    assert texts_by_field.keys() == {item.name for item in fields(Example)}


@pytest.mark.parametrize("config", [mu.TrainConfig, mu.SearchConfig])
def test_every_setting_has_a_text(config: type[Settings]) -> None:
    assert docstring_args(config).keys() == {item.name for item in fields(config)}


def test_values_are_converted() -> None:
    values = {"steps": "4", "left": "none", "right": "1e-3", "name": None, "words": ["a b", "c"], "is_quick": True}
    assert FLAGS.settings(values) == {
        "steps": 4,
        "left": None,
        "right": 1e-3,
        "words": ("a b", "c"),
        "is_quick": True,
    }
    assert FLAGS.settings({"words": []}) == {}


def test_sequences_have_commas() -> None:
    flags = search.FLAGS
    assert flags.settings({"iterations": "0,4,0", "targets": "to_q, to_k"}) == {
        "iterations": (0, 4, 0),
        "targets": ("to_q", "to_k"),
    }
    assert flags.settings({"iterations": "3", "targets": "all"}) == {"iterations": 3, "targets": "all"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": "x"}, "expected --steps to be an integer, got 'x'"),
        ({"steps": "0"}, "expected --steps to be an integer >= 1, got 0"),
        ({"left": "0"}, "expected --l to be a finite number > 0 or None, got 0.0"),
        ({"right": "nan"}, "expected --right to be a finite number, got nan"),
    ],
)
def test_errors_name_the_flag(values: dict[str, str], message: str) -> None:
    with pytest.raises(SettingError) as error:
        FLAGS.settings(values)
    assert str(error.value) == message


def test_defaults_of_the_masker_are_those_of_its_config() -> None:
    stated = defaults.masker_defaults()
    for config in (mu.MaskGeneratorConfig(), mu.LowRankMaskerConfig()):
        for item in fields(config):
            assert stated[item.name] == getattr(config, item.name), item.name


def test_help_states_presets_and_the_bundled_model() -> None:
    assert search.FLAGS.default("candidates") == "7; 1 with preset masks or fast or paper"
    assert search.FLAGS.default("guidance_scale") == "7.5; 4 with shapes"
    assert train.FLAGS.default("train_batch_size") == "4; 64 with shapes"
    assert train.FLAGS.default("adam_epsilon") == "1e-08"
