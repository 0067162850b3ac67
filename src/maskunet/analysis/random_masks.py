"""The paper's motivation and its warning: random masks can improve single images, and worsen the average.

For each drop ratio and set of masks, the same prompts are generated from the same noise without and with masks; each set
has other noise. An attached masker is detached meanwhile.

Reference: the paper's motivation figure (histogram of all target weights and of those that random masks remove at some
steps; images without and with masks), and its COCO 2017 FID of random masks, 270 against 23.4.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..attaching import attach, detach
from ..maskers import RandomMasks
from ..metrics.distances import frechet_distance
from ..metrics.intervals import Estimate, student
from ..plotting import band, new_mosaic, show_image
from ..targets import describe
from .base import Analysis, format_estimate, format_percent, row
from .bundled_reference import bundled_features, bundled_images, frechet_gap, mean_share
from .context import AnalysisContext, evenly_spaced
from .weight_histograms import WeightHistograms, collect_removed, draw_histograms, histogram_weights

_TITLE = "Random masks: do images get better when random weights are switched off?"
_PAIRS = 6
_REFERENCE = 1200  # real images


@dataclass
class RatioResult:
    """Images of one drop ratio, over S sets of masks; rate 0 is the base.

    Args:
        rate: the drop ratio.
        images: (S, n, 3, H, W).
        right: whether each image matches its prompt, (S, n); None without a judge.
    """

    rate: float
    images: Tensor
    right: Tensor | None


@dataclass
class FidByRatio:
    """FID by drop ratio, and its difference from the base's; both empty outside the bundled world.

    Args:
        fid: FID by drop ratio.
        gaps: FID minus the base's, by drop ratio.
    """

    fid: dict[float, float]
    gaps: dict[float, Estimate]


def study(context: AnalysisContext) -> Analysis:
    """Generate the context's images without masks and with random ones of each drop ratio.

    Args:
        context: the images.
    """
    s = context.settings
    network = describe(context.pipe)
    detach(context.pipe)
    rates = (0.0, *s.rates)
    total = len(rates) * s.mask_seeds
    images: dict[float, list[Tensor]] = {rate: [] for rate in rates}
    shown = s.rates[len(s.rates) // 2]
    histograms = histogram_weights(context)
    steps = evenly_spaced(min(context.unet_calls, 15), 4)  # the paper's: among the first fifteen
    for run in range(s.mask_seeds):
        reseeded = context.with_seed(s.seed + run * len(context.prompts))
        for k, rate in enumerate(rates):
            finished, task = run * len(rates) + k, f"drop ratio {rate:g}, masks {run + 1} of {s.mask_seeds}"
            detach(context.pipe)
            if rate:
                attach(context.pipe, RandomMasks(network, 1 - rate, seed=s.seed + run))
            is_first = rate == shown and run == 0
            with collect_removed(context, histograms, steps) if is_first else contextlib.nullcontext():
                images[rate].append(reseeded.generate(task, (0.95 * finished / total, 0.95 * (finished + 1) / total)))
    results = [RatioResult(rate, torch.stack(x), _judge_runs(context, x)) for rate, x in images.items()]
    fid = _measure_fid(context, results)
    record = context.record("rates", "mask_seeds", masker="random masks", rate_shown=shown, reference=_REFERENCE)
    record |= {"n": len(context.prompts) * s.mask_seeds, "unit": "images per drop ratio", "weights": network.weights}
    return Analysis(
        "random",
        _TITLE,
        _answer(context, results, fid),
        _rows(context, results, fid, histograms),
        record,
        lambda: _draw(context, results, fid, histograms, shown),
    )


def _judge_runs(context: AnalysisContext, runs: list[Tensor]) -> Tensor | None:
    verdicts = [context.judge(images) for images in runs]
    return None if context.requirements is None else torch.tensor(verdicts)


def _measure_fid(context: AnalysisContext, results: list[RatioResult]) -> FidByRatio:
    if context.requirements is None:
        return FidByRatio({}, {})
    context.progress(0.97, "distances")
    real = bundled_features(bundled_images(_REFERENCE))
    features = {result.rate: bundled_features(result.images.flatten(0, 1)) for result in results}
    gaps = {rate: frechet_gap(features[0.0], x, real) for rate, x in features.items() if rate}
    return FidByRatio({rate: frechet_distance(x, real) for rate, x in features.items()}, gaps)


def _verdicts(context: AnalysisContext, result: RatioResult, base: RatioResult) -> dict[str, Estimate]:
    """Return the shares of right, fixed and broken images, and the gain in right images; empty without a judge."""
    if result.right is None or base.right is None:
        return {}
    flags = {
        "right images": result.right,
        "fixed images": result.right & ~base.right,
        "broken images": ~result.right & base.right,
        "right minus base": result.right.float() - base.right.float(),
    }
    return {name: mean_share(values, context.prompts, context.tasks) for name, values in flags.items()}


def _change(result: RatioResult, base: RatioResult) -> Estimate:
    """Return the root mean square change of an image, in [0, 1]; Student's interval over images."""
    return student((result.images - base.images).square().mean((2, 3, 4)).sqrt().mean(0))


