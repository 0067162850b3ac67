"""Draw the README's figure: the first twelve held-out prompts without and with the default search.

python docs/search_picture.py     # writes docs/pictures/search.png; needs matplotlib; half a minute on two cores
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

import maskunet as mu
from maskunet.metrics.geneval_rules import check
from maskunet.plotting import new_figure, save_figure, show_image
from maskunet.shapes.judge import judge
from maskunet.shapes.scenes import held_out_prompts

COLUMNS = 6
WRONG = "#D55E00"


def draw(folder: Path, count: int, seed: int) -> list[Path]:
    """Write the figure and return its files.

    Args:
        folder: receives search.png.
        count: number of prompts, a multiple of six.
        seed: prompt i starts from the noise of seed + i.
    """
    prompts = held_out_prompts(count)
    pipe = mu.zoo.load("shapes")
    config = mu.SearchConfig(guidance_scale=4.0, seed=seed)
    result = mu.search(pipe, [p.prompt for p in prompts], "shapes-matching", config)

    figure, axes = new_figure(2 * count // COLUMNS, COLUMNS, width=1.1, height=1.25)
    for side, images in enumerate((result.base, result.tensor)):
        for i, (prompt, image, objects) in enumerate(zip(prompts, images, judge(images), strict=True)):
            axis = axes[2 * (i // COLUMNS) + side][i % COLUMNS]
            title = "" if side else textwrap.fill(prompt.prompt, 20)
            show_image(axis, image.permute(1, 2, 0), title)
            axis.title.set_fontsize(6.5)
            if i % COLUMNS == 0:
                axis.set_ylabel(("without", "search")[side], fontsize=7)
            if check(objects, prompt.metadata()) is not None:
                for spine in axis.spines.values():
                    spine.set(visible=True, color=WRONG, linewidth=2.5)
    return save_figure(figure, folder / "search.png", ("png",))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "pictures")
    parser.add_argument("--count", type=int, default=12, help="prompts")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for path in draw(args.output, args.count, args.seed):
        print(path)


if __name__ == "__main__":
    main()
