"""What the bundled rewards know: held-out compositions, near misses, and which of several pictures is right.

    python benchmarks/reward_generalisation.py      # five minutes on two cores; docs/results/reward_generalisation.json

Four networks: the reward, the matcher, their referee, and the CLIP that gives features, which was the reward before.

- level: of drawn pictures with their captions, by split: a cosine, or the matcher's log-probability.
- near misses: how often the own caption beats those of three scenes that differ in one thing, and the same for pictures.
- told apart: the own caption from the same with colours exchanged, or with the opposite relation.
- AUC: of two pictures generated for one prompt, one right and one wrong by the judge, how often the right one has the higher
  reward; on final pictures, and on the pictures predicted after some steps of sampling, or after a roll-out of a few
  coarse steps from there; of final pictures also by task. No network has seen the judge.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import torch
from torch import Tensor

from machine import machine
from maskunet import rewards, zoo
from maskunet.allocator import keep_freed_memory
from maskunet.metrics.geneval_rules import check
from maskunet.rewards.base import Reward
from maskunet.sampling import StepwiseSampler
from maskunet.sampling.rollout import roll_out
from maskunet.shapes.drawing import draw
from maskunet.shapes.judge import judge
from maskunet.shapes.near_misses import near_misses
from maskunet.shapes.scenes import held_out_prompts, held_out_scenes, training_scene
from maskunet.zoo.rewards import ShapesReward

COUNT, PROMPTS, SEEDS, STEPS = 300, 120, 8, 15
LOOKS = (1, 3, 5, 8)  # steps after which the predicted picture is scored
ROLLOUT = 3  # coarse steps from there, as a search may take before it shows a picture to the reward
ALL = ("train", "val", "test")


def levels(reward: Reward) -> dict[str, dict[str, float]]:
    """Mean and deviation by split."""
    scenes = {"train": [training_scene(i) for i in range(COUNT)]}
    scenes |= {split: held_out_scenes(COUNT, split) for split in ("val", "test")}
    found = {split: reward(draw(some), [s.caption for s in some]) for split, some in scenes.items()}
    return {split: {"mean": float(r.mean()), "std": float(r.std())} for split, r in found.items()}


def against_near_misses(reward: Reward) -> dict[str, float]:
    """How often a validation scene's own caption, or picture, beats all three near misses."""
    scenes = held_out_scenes(COUNT, "val")
    groups = [[s, *near_misses(s, random.Random(i), 3, ALL)] for i, s in enumerate(scenes)]
    pictures = draw([s for g in groups for s in g])
    captions = [s.caption for g in groups for s in g]
    own = pictures.unflatten(0, (COUNT, 4))
    by_caption = torch.stack([reward(own[:, 0], captions[k::4]) for k in range(4)], 1)
    by_picture = torch.stack([reward(own[:, k], captions[0::4]) for k in range(4)], 1)
    return {
        "caption": float((by_caption.argmax(1) == 0).float().mean()),
        "picture": float((by_picture.argmax(1) == 0).float().mean()),
    }


def told_apart(reward: Reward) -> dict[str, float]:
    """How often a drawn validation scene's caption beats the same with colours exchanged, or the opposite relation."""
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    found = {}
    for task in ("color_attr", "position"):
        scenes, changed = [s for s in held_out_scenes(6 * PROMPTS, "val") if s.task == task], []
        if task == "color_attr":
            scenes = [s for s in scenes if s.include[0]["color"] != s.include[1]["color"]]
        for scene in scenes:
            if task == "position":
                relation = scene.include[1]["position"][0]
                changed.append(scene.caption.replace(relation, opposite[relation]))
            else:
                one, other = (need["color"] for need in scene.include)
                changed.append(scene.caption.replace(one, "?").replace(other, one).replace("?", other))
        pictures = draw(scenes)
        better = reward(pictures, [s.caption for s in scenes]) > reward(pictures, changed)
        found[task] = float(better.float().mean())
    return found


def auc(scores: Tensor, right: Tensor) -> dict[str, float | None]:
    """Share of (right, wrong) pairs of one prompt that are ordered well, prompts weighing alike: scores, right (P, S)."""
    shares = []
    for score, good in zip(scores, right, strict=True):
        if good.any() and not good.all():
            over = score[good][:, None] - score[~good][None]
            shares.append(float((over > 0).float().mean()))
    values = torch.tensor(shares)
    mean, half = (float(values.mean()), float(1.96 * values.std() / len(values) ** 0.5)) if shares else (None, None)
    return {"mean": mean, "ci95": half if len(shares) > 1 else None, "prompts": len(shares)}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--reward", help="folder of another reward, measured beside the bundled ones")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parents[1] / "docs/results/reward_generalisation.json"
    )
    args = parser.parse_args()
    keep_freed_memory()
    found: dict[str, Reward] = {"reward": rewards.load("shapes"), "matcher": rewards.load("shapes-matching")}
    found |= {n: ShapesReward.from_pretrained(zoo.path(f"shapes-{n}")) for n in ("referee", "clip")}
    if args.reward:
        found["other"] = ShapesReward.from_pretrained(args.reward)
    result = {
        n: {"level": levels(r), "near_misses": against_near_misses(r), "told_apart": told_apart(r), "auc": {}}
        for n, r in found.items()
    }
    pipe, prompts = zoo.load("shapes"), held_out_prompts(PROMPTS, "val")
    scores: dict[str, dict[str, list[Tensor]]] = {n: {} for n in found}
    right = []
    for seed in range(SEEDS):
        texts, seeds = [p.prompt for p in prompts], [1000 * seed + i for i in range(PROMPTS)]
        sampler = StepwiseSampler(pipe, texts, seeds=seeds, num_inference_steps=STEPS, guidance_scale=4.0)
        looks: dict[str, Tensor] = {}
        while not sampler.is_finished:
            output = sampler.predict()
            if sampler.index + 1 in LOOKS:
                for count in (0, ROLLOUT):
                    name = f"after {sampler.index + 1}" + (f", roll-out of {count}" if count else "")
                    looks[name] = sampler.decode(roll_out(sampler, output, count)).cpu()
            sampler.advance(output)
        looks["final"] = sampler.decode(sampler.latents).cpu()
        right.append(
            torch.tensor([check(d, p.metadata()) is None for d, p in zip(judge(looks["final"]), prompts, strict=True)])
        )
        for name, reward in found.items():
            for look, pictures in looks.items():
                scores[name].setdefault(look, []).append(reward(pictures, texts))
    good = torch.stack(right, 1)
    for name, by_look in scores.items():
        result[name]["auc"] = {look: auc(torch.stack(values, 1), good) for look, values in by_look.items()}
        final, tasks = torch.stack(by_look["final"], 1), sorted({p.task for p in prompts})
        rows = {task: torch.tensor([p.task == task for p in prompts]) for task in tasks}
        result[name]["auc_by_task"] = {task: auc(final[r], good[r]) for task, r in rows.items()}
        print(name, json.dumps(result[name], indent=1))
    settings = {
        "scenes": COUNT,
        "prompts": PROMPTS,
        "seeds": SEEDS,
        "split": "val",
        "steps": STEPS,
        "guidance_scale": 4.0,
    }
    record = {
        "settings": settings,
        "judge_accuracy": float(good.float().mean()),
        "rewards": result,
        "machine": machine(),
    }
    args.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