def _rows(
    context: AnalysisContext, results: list[RatioResult], fid: FidByRatio, histograms: WeightHistograms
) -> list[dict[str, Any]]:
    verdicts = {result.rate: _verdicts(context, result, results[0]) for result in results}
    rows = [row(name, verdicts[rate][name], "share", drop_ratio=rate) for name in verdicts[0.0] for rate in verdicts]
    rows += [
        row("change of an image", _change(r, results[0]), "RMS of [0, 1]", drop_ratio=r.rate) for r in results[1:]
    ]
    unit = "FID, bundled CLIP"
    rows += [row("FID", value, unit, drop_ratio=rate) for rate, value in fid.fid.items()]
    rows += [row("FID minus base", gap, unit, drop_ratio=rate) for rate, gap in fid.gaps.items()]
    middles = ((histograms.edges[1:] + histograms.edges[:-1]) / 2).tolist()
    kinds = {"all": histograms.all_weights}
    kinds |= {f"removed at step {k + 1}": counts for k, counts in histograms.removed.items()}
    for kind, counts in kinds.items():
        rows += [
            row(f"weights, {kind}", count, "weights", weight=round(middle, 5))
            for middle, count in zip(middles, counts.tolist(), strict=True)
        ]
    return rows


def _answer(context: AnalysisContext, results: list[RatioResult], fid: FidByRatio) -> str:
    base, masked = results[0], results[1:]
    if base.right is None:
        changes = ", ".join(f"{format_estimate(_change(r, base), '.3f')} at {_percents([r.rate])}" for r in masked)
        return (
            f"Random masks change an image by (RMS of [0, 1]): {changes}. Images are judged and compared with real ones for "
            "the bundled model's own prompts alone."
        )
    verdicts = {r.rate: _verdicts(context, r, base) for r in masked}
    gains = {rate: v["right minus base"] for rate, v in verdicts.items()}
    better = [rate for rate, gain in gains.items() if gain.low > 0]
    worse = [rate for rate, gain in gains.items() if gain.high < 0 or fid.gaps[rate].low > 0]
    fixes = any(v["fixed images"].value > 0 for v in verdicts.values())
    text = f"Random masks {'fix some images' if fixes else 'fix no image'}"
    text += f", improve the average at {_percents(better)}" if better else ", do not improve the average"
    text += f" and worsen it at {_percents(worse)}." if worse else "."
    details = [
        f"{_percents([rate])}: {format_percent(v['fixed images'].value)} fixed, {format_percent(v['broken images'].value)} "
        f"broken (right minus base {format_percent(gains[rate], '+.1f', 'points')}, FID {fid.gaps[rate]:+.1f})"
        for rate, v in verdicts.items()
    ]
    return f"{text} By drop ratio: {'; '.join(details)}."


