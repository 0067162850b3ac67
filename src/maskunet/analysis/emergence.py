r"""What appears earlier: predicted clean images over steps, without and with masks, from the same noise.

At each step :math:`\hat x_0` is decoded. An image's progress is its distance to the final image, relative to that of the
first step, for layout (the image at an eighth of its size) and detail (the remainder); and, in the bundled world, whether
the judge already finds what the prompt requires.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attaching import disabled
from ..evaluation.comparison import SIDES
from ..metrics.intervals import Estimate, student
from ..plotting import band, new_mosaic, show_image
from .base import Analysis, format_estimate, format_percent, row
from .bundled_reference import mean_share
from .context import AnalysisContext, evenly_spaced

_TITLE = "Predicted clean images over steps: what appears earlier with masks?"
_SHOWN = 5  # steps in the plot
_EXAMPLES = 2
_COARSE = 8  # layout is the image at an eighth of its size
PARTS = ("layout", "detail")


@dataclass
class Trajectory:
    """One side's predicted images over T steps.

    Args:
        coarse: distances of the layout to the final image's, (T, n).
        fine: distances of the detail to the final image's, (T, n).
        right: whether the judge finds what the prompt requires, (T, n); None without a judge.
        shown: predicted images of the first k samples, bytes (T, k, 3, H, W).
        final: finished images (n, 3, H, W).
    """

    coarse: Tensor
    fine: Tensor
    right: Tensor | None
    shown: Tensor
    final: Tensor


def study(context: AnalysisContext) -> Analysis:
    """Generate the context's images on both sides, decoding the prediction of each step.

    Args:
        context: the images.
    """
    trajectories: dict[str, Trajectory] = {}
    timesteps: list[float] = []
    for k, side in enumerate(SIDES):
        with disabled(context.pipe) if side == "base" else contextlib.nullcontext():
            trajectories[side], timesteps = _trajectory(context, side, (k / 2, (k + 1) / 2))
    examples = _examples(trajectories)
    return Analysis(
        "emergence",
        _TITLE,
        _answer(context, trajectories),
        _rows(context, trajectories, timesteps),
        context.record(),
        lambda: _draw(context, trajectories, timesteps, examples),
    )


@torch.no_grad()
def _trajectory(context: AnalysisContext, side: str, span: tuple[float, float]) -> tuple[Trajectory, list[float]]:
    coarse, fine, right, shown, final = [], [], [], [], []
    timesteps: list[float] = []
    for numbers, sampler in context.samplers(f"{side}: predictions", span):
        timesteps, images = [float(t) for t in sampler.timesteps], []
        while not sampler.is_finished:
            output = sampler.predict()
            images.append(sampler.decode(sampler.pred_x0(output)).cpu())
            sampler.advance(output)
        last = sampler.decode(sampler.latents).cpu()
        parts = [_distances(x, last) for x in images]
        coarse.append(torch.stack([p[0] for p in parts]))
        fine.append(torch.stack([p[1] for p in parts]))
        right.append([context.judge(x, numbers) for x in images])
        # All of the small images are stored, and the first of others: an image's index is its number.
        count = len(numbers) if context.requirements else max(0, _EXAMPLES - numbers[0])
        shown.append((torch.stack([x[:count] for x in images]) * 255).round().byte())
        final.append(last)
    judged = None if context.requirements is None else torch.cat([torch.tensor(r) for r in right], 1)
    return Trajectory(
        torch.cat(coarse, 1), torch.cat(fine, 1), judged, torch.cat(shown, 1), torch.cat(final)
    ), timesteps


def _distances(images: Tensor, final: Tensor) -> tuple[Tensor, Tensor]:
    """Return the root mean square distances of layout and of detail, (n,) each."""
    difference = images - final
    side = max(1, min(difference.shape[2:]) // _COARSE)
    layout = F.interpolate(F.avg_pool2d(difference, side), size=difference.shape[2:], mode="nearest")
    return layout.square().mean((1, 2, 3)).sqrt(), (difference - layout).square().mean((1, 2, 3)).sqrt()


def half_distance_step(distances: Tensor) -> Tensor:
    """Return the first step, counted from 1, from which an image stays within half its first distance, (n,).

    Args:
        distances: distances to the final image, (T, n).
    """
    near = distances <= distances[:1] / 2
    stays = near.flip(0).cummin(0).values.flip(0)
    return len(distances) + 1 - stays.sum(0).float()


def settled_step(right: Tensor) -> Tensor:
    """Return the first step, counted from 1, from which an image stays right, (n,); NaN if it never does.

    Args:
        right: whether the prediction is right, (T, n).
    """
    stays = right.flip(0).cummin(0).values.flip(0).sum(0)
    return torch.where(stays > 0, len(right) + 1 - stays.float(), torch.nan)


def _gap(trajectories: dict[str, Trajectory], part: str) -> Estimate:
    """Return masked minus base steps of layout, detail or "right"; over images that settle on both sides."""
    steps = []
    for side in SIDES:
        trajectory = trajectories[side]
        if part == "right" and trajectory.right is not None:
            steps.append(settled_step(trajectory.right))
        else:
            steps.append(half_distance_step(trajectory.coarse if part == "layout" else trajectory.fine))
    difference = steps[1] - steps[0]
    difference = difference[difference.isfinite()]
    return student(difference) if len(difference) else Estimate(*[float("nan")] * 3)


def _relative(distances: Tensor) -> list[Estimate]:
    return [student(d) for d in distances / distances[:1].clamp_min(1e-9)]


def _right(context: AnalysisContext, flags: Tensor) -> Estimate:
    return mean_share(flags[None], context.prompts, context.tasks)


def _rows(
    context: AnalysisContext, trajectories: dict[str, Trajectory], timesteps: list[float]
) -> list[dict[str, Any]]:
    rows = []
    for side, trajectory in trajectories.items():
        for part, distances in zip(PARTS, (trajectory.coarse, trajectory.fine), strict=True):
            for k, value in enumerate(_relative(distances)):
                keys = {"side": side, "step": k + 1, "timestep": timesteps[k]}
                rows.append(row(f"{part}: distance to the final image", value, "of the first step's", **keys))
        for k, flags in enumerate([] if trajectory.right is None else trajectory.right):
            keys = {"side": side, "step": k + 1, "timestep": timesteps[k]}
            rows.append(row("right predictions", _right(context, flags), "share", **keys))
    for part in (*PARTS, *(() if context.requirements is None else ("right",))):
        rows.append(row(f"{part}: masked minus base", _gap(trajectories, part), "steps", side="masked - base"))
    change = (trajectories["masked"].final - trajectories["base"].final).square().mean((1, 2, 3)).sqrt()
    rows.append(row("change of the final image", student(change), "RMS of [0, 1]", side="masked - base"))
    return rows


def _answer(context: AnalysisContext, trajectories: dict[str, Trajectory]) -> str:
    parts = PARTS if context.requirements is None else (*PARTS, "right")
    gaps = {part: _gap(trajectories, part) for part in parts}
    names = {"layout": "the layout", "detail": "the detail", "right": "the prompt's content"}
    verdicts = [
        f"{names[part]} appears {'earlier' if gap.high < 0 else 'later'}"
        for part, gap in gaps.items()
        if gap.high < 0 or gap.low > 0
    ]
    text = f"With masks, {' and '.join(verdicts) or 'nothing appears measurably earlier or later'}."
    steps = ", ".join(f"{part} {format_estimate(gap, '+.2f')}" for part, gap in gaps.items() if part != "right")
    text += f" Masked minus base, in steps to half the first distance: {steps}"
    text += (
        f"; until the judge's verdict is final: {format_estimate(gaps['right'], '+.2f')}." if "right" in gaps else "."
    )
    base, masked = trajectories["base"].right, trajectories["masked"].right
    if base is not None and masked is not None:
        half = len(base) // 2
        text += (
            f" Halfway through the steps, {format_percent(_right(context, masked[half]))} of the predictions are right with "
            f"masks and {format_percent(_right(context, base[half]))} without."
        )
    return text


def _examples(trajectories: dict[str, Trajectory]) -> list[int]:
    """Return the images that masks change most, among the stored ones."""
    count = trajectories["base"].shown.shape[1]
    change = (trajectories["masked"].final[:count] - trajectories["base"].final[:count]).square().mean((1, 2, 3))
    return change.argsort(descending=True)[:_EXAMPLES].tolist()


def _draw(
    context: AnalysisContext, trajectories: dict[str, Trajectory], timesteps: list[float], examples: list[int]
) -> Any:
    steps = evenly_spaced(len(timesteps), _SHOWN)
    curves = ["layout", "detail"] + ([] if context.requirements is None else ["right"])
    letters, width = "ABC"[: len(curves)], 6
    layout = f"{_spread('PQ'[: len(examples)], width)};{_spread(letters, width)}"
    figure, axes = new_mosaic(layout, width=2.1, heights=(4.1, 2.8))
    for letter, i in zip("PQ", examples, strict=False):
        title = f"{'among the most changed: ' if context.requirements else ''}“{context.prompts[i]}”"
        _strip(axes[letter], trajectories, steps, timesteps, i, title)
    for letter, part in zip(letters, curves, strict=True):
        _curve(axes[letter], context, trajectories, part)
    return figure


def _spread(letters: str, width: int) -> str:
    return "".join(letter * (width // len(letters)) for letter in letters)


def _strip(
    axis: Any, trajectories: dict[str, Trajectory], steps: list[int], timesteps: list[float], i: int, text: str
) -> None:
    """Draw one row each for base, masked and their difference, and one column per step."""
    base, masked = (trajectories[side].shown[steps, i].float() / 255 for side in SIDES)
    difference = (masked - base).abs().mean(1, keepdim=True)
    scale = float(difference.max().clamp_min(1e-3))
    shades = 1 - (difference / scale).expand(-1, 3, -1, -1)
    height, width = base.shape[2:]
    rows = [torch.cat([F.pad(x, (0, 2, 0, 2), value=1.0) for x in side], 2) for side in (base, masked, shades)]
    title = f"{text} (difference: black is {scale:.2f})"
    show_image(axis, torch.cat(rows, 1).permute(1, 2, 0).numpy(), title)
    axis.set_xticks(
        [(k + 0.5) * (width + 2) for k in range(len(steps))], [f"step {s + 1}\nt = {timesteps[s]:g}" for s in steps]
    )
    axis.set_yticks([(k + 0.5) * (height + 2) for k in range(3)], ["base", "masked", "difference"])
    axis.tick_params(length=0, labelsize=8)


def _curve(axis: Any, context: AnalysisContext, trajectories: dict[str, Trajectory], part: str) -> None:
    for number, side in enumerate(SIDES):
        trajectory = trajectories[side]
        if part == "right" and trajectory.right is not None:
            estimates = [_right(context, flags) for flags in trajectory.right]
        else:
            estimates = _relative(trajectory.coarse if part == "layout" else trajectory.fine)
        bounds = [[100 * getattr(e, key) for e in estimates] for key in ("value", "low", "high")]
        band(axis, range(1, len(estimates) + 1), *bounds, number=number, label=side, markevery=3)
    gap = _gap(trajectories, part)
    name = {"right": "prompt matched"}.get(part, part)
    axis.set_title(f"{name}: masked {format_estimate(gap, '+.2f')} steps", fontsize=8)
    axis.set_xlabel("step")
    axis.set_ylabel("right predictions (%)" if part == "right" else "distance to the final image (%)")
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=8, loc="lower right" if part == "right" else "upper right")
