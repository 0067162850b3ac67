r"""How many weights the masks switch off: by layer, projection and block, over timesteps and over training.

For a group of layers l with :math:`n_l` weights each and kept shares :math:`d_l`, the mask ratio is

.. math:: 1 - \frac{\sum_l n_l d_l}{\sum_l n_l} .

Reference: the paper's analysis of mask ratios (decoder layers 2 to 5 have the highest; it rises in training and settles).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError, first_line
from ..metrics.intervals import Estimate, student
from ..network import LayerSpec
from ..plotting import COLOURS, MARKERS, band, new_mosaic
from .base import Analysis, format_percent, row
from .context import AnalysisContext
from .layer_names import block_name, projection_name, projection_names, short_name
from .mask_stream import masks_by_prompt, stream_masks

_TITLE = "Which weights does the masker switch off, when, and how many?"
_MAX_LABELS = 40  # layers whose names fit beside the map


def study(context: AnalysisContext) -> Analysis:
    """Measure mask ratios while the context's images are generated.

    Args:
        context: the images.

    Raises:
        DataError: the training run's stats.jsonl cannot be read or has no densities.
    """
    training = [] if context.settings.run is None else read_training(context.settings.run)
    layers = list(context.masker.network.layers)
    numbers = {layer.name: i for i, layer in enumerate(layers)}
    off = torch.zeros(context.unet_calls, len(layers), len(context.prompts))

    def on_mask(images: list[int], call: int, name: str, masks: Tensor) -> None:
        sets, set_of = masks_by_prompt(masks, len(images))
        off[call, numbers[name], images] = sets.float().mean(1)[set_of]

    timesteps = stream_masks(context, on_mask)
    rows = _rows(off, timesteps, layers, training)
    return Analysis(
        "density",
        _TITLE,
        _answer(off, timesteps, layers, training),
        rows,
        context.record("run", weights=sum(layer.weights for layer in layers), layers=len(layers)),
        lambda: _draw(off, timesteps, layers, training),
    )


def read_training(run: Path) -> list[tuple[int, float]]:
    """Return training step and density of each validation of a run.

    Args:
        run: the run's folder, or its stats.jsonl.

    Raises:
        DataError: it cannot be read, or holds no densities.
    """
    path = run / "stats.jsonl" if run.is_dir() else run
    try:
        entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        densities = [(int(e["step"]), float(e["density"])) for e in entries if e.get("density") is not None]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"expected a run's folder with stats.jsonl, or that file, could not read {path}: {first_line(error)}"
        ) from error
    if not densities:
        raise DataError(f"expected densities in {path}, it has none; only runs that train and validate masks log them")
    return densities


def _groups(layers: Sequence[LayerSpec], key: Callable[[str], str]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for i, layer in enumerate(layers):
        groups.setdefault(key(layer.name), []).append(i)
    return groups


def _ratio(off: Tensor, layers: Sequence[LayerSpec], group: Sequence[int]) -> Tensor:
    """Return the share of a group's weights that are off, (T, N)."""
    weights = torch.tensor([float(layers[i].weights) for i in group])
    return torch.einsum("tln,l->tn", off[:, list(group)], weights) / weights.sum()


def _rows(
    off: Tensor, timesteps: Sequence[float], layers: Sequence[LayerSpec], training: Sequence[tuple[int, float]]
) -> list[dict[str, Any]]:
    rows = []
    kinds = {
        "all": {"all": list(range(len(layers)))},
        "projection": _groups(layers, projection_name),
        "block": _groups(layers, block_name),
        "layer": {layer.name: [i] for i, layer in enumerate(layers)},
    }
    for kind, groups in kinds.items():
        for name, group in groups.items():
            ratio = _ratio(off, layers, group)
            rows.append(row(f"mask ratio by {kind}", student(ratio.mean(0)), "share", group=name, timestep="mean"))
            rows += [
                row(f"mask ratio by {kind}", student(r), "share", group=name, timestep=t)
                for t, r in zip(timesteps, ratio, strict=True)
            ]
    rows += [row("mask ratio over training", 1 - d, "share", group="all", training_step=s) for s, d in training]
    return rows