def _percents(rates: list[float]) -> str:
    return " and ".join(f"{100 * rate:g} %" for rate in rates)


def _draw(
    context: AnalysisContext, results: list[RatioResult], fid: FidByRatio, histograms: WeightHistograms, shown: float
) -> Any:
    count = min(_PAIRS, len(context.prompts))
    base, is_judged = results[0], results[0].right is not None
    layout = ("AABBCC" if is_judged else "AAABBB") + ";" + "defghi"[:count].ljust(6, ".")
    figure, axes = new_mosaic(layout, width=2.1, heights=(3.0, 1.6))
    draw_histograms(axes["A"], histograms, shown)
    rates = [100 * result.rate for result in results[1:]]
    if is_judged:
        verdicts = [_verdicts(context, result, base) for result in results[1:]]
        for i, (key, label) in enumerate(
            (("fixed images", "wrong, then right"), ("broken images", "right, then wrong"))
        ):
            _line(axes["B"], rates, [v[key] for v in verdicts], i, label)
        axes["B"].set_ylabel("share of images (%)")
        axes["B"].set_title("single images: fixed and broken", fontsize=9)
        axes["B"].legend(fontsize=8)
        _line(axes["C"], rates, [fid.gaps[result.rate] for result in results[1:]], 2, "FID minus base", scale=1)
        axes["C"].set_ylabel("FID minus base (below 0: better)")
        axes["C"].set_title("the average: distance to real images", fontsize=9)
    else:
        _line(axes["B"], rates, [_change(result, base) for result in results[1:]], 0, "change", scale=1)
        axes["B"].set_ylabel("RMS change of an image, of [0, 1]")
    for letter in "BC" if is_judged else "B":
        axes[letter].set_xscale("log")
        axes[letter].set_xticks(rates, [f"{r:g}" for r in rates])
        axes[letter].minorticks_off()
        axes[letter].axhline(0, color="black", linewidth=0.8)
        axes[letter].set_xlabel("weights switched off at random (%)")
    masked = next(result for result in results if result.rate == shown)
    for letter, (run, i) in zip("defghi", _examples(base, masked, count), strict=False):
        gap = torch.ones(3, base.images.shape[3], 3)
        pair = torch.cat([base.images[run, i], gap, masked.images[run, i]], 2)
        show_image(axes[letter], pair.permute(1, 2, 0).numpy(), _caption(context, base, masked, run, i))
    axes["d"].set_ylabel(f"without | with\n{100 * shown:g} % off", fontsize=8)
    return figure


def _line(axis: Any, x: list[float], values: list[Estimate], number: int, label: str, scale: float = 100) -> None:
    bounds = [[scale * getattr(e, key) for e in values] for key in ("value", "low", "high")]
    band(axis, x, *bounds, number=number, label=label)


def _examples(base: RatioResult, masked: RatioResult, count: int) -> list[tuple[int, int]]:
    """Return run and image of the examples: half of them fixed, half broken with a judge; the first images otherwise."""
    runs, n = base.images.shape[:2]
    pairs = [(run, i) for run in range(runs) for i in range(n)]
    if base.right is None or masked.right is None:
        return pairs[:count]
    fixed = [(r, i) for r, i in pairs if masked.right[r, i] and not base.right[r, i]]
    broken = [(r, i) for r, i in pairs if base.right[r, i] and not masked.right[r, i]]
    examples = fixed[: count // 2] + broken[: count - min(len(fixed), count // 2)]
    return (examples + [pair for pair in pairs if pair not in examples])[:count]


def _caption(context: AnalysisContext, base: RatioResult, masked: RatioResult, run: int, i: int) -> str:
    prompt = context.prompts[i]
    text = prompt if len(prompt) <= 34 else prompt[:32] + "…"
    if base.right is None or masked.right is None:
        return text
    base_verdict, masked_verdict = ("right" if right[run, i] else "wrong" for right in (base.right, masked.right))
    return f"{text}\n{base_verdict} → {masked_verdict}"
