r"""How many weights the masks switch off: by layer, projection and block, over timesteps and over training.

The mask ratio of a group of layers l with :math:`n_l` weights, of which the share :math:`d_l` is kept, is

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

from ..errors import DataError
from ..metrics.intervals import Estimate, student
from ..plotting import COLOURS, MARKERS, band, new_mosaic
from ..targets import LayerSpec
from .base import Analysis, percent, row
from .context import Subject
from .layer_names import projection_of, projections_of, short_name
from .mask_stream import sets_of_samples, stream_masks

_TITLE = "Which weights does the masker switch off, when, and how many?"
_MOST_LABELS = 40  # layers whose names fit beside the map


def study(subject: Subject) -> Analysis:
    """Measure mask ratios while the subject's pictures are drawn.

    Raises:
        DataError: the training run's stats.jsonl cannot be read or has no densities.
    """
    training = [] if subject.settings.run is None else read_training(subject.settings.run)
    layers = list(subject.masker.network.layers)
    numbers = {layer.name: i for i, layer in enumerate(layers)}
    off = torch.zeros(subject.calls, len(layers), len(subject.texts))

    def see(pictures: list[int], call: int, name: str, masks: Tensor) -> None:
        sets, which = sets_of_samples(masks, len(pictures))
        off[call, numbers[name], pictures] = sets.float().mean(1)[which]

    timesteps = stream_masks(subject, see)
    rows = _rows(off, timesteps, layers, training)
    return Analysis(
        "density",
        _TITLE,
        _answer(off, timesteps, layers, training),
        rows,
        subject.record("run", weights=sum(layer.weights for layer in layers), layers=len(layers)),
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
        found = [(int(e["step"]), float(e["density"])) for e in entries if e.get("density") is not None]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"expected a run's folder with stats.jsonl, or that file, could not read {path}: {error}"
        ) from error
    if not found:
        raise DataError(f"expected densities in {path}, it has none; only runs that train masks and validate log them")
    return found


def _groups(layers: Sequence[LayerSpec], key: Callable[[str], str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for i, layer in enumerate(layers):
        found.setdefault(key(layer.name), []).append(i)
    return found


def _block(name: str) -> str:
    return name.split(".attentions")[0].split(".resnets")[0].split(".upsamplers")[0].split(".downsamplers")[0]


def _ratio(off: Tensor, layers: Sequence[LayerSpec], chosen: Sequence[int]) -> Tensor:
    """Share of a group's weights that are off, (T, N)."""
    weights = torch.tensor([float(layers[i].weights) for i in chosen])
    return torch.einsum("tln,l->tn", off[:, list(chosen)], weights) / weights.sum()


def _rows(
    off: Tensor, timesteps: Sequence[float], layers: Sequence[LayerSpec], training: Sequence[tuple[int, float]]
) -> list[dict[str, Any]]:
    rows = []
    kinds = {
        "all": {"all": list(range(len(layers)))},
        "projection": _groups(layers, projection_of),
        "block": _groups(layers, _block),
        "layer": {layer.name: [i] for i, layer in enumerate(layers)},
    }
    for kind, groups in kinds.items():
        for name, chosen in groups.items():
            ratio = _ratio(off, layers, chosen)
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
        return f"The masks keep every weight, at all {len(timesteps)} calls and for all {off.shape[2]} pictures."
    first, last = (percent(float(every[i].mean()), 2) for i in (0, -1))
    groups = _groups(layers, projection_of)
    by = ", ".join(f"{p} {percent(float(_ratio(off, layers, groups[p]).mean()), 2)}" for p in projections_of(layers))
    per_layer = off.mean((0, 2))
    top = int(per_layer.argmax())
    never = int((per_layer == 0).sum())
    text = (
        f"{percent(mean, 2)} of the weights are switched off on average, {first} at timestep {timesteps[0]:g} and {last} at "
        f"{timesteps[-1]:g}; by projection {by}; most in {short_name(layers[top].name)} "
        f"({percent(float(per_layer[top]))}), nothing in {never} of {len(layers)} layers"
    )
    if training:
        text += f"; in training the share went from {percent(1 - training[0][1], 2)} at step {training[0][0]} to "
        text += f"{percent(1 - training[-1][1], 2)} at step {training[-1][0]}"
    return text + "."


def _draw(
    off: Tensor, timesteps: Sequence[float], layers: Sequence[LayerSpec], training: Sequence[tuple[int, float]]
) -> Any:
    layout, heights = ("AB;AC;AD", (2.5, 2.5, 2.2)) if training else ("AB;AC", (3.2, 3.2))
    figure, axes = new_mosaic(layout, width=5.4, heights=heights)
    _map(figure, axes["A"], off.mean(2).T * 100, timesteps, layers)
    by_projection = {p: _groups(layers, projection_of)[p] for p in projections_of(layers)}
    for letter, groups, what in (("B", by_projection, "projection"), ("C", _groups(layers, _block), "block")):
        axis = axes[letter]
        for i, (name, chosen) in enumerate(groups.items()):
            found: list[Estimate] = [student(r) for r in _ratio(off, layers, chosen) * 100]
            bounds = [[getattr(e, key) for e in found] for key in ("value", "low", "high")]
            band(axis, list(timesteps), *bounds, number=i, label=name, markevery=max(1, len(timesteps) // 8))
        _towards_the_picture(axis, what)
    if training:
        axis = axes["D"]
        steps, ratios = [0, *(s for s, _ in training)], [0.0, *(100 * (1 - d) for _, d in training)]
        axis.plot(steps, ratios, color=COLOURS[7], marker=MARKERS[0])
        axis.set_xlabel("training step (at 0 a fresh masker keeps all)")
        axis.set_ylabel("switched off (%)")
        axis.set_title("over training", fontsize=9)
    return figure


def _towards_the_picture(axis: Any, what: str) -> None:
    axis.invert_xaxis()
    axis.set_ylim(bottom=0)
    axis.set_xlabel("timestep (noise left, picture right)")
    axis.set_ylabel("switched off (%)")
    axis.set_title(f"by {what}", fontsize=9)
    axis.legend(fontsize=8)


def _map(figure: Any, axis: Any, ratio: Tensor, timesteps: Sequence[float], layers: Sequence[LayerSpec]) -> None:
    image = axis.imshow(ratio.numpy(), aspect="auto", cmap="cividis", vmin=0, interpolation="nearest")
    axis.grid(False)
    if len(layers) <= _MOST_LABELS:
        axis.set_yticks(range(len(layers)), [short_name(layer.name) for layer in layers], fontsize=6)
    else:
        axis.set_ylabel(f"{len(layers)} layers in the network's order")
    ticks = sorted({0, len(timesteps) // 2, len(timesteps) - 1})
    axis.set_xticks(ticks, [f"{timesteps[i]:g}" for i in ticks])
    axis.set_xlabel("timestep")
    axis.set_title("by layer, mean over pictures", fontsize=9)
    figure.colorbar(image, ax=axis, label="switched off (%)", shrink=0.6)
