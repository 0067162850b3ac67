"""What the bundled rewards learned: held-out compositions, near misses, changed captions, ranking of generated images.

    python -m benchmarks.reward_generalisation      # five minutes on two cores; docs/results/reward_generalisation.{json,md}

Four networks: the reward `shapes`, the matcher `shapes-matching`, their referee, and the CLIP of the feature distances.

- level: mean and deviation on drawn images with their captions, by split: a cosine, or the matcher's log-probability.
- near misses: how often the caption beats those of three scenes that differ in one thing; the same for images.
- changed captions: how often the caption beats the same one with colours swapped, or with the opposite relation.
- AUC: the probability that of two images generated for one prompt, one correct and one wrong by the judge, the correct one
  has the higher reward. Measured on final images (also by task), on images predicted after some steps of sampling, and
  after a roll-out of a few coarse steps from there. No network was trained on the judge.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.records import RESULTS, machine_line, markdown_table, save_record
from benchmarks.studies.world import match_prompts
from maskunet import rewards, zoo
from maskunet.allocator import keep_freed_memory
from maskunet.machine import machine
from maskunet.metrics.intervals import over_prompts
from maskunet.rewards.base import Reward
from maskunet.sampling import StepwiseSampler
from maskunet.sampling.rollout import roll_out
from maskunet.shapes.drawing import draw
from maskunet.shapes.near_misses import near_misses
from maskunet.shapes.scenes import Prompt, held_out_prompts, held_out_scenes, training_scene
from maskunet.zoo.rewards import ShapesReward

COUNT, PROMPTS, SEEDS, STEPS, GUIDANCE_SCALE = 300, 120, 8, 15, 4.0
PREDICTIONS = (1, 3, 5, 8)  # steps after which the predicted image is scored
ROLLOUT = 3  # coarse steps, as in a search's draft
SPLITS = ("train", "val", "test")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def levels(reward: Reward) -> dict[str, dict[str, float]]:
    """Return mean and deviation by split."""
    scenes = {"train": [training_scene(i) for i in range(COUNT)]}
    scenes |= {split: held_out_scenes(COUNT, split) for split in ("val", "test")}
    values = {split: reward(draw(listed), [s.caption for s in listed]) for split, listed in scenes.items()}
    return {split: {"mean": float(r.mean()), "std": float(r.std())} for split, r in values.items()}


def against_near_misses(reward: Reward) -> dict[str, float]:
    """Return how often a validation scene's caption, or image, beats all three near misses."""
    scenes = held_out_scenes(COUNT, "val")
    groups = [[s, *near_misses(s, random.Random(i), 3, SPLITS)] for i, s in enumerate(scenes)]
    drawn = draw([s for g in groups for s in g])
    captions = [s.caption for g in groups for s in g]
    images = drawn.unflatten(0, (COUNT, 4))
    by_caption = torch.stack([reward(images[:, 0], captions[k::4]) for k in range(4)], 1)
    by_image = torch.stack([reward(images[:, k], captions[0::4]) for k in range(4)], 1)
    return {
        "caption": float((by_caption.argmax(1) == 0).float().mean()),
        "image": float((by_image.argmax(1) == 0).float().mean()),
    }


def against_changed_captions(reward: Reward) -> dict[str, float]:
    """Return how often a drawn validation scene's caption beats the one with swapped colours, or the opposite relation."""
    shares = {}
    for task in ("color_attr", "position"):
        scenes, changed = [s for s in held_out_scenes(6 * PROMPTS, "val") if s.task == task], []
        if task == "color_attr":
            scenes = [s for s in scenes if s.include[0]["color"] != s.include[1]["color"]]
        for scene in scenes:
            if task == "position":
                relation = scene.include[1]["position"][0]
                changed.append(scene.caption.replace(relation, OPPOSITE[relation]))
            else:
                one, other = (requirement["color"] for requirement in scene.include)
                changed.append(scene.caption.replace(one, "?").replace(other, one).replace("?", other))
        images = draw(scenes)
        better = reward(images, [s.caption for s in scenes]) > reward(images, changed)
        shares[task] = float(better.float().mean())
    return shares


def auc(scores: Tensor, correct: Tensor, texts: Sequence[str]) -> dict[str, float | None]:
    """Return the share of (correct, wrong) pairs that are ordered correctly, averaged over prompts.

    Args:
        scores: (P, S), P prompts with S images each.
        correct: verdicts, (P, S).
        texts: the prompts; equal ones are repeats of one prompt.
    """
    shares, prompts = [], []
    for score, is_correct, text in zip(scores, correct, texts, strict=True):
        if is_correct.any() and not is_correct.all():
            difference = score[is_correct][:, None] - score[~is_correct][None]
            shares.append(float((difference > 0).float().mean()))
            prompts.append(text)
    if not shares:
        return {"mean": None, "low": None, "high": None, "prompts": 0}
    estimate = over_prompts(torch.tensor(shares), prompts)
    return {"mean": estimate.value, "low": estimate.low, "high": estimate.high, "prompts": len(set(prompts))}