def _answer(
    off: Tensor, timesteps: Sequence[float], layers: Sequence[LayerSpec], training: Sequence[tuple[int, float]]
) -> str:
    every = _ratio(off, layers, range(len(layers)))
    mean = student(every.mean(0))
    if mean.value == 0:
        return f"The masks keep every weight, in all {len(timesteps)} U-Net calls and for all {off.shape[2]} images."
    first, last = (format_percent(float(every[i].mean()), ".2f") for i in (0, -1))
    groups = _groups(layers, projection_name)
    shares = {p: float(_ratio(off, layers, groups[p]).mean()) for p in projection_names(layers)}
    by_projection = ", ".join(f"{name} {format_percent(share, '.2f')}" for name, share in shares.items())
    per_layer = off.mean((0, 2))
    top = int(per_layer.argmax())
    never = int((per_layer == 0).sum())
    text = (
        f"{format_percent(mean, '.2f')} of the weights are switched off on average: {first} at timestep {timesteps[0]:g}, "
        f"{last} at timestep {timesteps[-1]:g}. By projection: {by_projection}. The most masked layer is "
        f"{short_name(layers[top].name)} ({format_percent(float(per_layer[top]))}); "
    )
    text += f"{never} of {len(layers)} layers are never masked." if never else f"all {len(layers)} layers are masked."
    if training:
        first, last = (f"{format_percent(1 - d, '.2f')} at step {step}" for step, d in (training[0], training[-1]))
        text += f" During training, the share went from {first} to {last}."
    return text


def _draw(
    off: Tensor, timesteps: Sequence[float], layers: Sequence[LayerSpec], training: Sequence[tuple[int, float]]
) -> Any:
    layout, heights = ("AB;AC;AD", (2.5, 2.5, 2.2)) if training else ("AB;AC", (3.2, 3.2))
    figure, axes = new_mosaic(layout, width=5.4, heights=heights)
    _map(figure, axes["A"], off.mean(2).T * 100, timesteps, layers)
    by_projection = {p: _groups(layers, projection_name)[p] for p in projection_names(layers)}
    for letter, groups, kind in (("B", by_projection, "projection"), ("C", _groups(layers, block_name), "block")):
        axis = axes[letter]
        for i, (name, group) in enumerate(groups.items()):
            estimates: list[Estimate] = [student(r) for r in _ratio(off, layers, group) * 100]
            bounds = [[getattr(e, key) for e in estimates] for key in ("value", "low", "high")]
            band(axis, list(timesteps), *bounds, number=i, label=name, markevery=max(1, len(timesteps) // 8))
        _label_time_axis(axis, kind)
    if training:
        axis = axes["D"]
        steps, ratios = [0, *(s for s, _ in training)], [0.0, *(100 * (1 - d) for _, d in training)]
        axis.plot(steps, ratios, color=COLOURS[7], marker=MARKERS[0])
        axis.set_xlabel("training step (0: a new masker keeps all weights)")
        axis.set_ylabel("switched off (%)")
        axis.set_title("over training", fontsize=9)
    return figure


def _label_time_axis(axis: Any, kind: str) -> None:
    axis.invert_xaxis()
    axis.set_ylim(bottom=0)
    axis.set_xlabel("timestep (noise left, image right)")
    axis.set_ylabel("switched off (%)")
    axis.set_title(f"by {kind}", fontsize=9)
    axis.legend(fontsize=8)


def _map(figure: Any, axis: Any, ratio: Tensor, timesteps: Sequence[float], layers: Sequence[LayerSpec]) -> None:
    image = axis.imshow(ratio.numpy(), aspect="auto", cmap="cividis", vmin=0, interpolation="nearest")
    axis.grid(False)
    if len(layers) <= _MAX_LABELS:
        axis.set_yticks(range(len(layers)), [short_name(layer.name) for layer in layers], fontsize=6)
    else:
        axis.set_ylabel(f"{len(layers)} layers, in network order")
    ticks = sorted({0, len(timesteps) // 2, len(timesteps) - 1})
    axis.set_xticks(ticks, [f"{timesteps[i]:g}" for i in ticks])
    axis.set_xlabel("timestep")
    axis.set_title("by layer, mean over images", fontsize=9)
    figure.colorbar(image, ax=axis, label="switched off (%)", shrink=0.6)
