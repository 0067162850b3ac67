r"""What comes earlier: predicted clean pictures over steps, without and with masks, from the same noise.

At each step :math:`\hat x_0` is decoded. How far a picture has come is its distance to its own final picture, over that
of the first step, for layout (the picture at an eighth of its size) and detail (what that leaves out); and, in the
bundled world, whether the judge already finds what was asked for.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attaching.attachment import disabled
from ..metrics.geneval_rules import check
from ..metrics.intervals import Estimate, student
from ..plotting import band, new_mosaic, show_image
from ..shapes.judge import judge
from .base import Analysis, format_estimate, format_percent, row
from .bundled_reference import mean_share
from .context import AnalysisContext, by_task, evenly_spaced

_TITLE = "Predicted clean pictures over steps: what comes earlier with masks?"
_SHOWN = 5  # steps in the plot
_EXAMPLES = 2
_COARSE = 8  # layout is what a picture of an eighth of the size still has
SIDES = ("base", "masked")
PARTS = ("layout", "detail")


@dataclass
class Course:
    """One side's predicted pictures.

    Args:
        coarse: layout, distances to the final one, (T, n).
        fine: detail, likewise.
        right: whether the judge finds what was asked for, (T, n); None without a judge.
        shown: predicted pictures of the first k samples, bytes (T, k, 3, H, W).
        final: finished pictures (n, 3, H, W).
    """

    coarse: Tensor
    fine: Tensor
    right: Tensor | None
    shown: Tensor
    final: Tensor


def study(context: AnalysisContext) -> Analysis:
    """Draw the context's pictures on both sides, decoding what is predicted at each step."""
    courses: dict[str, Course] = {}
    timesteps: list[float] = []
    for k, side in enumerate(SIDES):
        with disabled(context.pipe) if side == "base" else contextlib.nullcontext():
            courses[side], timesteps = _course(context, side, (k / 2, (k + 1) / 2))
    examples = _examples(courses)
    return Analysis(
        "emergence",
        _TITLE,
        _answer(context, courses),
        _rows(context, courses, timesteps),
        context.record(),
        lambda: _draw(context, courses, timesteps, examples),
    )


@torch.no_grad()
def _course(context: AnalysisContext, side: str, share: tuple[float, float]) -> tuple[Course, list[float]]:
    coarse, fine, right, kept, final = [], [], [], [], []
    timesteps: list[float] = []
    for numbers, sampler in context.samplers(f"{side}: steps and their predictions", share):
        timesteps, pictures = [float(t) for t in sampler.timesteps], []
        while not sampler.is_finished:
            output = sampler.predict()
            pictures.append(sampler.decode(sampler.pred_x0(output)).cpu())
            sampler.advance(output)
        last = sampler.decode(sampler.latents).cpu()
        parts = [_distances(p, last) for p in pictures]
        coarse.append(torch.stack([p[0] for p in parts]))
        fine.append(torch.stack([p[1] for p in parts]))
        right.append(_judged(context, numbers, pictures))
        # Small pictures are all kept, of others the first, so that a picture's place is its number.
        keep = len(numbers) if context.requirements else max(0, _EXAMPLES - numbers[0])
        kept.append((torch.stack([p[:keep] for p in pictures]) * 255).round().byte())
        final.append(last)
    judged = None if context.requirements is None else torch.cat([r for r in right if r is not None], 1)
    return Course(torch.cat(coarse, 1), torch.cat(fine, 1), judged, torch.cat(kept, 1), torch.cat(final)), timesteps


