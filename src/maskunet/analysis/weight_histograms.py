"""Histograms of the weights that random masks remove."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..plotting import COLOURS
from ..quantised import dense_weight
from ..targets import describe, maskable_layers, unet_of
from .context import AnalysisContext
from .mask_stream import watch_masks

_BINS = 60


@dataclass
class WeightHistograms:
    """Histograms of target weights: of all, and of those that one set of random masks removes, by step.

    Args:
        edges: edges of the bins.
        all_weights: histogram of all target weights.
        removed: histogram of the removed weights, by U-Net call.
    """

    edges: Tensor
    all_weights: Tensor
    removed: dict[int, Tensor]


def collect_removed(
    context: AnalysisContext, histograms: WeightHistograms, steps: list[int]
) -> AbstractContextManager[None]:
    """Return a context in which the weights removed at some steps are added to the histograms.

    Args:
        context: the images.
        histograms: receive the counts.
        steps: numbers of the U-Net calls.
    """
    modules = maskable_layers(unet_of(context.pipe))
    for call in steps:
        histograms.removed[call] = torch.zeros_like(histograms.all_weights)

    def on_mask(call: int, name: str, off: Tensor) -> None:
        if call in steps:  # of the first batch: the count of calls continues over the others, whose masks are the same
            histograms.removed[call] += torch.histogram(_values(modules[name])[off[0]], histograms.edges).hist

    return watch_masks(context.pipe, on_mask)


def _values(module: Any) -> Tensor:
    return dense_weight(module).detach().float().cpu().flatten()  # type: ignore[no-any-return]


def histogram_weights(context: AnalysisContext) -> WeightHistograms:
    """Return the histogram of all target weights.

    Args:
        context: the images.
    """
    modules = maskable_layers(unet_of(context.pipe))
    values = [_values(modules[layer.name]) for layer in describe(context.pipe).layers]
    reach = max(float(v.abs().max()) for v in values)
    edges = torch.linspace(-reach, reach, _BINS + 1)
    return WeightHistograms(edges, torch.stack([torch.histogram(v, edges).hist for v in values]).sum(0), {})


def draw_histograms(axis: Any, histograms: WeightHistograms, rate: float) -> None:
    """Draw the histograms.

    Args:
        axis: the axes to draw on.
        histograms: the histograms.
        rate: the drop ratio of the random masks.
    """
    edges = histograms.edges.numpy()
    axis.stairs(histograms.all_weights.numpy(), edges, fill=True, color="#BBBBBB", label="all target weights")
    styles = ("-", "--", "-.", ":")
    for i, (k, counts) in enumerate(histograms.removed.items()):
        style = {"color": COLOURS[i], "linestyle": styles[i % 4], "linewidth": 1.2}
        axis.stairs(counts.numpy(), edges, label=f"removed at step {k + 1}", **style)
    axis.set_yscale("log")
    axis.set_xlabel("weight")
    axis.set_ylabel("number of weights")
    axis.set_title(f"weights removed by a random mask of {100 * rate:g} %", fontsize=9)
    axis.legend(fontsize=7)
