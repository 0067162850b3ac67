"""What `maskunet info` prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import zoo
from ..checkpoint import CONFIG, load
from ..errors import CheckpointError, MaskUNetError
from ..maskers import Masker
from ..pipelines import load_pipeline, silence_loading
from ..targets import Network, describe


def _count(module: Any) -> int:
    return sum(p.numel() for p in module.parameters())


def _layers(network: Network) -> list[str]:
    lines = [f"targets        {network.weights:,} weights in {len(network.layers)} layers"]
    for block in network.blocks:
        weights = sum(layer.weights for layer in block.layers)
        lines.append(f"  {block.name:<13}{weights:>12,} weights in {len(block.layers)} layers")
    return lines


def _masker_lines(masker: Masker) -> list[str]:
    lines = [f"masker         {type(masker).__name__}", f"parameters     {_count(masker):,}"]
    lines += [f"{name:<15}{value}" for name, value in masker.settings.items() if name != "samples"]
    lines += _layers(masker.network)
    density = _density(masker)
    if density is not None:
        lines.append(f"density        {density}")
    return lines


def _density(masker: Masker) -> str | None:
    """Say what is kept, where that can be known without running a model."""
    from ..maskers import FixedMasks, MaskTable, RandomMasks
    from ..relaxation import threshold

    if isinstance(masker, RandomMasks):
        return f"{masker.density} (drawn)"
    if isinstance(masker, FixedMasks):
        kept = sum(float(masker[x.name].float().mean()) * x.weights for x in masker.network.layers)
        return f"{kept / masker.network.weights:.4f}"
    if isinstance(masker, MaskTable):
        kept = sum(float(threshold(v.detach()).mean()) * v.numel() for v in masker.logits.values())
        return f"{kept / sum(v.numel() for v in masker.logits.values()):.4f} (without noise)"
    return "depends on timestep and sample; record it with maskunet.record, or see it in maskunet demo"


def describe_source(source: str, targets: str) -> list[str]:
    """Return the lines that describe a masker or a model.

    Raises:
        CheckpointError: it is neither.
    """
    path = zoo.path(source) if source == "shapes-masker" else Path(source)
    if (path / CONFIG).is_file() and not (path / "model_index.json").is_file():
        return _masker_lines(load(path))
    silence_loading()
    try:
        pipe = load_pipeline(source)
    except MaskUNetError as not_a_model:
        if source.count("/") != 1 or path.exists():
            raise
        try:
            return _masker_lines(load(source))
        except MaskUNetError as not_a_masker:
            raise CheckpointError(f"{not_a_model}; nor is it a masker: {not_a_masker}") from not_a_masker
    lines = [f"model          {type(pipe).__name__}"]
    for name, part in pipe.components.items():
        if hasattr(part, "parameters"):
            lines.append(f"  {name:<13}{_count(part):>12,} parameters ({type(part).__name__})")
    kind = pipe.scheduler.config.get("prediction_type", "epsilon")
    lines.append(f"scheduler      {type(pipe.scheduler).__name__}, predicts {kind}")
    return lines + _layers(describe(pipe, targets))
