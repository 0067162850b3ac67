"""Trials: a study with a share of its counts, to try a command out."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

#: Lower bounds of a shortened study; 12 where nothing is listed.
_LEAST = {"seeds": 2, "steps": 2, "snapshots": 2, "images_per_prompt": 1, "train_samples": 64, "reference_images": 64}
_LEAST |= {"train_batch_size": 4, "reward_batch_size": 2}
_COUNTS = {*_LEAST, "prompts", "validation_prompts"}


def shortened(config: Any, share: float) -> Any:
    """Return a study's config with a share of its seeds, steps, samples and prompts, to try the command out.

    Args:
        config: a config of one of the studies.
        share: in (0, 1]; 1 returns the config itself.
    """
    if share == 1.0:
        return config
    changes: dict[str, Any] = {}
    for item in fields(config):
        if item.name in _COUNTS:
            changes[item.name] = max(_LEAST.get(item.name, 12), round(getattr(config, item.name) * share))
        elif item.name == "rates":
            changes["rates"] = {method: rates[:1] for method, rates in config.rates.items()}
    return replace(config, **changes)