def sample(pipe: Any, prompts: list[Prompt], seed: int) -> dict[str, Tensor]:
    """Return final and predicted images of one noise per prompt, by name."""
    texts, seeds = [p.prompt for p in prompts], [1000 * seed + i for i in range(len(prompts))]
    sampler = StepwiseSampler(pipe, texts, seeds=seeds, num_inference_steps=STEPS, guidance_scale=GUIDANCE_SCALE)
    images: dict[str, Tensor] = {}
    while not sampler.is_finished:
        output = sampler.predict()
        if sampler.index + 1 in PREDICTIONS:
            for count in (0, ROLLOUT):
                name = f"after {sampler.index + 1}" + (f", roll-out of {count}" if count else "")
                images[name] = sampler.decode(roll_out(sampler, output, count)).cpu()
        sampler.advance(output)
    images["final"] = sampler.decode(sampler.latents).cpu()
    return images


def table(record: dict[str, Any]) -> str:
    """Return the record as Markdown."""

    def text(value: dict[str, Any]) -> str | None:
        if value["mean"] is None:
            return None
        if "low" in value:
            return f"{value['mean']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"
        return f"{value['mean']:.2f}" + ("" if value["ci95"] is None else f" ± {value['ci95']:.2f}")

    results = record["rewards"]
    looks, tasks = (list(next(iter(results.values()))[key]) for key in ("auc", "auc_by_task"))
    settings = record["settings"]
    is_over_distinct = "low" in next(iter(results["reward"]["auc"].values()))
    intervals = (
        "95 %, over distinct prompts"
        if is_over_distinct
        else "95 %, normal, over prompts, with repeats of a prompt as if distinct (a little too narrow)"
    )
    captions = [
        [
            name,
            *(f"{r['near_misses'][key]:.2f}" for key in ("caption", "image")),
            *(f"{r['changed_captions'][key]:.2f}" for key in ("color_attr", "position")),
        ]
        for name, r in results.items()
    ]
    return "\n\n".join(
        [
            f"{settings['scenes']} drawn scenes; {settings['prompts']} validation prompts x {settings['seeds']} noises, "
            f"{settings['steps']} DDIM steps, guidance {settings['guidance_scale']:g}; "
            f"{100 * record['judge_accuracy']:.1f} % of the generated images match their prompt; "
            f"{machine_line(record['machine'])}. Intervals: {intervals}.",
            "How often a drawn scene's own caption (or image) wins. Chance: 0.25 for near misses, 0.5 for changed captions.",
            markdown_table(
                ["network", "near misses, caption", "near misses, image", "swapped colours", "opposite relation"],
                captions,
            ),
            "AUC of correct against wrong generated images of one prompt, by the time of prediction; chance is 0.5.",
            markdown_table(
                ["network", *looks], [[n, *(text(r["auc"][k]) for k in looks)] for n, r in results.items()]
            ),
            "AUC of final images by task.",
            markdown_table(
                ["network", *tasks], [[n, *(text(r["auc_by_task"][k]) for k in tasks)] for n, r in results.items()]
            ),
        ]
    )


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reward", help="folder of another reward, measured with the bundled ones")
    parser.add_argument("--output", type=Path, default=RESULTS / "reward_generalisation.json")
    args = parser.parse_args()
    keep_freed_memory()
    networks: dict[str, Reward] = {"reward": rewards.load("shapes"), "matcher": rewards.load("shapes-matching")}
    networks |= {n: ShapesReward.from_pretrained(zoo.path(f"shapes-{n}")) for n in ("referee", "clip")}
    if args.reward:
        networks["other"] = ShapesReward.from_pretrained(args.reward)
    results: dict[str, dict[str, Any]] = {
        name: {
            "level": levels(reward),
            "near_misses": against_near_misses(reward),
            "changed_captions": against_changed_captions(reward),
        }
        for name, reward in networks.items()
    }
    pipe, prompts = zoo.load("shapes"), held_out_prompts(PROMPTS, "val")
    texts = [p.prompt for p in prompts]
    scores: dict[str, dict[str, list[Tensor]]] = {name: {} for name in networks}
    verdicts = []
    for seed in range(SEEDS):
        images = sample(pipe, prompts, seed)
        verdicts.append(torch.tensor(match_prompts(images["final"], prompts)))
        for name, reward in networks.items():
            for stage, batch in images.items():
                scores[name].setdefault(stage, []).append(reward(batch, texts))
    correct = torch.stack(verdicts, 1)
    tasks = sorted({p.task for p in prompts})
    rows = {task: torch.tensor([p.task == task for p in prompts]) for task in tasks}
    for name, by_stage in scores.items():
        results[name]["auc"] = {
            stage: auc(torch.stack(values, 1), correct, texts) for stage, values in by_stage.items()
        }
        final = torch.stack(by_stage["final"], 1)
        results[name]["auc_by_task"] = {
            task: auc(final[r], correct[r], [t for t, is_in in zip(texts, r.tolist(), strict=True) if is_in])
            for task, r in rows.items()
        }
    record = {
        "settings": {
            "scenes": COUNT,
            "prompts": PROMPTS,
            "seeds": SEEDS,
            "split": "val",
            "steps": STEPS,
            "guidance_scale": GUIDANCE_SCALE,
        },
        "judge_accuracy": float(correct.float().mean()),
        "rewards": results,
        "machine": machine(),
    }
    print(table(record))
    save_record(record, args.output, "What the bundled rewards learned", table(record))


if __name__ == "__main__":
    main()
