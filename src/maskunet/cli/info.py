"""`maskunet info`: what a masker or a model consists of."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import CheckpointError, MaskUNetError
from .loading import is_search_output, open_masker
from .options import option


def info(
    source: Annotated[
        str, typer.Argument(help="Masker (as for --masker, also a search's output folder) or model (as for --model).")
    ],
    targets: Annotated[
        str, option(text="Layers to count in a model: a preset, a regular expression.", default="decoder-attention")
    ] = "decoder-attention",
) -> None:
    """Show the parameters, target layers and density of a masker or a model."""
    for line in describe_source(source, targets):
        typer.echo(line)


def _count(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _layer_lines(network: Any) -> list[str]:
    lines = [f"targets        {network.weights:,} weights in {len(network.layers)} layers"]
    for block in network.blocks:
        weights = sum(layer.weights for layer in block.layers)
        lines.append(f"  {block.name:<13}{weights:>12,} weights in {len(block.layers)} layers")
    return lines


def _masker_lines(masker: Any) -> list[str]:
    from ..maskers import ComposedMasker

    lines = [f"masker         {type(masker).__name__}", f"parameters     {_count(masker):,}"]
    if isinstance(masker, ComposedMasker):
        lines += [f"compose        {masker.compose}", *_layer_lines(masker.network)]
        for name, part in masker.maskers.items():
            lines += ["", f"{name}:", *(f"  {line}" for line in _masker_lines(part))]
        return lines
    lines += [f"{name:<15}{value}" for name, value in masker.settings.items() if name != "samples"]
    lines.append(f"conditions     {', '.join(masker.conditions) or 'none; maskunet export merges its masks exactly'}")
    if masker.replaced_guidance is not None:
        lines.append(
            f"guidance       replaces a scale of {masker.replaced_guidance:g}; sample with --guidance-scale 1"
        )
    return [*lines, *_layer_lines(masker.network), f"density        {_density(masker)}"]


def _density(masker: Any) -> str:
    """Return the kept fraction, where it can be known without running a model."""
    from ..maskers import FixedMasks, MaskSchedule, MaskTable, RandomMasks
    from ..relaxation import threshold

    if isinstance(masker, RandomMasks):
        return f"{masker.density} (drawn)"
    if isinstance(masker, MaskSchedule):
        return f"{float(masker.density().mean()):.4f} (mean over its timesteps)"
    if isinstance(masker, FixedMasks):
        layers = masker.network.layers
        kept = sum(float(masker[layer.name].float().mean()) * layer.weights for layer in layers)
        return f"{kept / masker.network.weights:.4f}"
    if isinstance(masker, MaskTable):
        logits = list(masker.logits.values())
        kept = sum(float(threshold(value.detach()).mean()) * value.numel() for value in logits)
        return f"{kept / sum(value.numel() for value in logits):.4f} (without noise)"
    if not masker.conditions:
        import torch

        from ..merging.mask_choice import constant_masks

        masks = constant_masks(masker, torch.device("cpu")).values()
        return f"{sum(int(mask.sum()) for mask in masks) / masker.network.weights:.4f}"
    return "depends on timestep and sample; record it with maskunet.record, or run maskunet analyze density"


def describe_source(source: str, targets: str) -> list[str]:
    """Return the lines that describe a masker or a model.

    Args:
        source: a masker or a model, as the command takes it.
        targets: the layers to count in a model.

    Raises:
        CheckpointError: it is neither.
        TargetError: the targets match no layer of the model.
    """
    from .. import load, zoo
    from ..checkpoint import CONFIG
    from ..pipelines import load_pipeline, silence_loading
    from ..targets import describe

    if is_search_output(source):
        return _masker_lines(open_masker(source))
    path = zoo.path(source) if source == "shapes-masker" else Path(source)
    if (path / CONFIG).is_file() and not (path / "model_index.json").is_file():
        return _masker_lines(load(path))
    silence_loading()
    try:
        pipe = load_pipeline(source)
    except MaskUNetError as no_model:
        if source.count("/") != 1 or path.exists():
            raise
        try:
            return _masker_lines(load(source))
        except MaskUNetError as no_masker:
            raise CheckpointError(f"{no_model}; nor is it a masker: {no_masker}") from no_masker
    lines = [f"model          {type(pipe).__name__}"]
    for name, component in pipe.components.items():
        if hasattr(component, "parameters"):
            lines.append(f"  {name:<13}{_count(component):>12,} parameters ({type(component).__name__})")
    prediction = pipe.scheduler.config.get("prediction_type", "epsilon")
    lines.append(f"scheduler      {type(pipe.scheduler).__name__}, predicts {prediction}")
    return lines + _layer_lines(describe(pipe, targets))
