"""Refuse wrong arguments of `evaluate` before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ..attaching import attachment_of
from ..errors import SettingError, TargetError
from ..maskers import Masker
from ..rewards.base import Reward
from ..searching import SearchConfig
from ..zoo.defaults import REWARD
from .benchmark import Benchmark
from .published import BENCHMARKS, read_sides


def check_benchmark(benchmark: object, **options: object) -> None:
    """Refuse something that is no benchmark, and options that a `Benchmark` sets itself.

    Args:
        benchmark: a benchmark's name or a `Benchmark`.
        options: options that apply to a named benchmark alone.

    Raises:
        SettingError: one of them is wrong.
    """
    if isinstance(benchmark, str):
        if benchmark not in BENCHMARKS:
            raise SettingError(f"expected a benchmark ({', '.join(BENCHMARKS)}) or a Benchmark, got {benchmark!r}")
    elif isinstance(benchmark, type) or not isinstance(benchmark, Benchmark):
        kind = f"the class {benchmark.__name__}" if isinstance(benchmark, type) else type(benchmark).__name__
        raise SettingError(f"expected a benchmark ({', '.join(BENCHMARKS)}) or a Benchmark, got {kind}")
    elif names := [name for name, value in options.items() if value is not None]:
        raise SettingError(f"expected no {', '.join(names)} with a Benchmark, which has its own; set them in it")


def check_sides(pipe: Any, sides: Any, masker: object) -> tuple[str, ...]:
    """Return the names of the built-in sides; empty for sides by name.

    Args:
        pipe: the pipeline.
        sides: names, or functions by name.
        masker: a masker or its source; the attached one if None.

    Raises:
        SettingError: unknown sides, or masks without a masker.
        TargetError: the attached masks are switched off.
    """
    if isinstance(sides, Mapping):
        if masker is not None:
            raise SettingError(
                "expected no masker with sides by name, which generate on their own; attach it in the side"
            )
        for name, side in sides.items():
            if not isinstance(name, str) or not callable(side):
                raise SettingError(
                    f"expected sides as functions (prompts, seeds) -> images by name, got {type(side).__name__} for {name!r}"
                )
        return ()
    if sides is not None and not isinstance(sides, str | Sequence):
        raise SettingError(f"expected names of sides or sides by name, got {type(sides).__name__}")
    if masker is not None and not isinstance(masker, Masker | str | os.PathLike):
        raise SettingError(f"expected a masker, its folder or a hub id, got {type(masker).__name__}")
    attachment = attachment_of(pipe)
    names = read_sides(sides, masker is not None or attachment is not None)
    if masker is None and attachment is not None and not attachment.enabled and any("masker" in n for n in names):
        raise TargetError(
            "expected masks that are switched on for the sides with a masker, maskunet.disabled is active"
        )
    return names


def check_search(
    names: Sequence[str], reward: Any, config: Any, *, bundled: bool
) -> tuple[SearchConfig | None, list[str] | None]:
    """Return the settings of searches, None without one, and the reward's descriptions, None for an object.

    Args:
        names: names of the sides.
        reward: a reward, a function or descriptions.
        config: settings, or a preset's name.
        bundled: the pipeline is the bundled model, which has a reward.

    Raises:
        SettingError: a reward or settings without a search, a search without a reward, or a wrong type.
    """
    if not any("search" in name for name in names):
        if reward is not None or config is not None:
            raise SettingError(
                "expected reward and search_config (--reward, --preset) only with the sides search or search+masker, got "
                f"{', '.join(names) or 'sides by name'}"
            )
        return None, None
    if config is not None and not isinstance(config, SearchConfig | str):
        raise SettingError(f"expected a SearchConfig or a preset's name, got {type(config).__name__}")
    settings = config if isinstance(config, SearchConfig) else SearchConfig.preset(config or "default")
    if reward is None:
        if not bundled:
            raise SettingError(
                "expected a reward (--reward) for the side search, such as image-reward or hpsv2:5; only the bundled model "
                "has a default"
            )
        return settings, [REWARD]
    if isinstance(reward, str):
        return settings, [reward]
    if isinstance(reward, Reward) or callable(reward):
        return settings, None
    if not isinstance(reward, Sequence) or not reward or not all(isinstance(text, str) for text in reward):
        raise SettingError(f"expected a reward, a function or a description such as 'hpsv2:5', got {reward!r}")
    return settings, list(reward)
