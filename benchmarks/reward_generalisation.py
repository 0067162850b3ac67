"""Does the bundled reward know compositions that it was not trained on? Mean cosine of drawn pictures and their captions.

python benchmarks/reward_generalisation.py      # writes docs/results/reward_generalisation.json
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from machine import machine
from maskunet import rewards
from maskunet.shapes.drawing import draw
from maskunet.shapes.scenes import held_out_scenes, training_scene

COUNT = 300


@torch.no_grad()
def main() -> None:
    reward = rewards.load("shapes")
    scenes = {"train": [training_scene(i) for i in range(COUNT)]}
    scenes |= {split: held_out_scenes(COUNT, split) for split in ("val", "test")}
    found = {}
    for split, some in scenes.items():
        scores = reward(draw(some), [s.caption for s in some])
        found[split] = {"n": COUNT, "mean": float(scores.mean()), "std": float(scores.std())}
        print(split, found[split])
    path = Path(__file__).parents[1] / "docs" / "results" / "reward_generalisation.json"
    path.write_text(json.dumps({"seed": 0, "splits": found, "machine": machine()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
