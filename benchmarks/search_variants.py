"""Settings of the search on validation prompts, with plain sampling and best of 4; the default was selected from these.

    python -m benchmarks.search_variants      # two hours on one core; docs/results/search_variants.{json,md}
    python -m benchmarks.search_variants --only "steps 1-5" "best of 6"     # some variants; the others keep their figures

The record has one entry per reward (`--reward`). Finished cells are saved in runs/search_variants.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.records import (
    OLD_BOOTSTRAP,
    RESULTS,
    bounds,
    machine_line,
    markdown_table,
    read_record,
    save_record,
    signed,
    without_chance_task,
)
from benchmarks.studies import generation_methods, rivals
from benchmarks.studies.generation_methods import METHODS, GenerationMethod
from benchmarks.studies.report import CHANCE_NOTE
from benchmarks.studies.search import SearchStudyConfig, run_search_study
from maskunet import rewards
from maskunet.allocator import keep_freed_memory
from maskunet.machine import machine
from maskunet.metrics.intervals import Estimate, over_prompts
from maskunet.rewards import Reward
from maskunet.shapes.scenes import held_out_prompts

SPLITS = {"val": "validation", "test": "test"}
CONFIG = SearchStudyConfig(seeds=1, prompts=120, split="val", batch_size=60, reference_images=600)
#: Iterations, spread over the 15 steps.
EARLY, FIRST, MIDDLE = (4, 0, 0), (8, 0, 0, 0, 0), (0, 4, 0)
SECOND = (0,) * 2 + (4,) * 5 + (0,) * 8
#: The variants change one setting of the preset "masks".
masks, best_then_masks = (
    partial(method, "masks") for method in (generation_methods.masks, generation_methods.best_then_masks)
)
ATTENTION = r"(to_q|to_k|to_v|to_out\.0)"


def with_both_rewards(method: GenerationMethod, weight: float = 3.0) -> GenerationMethod:
    """Return a method that optimises the study's reward plus the other bundled one.

    Args:
        method: the method.
        weight: weight of the other reward.
    """
    return partial(_with_both_rewards, method=method, weight=weight)


def _with_both_rewards(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    reward: Reward,
    *,
    method: GenerationMethod,
    weight: float,
    **options: Any,
) -> Tensor:
    other = "shapes-matching" if reward.name == "shapes" else "shapes"
    return method(pipe, prompts, seeds, reward + weight * rewards.load(other), **options)


def with_steps(method: GenerationMethod, steps: int) -> GenerationMethod:
    """Return a method with another number of denoising steps.

    Args:
        method: the method.
        steps: denoising steps.
    """
    return partial(_with_steps, method=method, steps=steps)


def _with_steps(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    reward: Reward,
    *,
    method: GenerationMethod,
    steps: int,
    **options: Any,
) -> Tensor:
    return method(pipe, prompts, seeds, reward, **(options | {"num_inference_steps": steps}))


REFERENCE: dict[str, GenerationMethod] = {
    "plain": METHODS["plain"],
    "best of 4": partial(rivals.best_of_n, count=4),
    "steps 6-10, rate 0.3, logits 2": masks(iterations=MIDDLE, learning_rate=0.3, initial_logit=2.0),
}
#: Learning rates, initial logits and budgets; K is the number of iterations per step, 4 unless the name says otherwise.
BUDGETS: dict[str, GenerationMethod] = {
    "steps 1-5, rate 0.1, logits 1": masks(iterations=EARLY, learning_rate=0.1, initial_logit=1.0),
    "steps 1-5, rate 0.1, logits 2": masks(iterations=EARLY, learning_rate=0.1, initial_logit=2.0),
    "steps 1-5, rate 0.03, logits 1": masks(iterations=EARLY, learning_rate=0.03, initial_logit=1.0),
    "steps 1-5, rate 0.3, logits 2": masks(iterations=EARLY, learning_rate=0.3, initial_logit=2.0),
    "steps 1-5, rate 1, logits 2": masks(iterations=EARLY, learning_rate=1.0, initial_logit=2.0),
    "steps 1-3, K 8, rate 0.3, logits 2": masks(iterations=FIRST, learning_rate=0.3, initial_logit=2.0),
    "steps 3-7, rate 0.3, logits 2": masks(iterations=SECOND, learning_rate=0.3, initial_logit=2.0),
    "steps 6-10, K 2, rate 0.3, logits 2": masks(iterations=(0, 2, 0), learning_rate=0.3, initial_logit=2.0),
    "best of 4, then steps 1-5, rate 0.3": best_then_masks(
        count=4, iterations=EARLY, learning_rate=0.3, initial_logit=2.0
    ),
}
#: Masked layers.
LAYERS: dict[str, GenerationMethod] = {
    "cross-attention": masks(targets=rf"up_blocks\..+\.attn2\.{ATTENTION}"),
    "self-attention": masks(targets=rf"up_blocks\..+\.attn1\.{ATTENTION}"),
    "values and outputs": masks(targets=r"up_blocks\..+\.(to_v|to_out\.0)"),
    "all attention of the U-Net": masks(targets=rf".+\.{ATTENTION}"),
    "cross-attention of the U-Net, steps 1-5": masks(targets=rf".+\.attn2\.{ATTENTION}", iterations=EARLY),
}
#: How greedily particles are resampled; rewards differ in scale.
PARTICLES: dict[str, GenerationMethod] = {
    f"particles, 4, lambda {scale:g}": partial(rivals.particles, count=4, scale=scale) for scale in (1.0, 3.0, 10.0)
}
#: Noises selected by their drafts, alone and followed by masks; all but the last at about the compute of best of 6.
DRAFTS: dict[str, GenerationMethod] = {
    "best of 6": partial(rivals.best_of_n, count=6),
    "11 drafts": masks(candidates=11, iterations=0),
    "7 drafts, then masks at steps 6-8, K 2": masks(candidates=7, iterations=(0, 0, 2, 0, 0)),
    "5 drafts, then masks at steps 6-10, K 2": masks(candidates=5, iterations=(0, 2, 0)),
    "11 drafts, then masks at steps 6-10": masks(candidates=11),
}
#: A second reward, and more steps.
EXTRAS: dict[str, GenerationMethod] = {
    "best of 6, by both rewards": with_both_rewards(partial(rivals.best_of_n, count=6)),
    "masks, by both rewards": with_both_rewards(masks()),
    "plain, 30 steps": with_steps(METHODS["plain"], 30),
    "masks, 30 steps, K 2": with_steps(masks(iterations=(0, 2, 0)), 30),
}
VARIANTS = REFERENCE | BUDGETS | LAYERS | PARTICLES | DRAFTS | EXTRAS
#: Recorded figures of a cell; time is left out, since other work may run at the same time.
RECORDED = ("n", "reward", "referee", "accuracy", "fid", "forwards")


def minus_plain(cell: dict[str, Any], plain: dict[str, Any]) -> dict[str, Any]:
    """Return [value, low, high] of the differences to plain sampling, paired by prompt and noise; tasks weigh equally."""
    prompts = held_out_prompts(len(cell["each"]["correct"]), CONFIG.split)
    texts, tasks = [p.prompt for p in prompts], [p.task for p in prompts]
    differences: dict[str, Any] = {"over": "distinct prompts"}
    for name, key, limits in (
        ("reward", "reward", None),
        ("referee", "referee", None),
        ("overall", "correct", (-1.0, 1.0)),
    ):
        values, reference = (torch.tensor(c["each"][key], dtype=torch.float) for c in (cell, plain))
        differences[name] = bounds(over_prompts(values - reference, texts, tasks, limits=limits))
    return differences


def table(record: dict[str, Any]) -> str:
    """Return the record as Markdown: one table per reward; a figure that was not recorded is left empty."""
    parts = [
        "Variants of mask search alone (preset `masks`) unless the name says otherwise; K is the number of iterations per "
        f"step. Differences of the judge's overall accuracy to plain sampling are paired by prompt and noise. {CHANCE_NOTE}"
    ]
    for reward, entry in record.items():
        config = entry["config"]
        rows = []
        differences = [cell.get("minus_plain", {}) for cells in entry["cells"].values() for cell in cells]
        brackets = "95 % over distinct prompts" if all(d.get("over") for d in differences if d) else OLD_BOOTSTRAP
        for name, cells in entry["cells"].items():
            for cell in cells:
                difference = cell.get("minus_plain", {}).get("overall")
                paired = None
                if difference is not None and name != "plain":
                    paired = signed(Estimate(*difference))
                rows.append(
                    [
                        name,
                        f"{cell['forwards']:.0f}",
                        f"{cell['reward']:.3f}",
                        f"{cell['referee']:.3f}" if "referee" in cell else None,
                        f"{cell['accuracy']['overall']:.3f}",
                        paired,
                        f"{without_chance_task(cell['accuracy']):.3f}",
                    ]
                )
        parts += [
            f"## Reward `{reward}`",
            f"{config['prompts']} {SPLITS[config['split']]} prompts, one set of noises, "
            f"{config['num_inference_steps']} DDIM steps, guidance {config['guidance_scale']:g}; "
            f"{machine_line(entry['machine'])}. Brackets: {brackets}.",
            markdown_table(
                ["variant", "forwards", "reward", "referee", "overall", "minus plain", "without position"], rows
            ),
        ]
    return "\n\n".join(parts)


def select(names: Sequence[str] | None) -> dict[str, GenerationMethod]:
    """Return the reference and the variants whose name equals, or contains, one of the names."""
    return REFERENCE | {
        variant: method
        for name in names or [""]
        for variant, method in VARIANTS.items()
        if (variant == name if name in VARIANTS else name in variant)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/search_variants"), help="folder of finished cells")
    parser.add_argument("--only", nargs="+", help="names, or parts of names, of variants to run with the reference")
    parser.add_argument("--seeds", type=int, default=CONFIG.seeds, help="sets of starting noises")
    parser.add_argument("--reward", default="shapes", help="reward to optimise: shapes or shapes-matching")
    parser.add_argument("--no-write", action="store_true", help="write nothing to docs/results")
    args = parser.parse_args()
    keep_freed_memory()
    config = replace(CONFIG, seeds=args.seeds, reward=args.reward)
    entry = run_search_study(args.work, config, select(args.only), log=partial(print, flush=True))
    cells = {
        name: [
            {k: v for k, v in cell.items() if k in RECORDED} | {"minus_plain": minus_plain(cell, plain)}
            for cell, plain in zip(variant_cells, entry["cells"]["plain"], strict=True)
        ]
        for name, variant_cells in entry["cells"].items()
    }
    path = RESULTS / "search_variants.json"
    record = read_record(path)
    if args.only:  # the others keep their figures
        cells = record.get(args.reward, {}).get("cells", {}) | cells
    ordered = {name: cells[name] for name in VARIANTS if name in cells}
    record[args.reward] = entry | {"cells": ordered, "machine": machine()}
    print(table({args.reward: record[args.reward]}))
    if not args.no_write:
        save_record(record, path, "Settings of the search on validation prompts", table(record))


if __name__ == "__main__":
    main()