def _distances(pictures: Tensor, final: Tensor) -> tuple[Tensor, Tensor]:
    """Root mean square distance of layout and of detail, (n,) each."""
    difference = pictures - final
    side = max(1, min(difference.shape[2:]) // _COARSE)
    layout = F.interpolate(F.avg_pool2d(difference, side), size=difference.shape[2:], mode="nearest")
    return layout.square().mean((1, 2, 3)).sqrt(), (difference - layout).square().mean((1, 2, 3)).sqrt()


def _judged(context: AnalysisContext, numbers: list[int], pictures: list[Tensor]) -> Tensor | None:
    if context.requirements is None:
        return None
    wanted = [context.requirements[i] for i in numbers]
    return torch.tensor(
        [[check(found, p.metadata()) is None for p, found in zip(wanted, judge(x), strict=True)] for x in pictures]
    )


def halfway(distances: Tensor) -> Tensor:
    """Return the step, from 1, from which on a picture stays within half of its first distance, (n,).

    Args:
        distances: to the final picture, (T, n).
    """
    near = distances <= distances[:1] / 2
    stays = near.flip(0).cummin(0).values.flip(0)
    return len(distances) + 1 - stays.sum(0).float()


def settled(right: Tensor) -> Tensor:
    """Return the step, from 1, from which on the judge finds a picture right; NaN where it never stays right, (n,)."""
    stays = right.flip(0).cummin(0).values.flip(0).sum(0)
    return torch.where(stays > 0, len(right) + 1 - stays.float(), torch.nan)


def _gap(courses: dict[str, Course], what: str) -> Estimate:
    """Masked minus base, in steps, of what comes; pictures that both sides settle on."""
    found = []
    for side in SIDES:
        course = courses[side]
        if what == "right" and course.right is not None:
            found.append(settled(course.right))
        else:
            found.append(halfway(course.coarse if what == "layout" else course.fine))
    difference = found[1] - found[0]
    difference = difference[difference.isfinite()]
    return student(difference) if len(difference) else Estimate(*[float("nan")] * 3)


def _relative(distances: Tensor) -> list[Estimate]:
    return [student(d) for d in distances / distances[:1].clamp_min(1e-9)]


def _right(context: AnalysisContext, flags: Tensor) -> Estimate:
    return mean_share(flags[None], by_task(context.requirements, len(flags)))


def _rows(context: AnalysisContext, courses: dict[str, Course], timesteps: list[float]) -> list[dict[str, Any]]:
    rows = []
    for side, course in courses.items():
        for part, distances in zip(PARTS, (course.coarse, course.fine), strict=True):
            for k, value in enumerate(_relative(distances)):
                keys = {"side": side, "step": k + 1, "timestep": timesteps[k]}
                rows.append(row(f"{part}: distance to the final picture", value, "of the first step's", **keys))
        for k, flags in enumerate([] if course.right is None else course.right):
            keys = {"side": side, "step": k + 1, "timestep": timesteps[k]}
            rows.append(row("right predictions", _right(context, flags), "share", **keys))
    for what in (*PARTS, *(() if context.requirements is None else ("right",))):
        rows.append(row(f"{what}: masked minus base", _gap(courses, what), "steps", side="masked - base"))
    change = (courses["masked"].final - courses["base"].final).square().mean((1, 2, 3)).sqrt()
    rows.append(row("change of the final picture", student(change), "RMS of [0, 1]", side="masked - base"))
    return rows


def _answer(context: AnalysisContext, courses: dict[str, Course]) -> str:
    names = {"layout": "layout", "detail": "detail", "right": "what was asked for"}
    kinds = PARTS if context.requirements is None else (*PARTS, "right")
    gaps = {names[k]: _gap(courses, k) for k in kinds}
    sure = {name: "earlier" if e.high < 0 else "later" for name, e in gaps.items() if e.high < 0 or e.low > 0}
    words = "; ".join(f"{name} {format_estimate(e, '+.2f')} steps" for name, e in gaps.items())
    what = ", ".join(f"{name} {when}" for name, when in sure.items()) or "nothing for sure earlier or later"
    text = f"With masks {what} (masked minus base, to half of the way: {words})"
    base, masked = courses["base"].right, courses["masked"].right
    if base is not None and masked is not None:
        at = len(base) // 2
        text = text.replace(
            "to half of the way:", "layout and detail to half of the way, the judge's verdict for good:"
        )
        text += f"; halfway through the steps {format_percent(_right(context, masked[at]))} of the predictions are right against "
        text += f"{format_percent(_right(context, base[at]))}"
    return text + "."


def _examples(courses: dict[str, Course]) -> list[int]:
    """The pictures that masks change most, among those kept."""
    kept = courses["base"].shown.shape[1]
    change = (courses["masked"].final[:kept] - courses["base"].final[:kept]).square().mean((1, 2, 3))
    return change.argsort(descending=True)[:_EXAMPLES].tolist()


def _draw(context: AnalysisContext, courses: dict[str, Course], timesteps: list[float], examples: list[int]) -> Any:
    steps = evenly_spaced(len(timesteps), _SHOWN)
    curves = ["layout", "detail"] + ([] if context.requirements is None else ["right"])
    letters, width = "ABC"[: len(curves)], 6
    layout = f"{_spread('PQ'[: len(examples)], width)};{_spread(letters, width)}"
    figure, axes = new_mosaic(layout, width=2.1, heights=(4.1, 2.8))
    for letter, i in zip("PQ", examples, strict=False):
        word = f"{'among the most changed: ' if context.requirements else ''}“{context.prompts[i]}”"
        _strip(axes[letter], courses, steps, timesteps, i, word)
    for letter, what in zip(letters, curves, strict=True):
        _curve(axes[letter], context, courses, what)
    return figure


def _spread(letters: str, width: int) -> str:
    return "".join(letter * (width // len(letters)) for letter in letters)


def _strip(axis: Any, courses: dict[str, Course], steps: list[int], timesteps: list[float], i: int, text: str) -> None:
    """Rows base, masked and their difference; a column a step."""
    base, masked = (courses[side].shown[steps, i].float() / 255 for side in SIDES)
    difference = (masked - base).abs().mean(1, keepdim=True)
    scale = float(difference.max().clamp_min(1e-3))
    shades = 1 - (difference / scale).expand(-1, 3, -1, -1)
    height, wide = base.shape[2:]
    rows = [torch.cat([F.pad(x, (0, 2, 0, 2), value=1.0) for x in side], 2) for side in (base, masked, shades)]
    title = f"{text} (difference: black is {scale:.2f})"
    show_image(axis, torch.cat(rows, 1).permute(1, 2, 0).numpy(), title)
    axis.set_xticks(
        [(k + 0.5) * (wide + 2) for k in range(len(steps))], [f"step {s + 1}\nt = {timesteps[s]:g}" for s in steps]
    )
    axis.set_yticks([(k + 0.5) * (height + 2) for k in range(3)], ["base", "masked", "difference"])
    axis.tick_params(length=0, labelsize=8)


def _curve(axis: Any, context: AnalysisContext, courses: dict[str, Course], what: str) -> None:
    for number, side in enumerate(SIDES):
        course = courses[side]
        if what == "right" and course.right is not None:
            found = [_right(context, flags) for flags in course.right]
        else:
            found = _relative(course.coarse if what == "layout" else course.fine)
        bounds = [[100 * getattr(e, key) for e in found] for key in ("value", "low", "high")]
        band(axis, range(1, len(found) + 1), *bounds, number=number, label=side, markevery=3)
    gap = _gap(courses, what)
    name = {"right": "asked for"}.get(what, what)
    axis.set_title(f"{name}: masked {format_estimate(gap, '+.2f')} steps", fontsize=8)
    axis.set_xlabel("step")
    axis.set_ylabel("right predictions (%)" if what == "right" else "left to the final picture (%)")
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=8, loc="lower right" if what == "right" else "upper right")
