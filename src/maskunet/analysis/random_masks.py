"""The paper's motivation and its warning: random masks can mend single pictures, and spoil the average.

For each drop ratio and seed of masks the same prompts are drawn from the same noise without and with masks, other noise
for each seed. What is attached to the pipeline is put aside.

Reference: the paper's motivation figure (histogram of all target weights, of those that random masks remove at chosen
steps, pictures without and with), and its COCO 2017 FID of random masks, 270 against 23.4.
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..attaching.attachment import attach, detach
from ..maskers import RandomMasks
from ..metrics.distances import frechet_distance
from ..metrics.geneval_rules import check
from ..metrics.intervals import Estimate, student
from ..plotting import COLOURS, band, new_mosaic, show_picture
from ..shapes.judge import judge
from ..targets import describe, maskable_layers, unet_of
from .base import Analysis, brief, percent, row
from .bundled_reference import bundled_features, bundled_reference, frechet_gap, share_of
from .context import Subject, by_task, chosen, with_texts
from .mask_stream import watching

_TITLE = "Random masks: do pictures get better when random weights are switched off?"
_BINS = 60
_PAIRS = 6
_REFERENCE = 1200  # real pictures


@dataclass
class Weights:
    """Histograms of target weights: all of them, and those that a set of random masks removes, by step."""

    edges: Tensor
    every: Tensor
    removed: dict[int, Tensor]


@dataclass
class Side:
    """What one drop ratio gave, over seeds of masks; rate 0 is the base.

    Args:
        pictures: (S, n, 3, H, W).
        right: (S, n); None without a judge.
    """

    rate: float
    pictures: Tensor
    right: Tensor | None


def study(subject: Subject) -> Analysis:
    """Draw the subject's pictures without masks and with random ones of each drop ratio."""
    s = subject.settings
    network = describe(subject.pipe)
    detach(subject.pipe)
    total = (len(s.rates) + 1) * s.mask_seeds
    made: dict[float, list[Tensor]] = {rate: [] for rate in (0.0, *s.rates)}
    shown = s.rates[len(s.rates) // 2]
    weights = _weights(subject)
    steps = chosen(min(subject.calls, 15), 4)  # the paper's: among the first fifteen
    for run in range(s.mask_seeds):
        noisy = with_texts(subject, s.seed + run * len(subject.texts))
        for k, rate in enumerate(made):
            done, word = run * len(made) + k, f"drop ratio {rate:g}, masks {run + 1} of {s.mask_seeds}"
            detach(subject.pipe)
            if rate:
                attach(subject.pipe, RandomMasks(network, 1 - rate, seed=s.seed + run))
            first = rate == shown and run == 0
            with _collecting(subject, weights, steps) if first else contextlib.nullcontext():
                made[rate].append(noisy.pictures(word, (0.95 * done / total, 0.95 * (done + 1) / total)))
    sides = [Side(rate, torch.stack(p), _judged(subject, torch.stack(p))) for rate, p in made.items()]
    average = _average(subject, sides)
    record = subject.record("rates", "mask_seeds", masker="random masks", rate_shown=shown, reference=_REFERENCE)
    record |= {"n": len(subject.texts) * s.mask_seeds, "unit": "pictures a drop ratio", "weights": network.weights}
    return Analysis(
        "random",
        _TITLE,
        _answer(subject, sides, average),
        _rows(subject, sides, average, weights),
        record,
        lambda: _draw(subject, sides, average, weights, shown),
    )


def _collecting(subject: Subject, weights: Weights, steps: list[int]) -> AbstractContextManager[None]:
    """A context in which histograms of what is removed at some steps are added to `weights`."""
    modules = maskable_layers(unet_of(subject.pipe))
    for call in steps:
        weights.removed[call] = torch.zeros_like(weights.every)

    def see(call: int, name: str, off: Tensor) -> None:
        if call in steps:  # of the first batch: calls are counted on over the others, whose masks are the same
            weights.removed[call] += torch.histogram(_values(modules[name])[off[0]], weights.edges).hist

    return watching(subject.pipe, see)


def _values(module: Any) -> Tensor:
    return module.weight.detach().float().cpu().flatten()  # type: ignore[no-any-return]


def _weights(subject: Subject) -> Weights:
    modules = maskable_layers(unet_of(subject.pipe))
    values = [_values(modules[layer.name]) for layer in describe(subject.pipe).layers]
    reach = max(float(v.abs().max()) for v in values)
    edges = torch.linspace(-reach, reach, _BINS + 1)
    return Weights(edges, torch.stack([torch.histogram(v, edges).hist for v in values]).sum(0), {})


def _judged(subject: Subject, pictures: Tensor) -> Tensor | None:
    if subject.requirements is None:
        return None
    return torch.tensor(
        [
            [check(found, p.metadata()) is None for p, found in zip(subject.requirements, judge(run), strict=True)]
            for run in pictures
        ]
    )


@dataclass
class Average:
    """FID by drop ratio, and its difference to the base's; both empty where the world is not the bundled one."""

    fid: dict[float, float]
    gaps: dict[float, Estimate]


def _average(subject: Subject, sides: list[Side]) -> Average:
    if subject.requirements is None:
        return Average({}, {})
    subject.progress(0.97, "distances")
    real = bundled_reference(_REFERENCE)
    features = {side.rate: bundled_features(side.pictures.flatten(0, 1)) for side in sides}
    gaps = {rate: frechet_gap(features[0.0], x, real) for rate, x in features.items() if rate}
    return Average({rate: frechet_distance(x, real) for rate, x in features.items()}, gaps)


def _share(subject: Subject, flags: Tensor) -> Estimate:
    """Mean over tasks of a share (S, n), resampled by prompt."""
    return share_of(flags, by_task(subject.requirements, flags.shape[1]))


def _verdicts(subject: Subject, side: Side, base: Side) -> dict[str, Estimate]:
    """Shares of right, mended and spoilt pictures and the difference of right ones; empty without a judge."""
    if side.right is None or base.right is None:
        return {}
    return {
        "right": _share(subject, side.right),
        "mended": _share(subject, side.right & ~base.right),
        "spoilt": _share(subject, ~side.right & base.right),
        "right minus base": _share(subject, side.right.float() - base.right.float()),
    }


def _change(side: Side, base: Side) -> Estimate:
    """Root mean square change of a picture, in [0, 1]; Student's interval over pictures."""
    return student((side.pictures - base.pictures).square().mean((2, 3, 4)).sqrt().mean(0))


def _rows(subject: Subject, sides: list[Side], average: Average, weights: Weights) -> list[dict[str, Any]]:
    rows = []
    for side in sides:
        for name, value in _verdicts(subject, side, sides[0]).items():
            rows.append(row(f"{name} pictures" if " " not in name else name, value, "share", drop_ratio=side.rate))
        if side.rate:
            rows.append(row("change of a picture", _change(side, sides[0]), "RMS of [0, 1]", drop_ratio=side.rate))
    unit = "FID, bundled CLIP"
    rows += [row("FID", value, unit, drop_ratio=rate) for rate, value in average.fid.items()]
    rows += [row("FID minus base", gap, unit, drop_ratio=rate) for rate, gap in average.gaps.items()]
    for what, hist in (("all", weights.every), *((f"removed at step {k + 1}", h) for k, h in weights.removed.items())):
        middles = ((weights.edges[1:] + weights.edges[:-1]) / 2).tolist()
        rows += [
            row(f"weights, {what}", count, "weights", weight=round(x, 5))
            for x, count in zip(middles, hist.tolist(), strict=True)
        ]
    return rows


def _answer(subject: Subject, sides: list[Side], average: Average) -> str:
    words = []
    for side in sides[1:]:
        found = _verdicts(subject, side, sides[0])
        text = f"at {100 * side.rate:g} % "
        if found:
            text += (
                f"{percent(found['mended'].value)} of the pictures are mended and {percent(found['spoilt'].value)} spoilt "
                f"(right minus base {percent(found['right minus base'])}, FID {average.gaps[side.rate]:+.1f})"
            )
        else:
            text += f"a picture changes by {brief(_change(side, sides[0]), '.3f')} RMS"
        words.append(text)
    if sides[0].right is None:
        head = "Judge and FID are left out, since only the bundled model's own prompts have them: "
    else:
        gains = {side.rate: _verdicts(subject, side, sides[0])["right minus base"] for side in sides[1:]}
        better = [rate for rate, gain in gains.items() if gain.low > 0]
        worse = [rate for rate, gain in gains.items() if gain.high < 0 or average.gaps[rate].low > 0]
        mended = any(_verdicts(subject, side, sides[0])["mended"].value > 0 for side in sides[1:])
        head = f"Single pictures {'do' if mended else 'do not'}, the average "
        head += f"does at {_percents(better)}" if better else "does not"
        head += f" and is worse at {_percents(worse)}: " if worse else ": "
    return f"{head}{'; '.join(words)}."


def _percents(rates: list[float]) -> str:
    return " and ".join(f"{100 * rate:g} %" for rate in rates)


def _draw(subject: Subject, sides: list[Side], average: Average, weights: Weights, shown: float) -> Any:
    count = min(_PAIRS, len(subject.texts))
    judged = sides[0].right is not None
    layout = ("AABBCC" if judged else "AAABBB") + ";" + "defghi"[:count].ljust(6, ".")
    figure, axes = new_mosaic(layout, width=2.1, heights=(3.0, 1.6))
    _histograms(axes["A"], weights, shown)
    rates = [100 * side.rate for side in sides[1:]]
    if judged:
        verdicts = [_verdicts(subject, side, sides[0]) for side in sides[1:]]
        for i, (key, label) in enumerate((("mended", "wrong, then right"), ("spoilt", "right, then wrong"))):
            _line(axes["B"], rates, [v[key] for v in verdicts], i, label)
        axes["B"].set_ylabel("share of pictures (%)")
        axes["B"].set_title("single pictures: mended and spoilt", fontsize=9)
        axes["B"].legend(fontsize=8)
        _line(axes["C"], rates, [average.gaps[side.rate] for side in sides[1:]], 2, "FID minus base", scale=1)
        axes["C"].set_ylabel("FID minus base (below 0: better)")
        axes["C"].set_title("the average: distance to real pictures", fontsize=9)
    else:
        _line(axes["B"], rates, [_change(side, sides[0]) for side in sides[1:]], 0, "change", scale=1)
        axes["B"].set_ylabel("RMS change of a picture, of [0, 1]")
    for letter in "BC" if judged else "B":
        axes[letter].set_xscale("log")
        axes[letter].set_xticks(rates, [f"{r:g}" for r in rates])
        axes[letter].minorticks_off()
        axes[letter].axhline(0, color="black", linewidth=0.8)
        axes[letter].set_xlabel("weights switched off at random (%)")
    masked = next(side for side in sides if side.rate == shown)
    for letter, (run, i) in zip("defghi", _examples(sides[0], masked, count), strict=False):
        gap = torch.ones(3, sides[0].pictures.shape[3], 3)
        pair = torch.cat([sides[0].pictures[run, i], gap, masked.pictures[run, i]], 2)
        show_picture(axes[letter], pair.permute(1, 2, 0).numpy(), _caption(subject, sides[0], masked, run, i))
    axes["d"].set_ylabel(f"without | with\n{100 * shown:g} % off", fontsize=8)
    return figure


def _line(axis: Any, x: list[float], values: list[Estimate], number: int, label: str, scale: float = 100) -> None:
    bounds = [[scale * getattr(e, key) for e in values] for key in ("value", "low", "high")]
    band(axis, x, *bounds, number=number, label=label)


def _histograms(axis: Any, weights: Weights, shown: float) -> None:
    axis.stairs(weights.every.numpy(), weights.edges.numpy(), fill=True, color="#BBBBBB", label="all target weights")
    styles = ("-", "--", "-.", ":")
    for i, (k, hist) in enumerate(weights.removed.items()):
        style = {"color": COLOURS[i], "linestyle": styles[i % 4], "linewidth": 1.2}
        axis.stairs(hist.numpy(), weights.edges.numpy(), label=f"removed at step {k + 1}", **style)
    axis.set_yscale("log")
    axis.set_xlabel("weight")
    axis.set_ylabel("number of weights")
    axis.set_title(f"what a random mask of {100 * shown:g} % removes", fontsize=9)
    axis.legend(fontsize=7)


def _examples(base: Side, masked: Side, count: int) -> list[tuple[int, int]]:
    """Seed and picture of the examples: half of them mended, half spoilt where the judge says so; else the first."""
    runs, n = base.pictures.shape[:2]
    every = [(run, i) for run in range(runs) for i in range(n)]
    if base.right is None or masked.right is None:
        return every[:count]
    mended = [(r, i) for r, i in every if masked.right[r, i] and not base.right[r, i]]
    spoilt = [(r, i) for r, i in every if base.right[r, i] and not masked.right[r, i]]
    picked = mended[: count // 2] + spoilt[: count - min(len(mended), count // 2)]
    return (picked + [pair for pair in every if pair not in picked])[:count]


def _caption(subject: Subject, base: Side, masked: Side, run: int, i: int) -> str:
    text = subject.texts[i]
    words = text if len(text) <= 34 else text[:32] + "…"
    if base.right is None or masked.right is None:
        return words
    verdict = " → ".join(
        "right" if side.right is not None and side.right[run, i] else "wrong" for side in (base, masked)
    )
    return f"{words}\n{verdict}"
