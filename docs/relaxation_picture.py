"""Draw P(keep) by logit and the straight-through gradient, for docs/how_it_works.md.

python docs/relaxation_picture.py     # writes docs/pictures/relaxation.png; needs matplotlib
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from maskunet.plotting import COLOURS, new_figure, save_figure
from maskunet.relaxation import THRESHOLD, keep_probability, threshold


def draw(folder: Path) -> list[Path]:
    """Write the plot and return its files.

    Args:
        folder: receives relaxation.png.
    """
    figure, axes = new_figure(1, 2)
    logits = torch.linspace(-5, 5, 501)
    left, right = axes[0]
    left.plot(logits, keep_probability(logits), color=COLOURS[0], label="P(keep) under noise")
    left.plot(logits, threshold(logits), color=COLOURS[1], linestyle="--", label="mask without noise")
    left.set(xlabel="logit S", ylabel="mask")
    for i, (tau, style) in enumerate(((0.5, "-"), (1.0, "--"), (2.0, ":"))):
        scores = logits.clone().requires_grad_(True)
        threshold(scores, tau).sum().backward()
        right.plot(logits, scores.grad, style, color=COLOURS[i], label=f"tau = {tau:g}")
    right.set(xlabel="logit S", ylabel="straight-through gradient dm/dS")
    for axis in (left, right):
        axis.axvline(THRESHOLD, color=COLOURS[-1], linewidth=0.8, alpha=0.5)
        axis.legend(loc="best")
    left.text(THRESHOLD - 0.15, 0.95, "log log 2", horizontalalignment="right", fontsize=8)
    return save_figure(figure, folder / "relaxation.png", ("png",))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "pictures")
    for path in draw(parser.parse_args().output):
        print(path)


if __name__ == "__main__":
    main()
