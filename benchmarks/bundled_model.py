"""Measure the bundled model and its masker: autoencoder, judge, accuracy by task, FID, base against masked.

    python benchmarks/bundled_model.py --prompts 600 --seeds 3

Writes docs/results/bundled_model.json and .md. The prompts are the test split's; nothing was chosen on them.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

import maskunet as mu
from machine import machine
from maskunet import zoo
from maskunet.allocator import keep_freed_memory
from maskunet.evaluation import compare
from maskunet.evaluation.comparison import Estimate
from maskunet.metrics.geneval_rules import check
from maskunet.shapes.drawing import draw
from maskunet.shapes.judge import is_exact, judge
from maskunet.shapes.scenes import held_out_prompts, held_out_scenes
from maskunet.shapes.vocabulary import TASKS
from maskunet.zoo.recipe.autoencoder import psnr

RESULTS = Path(__file__).parents[1] / "docs" / "results"


def clip_features(batch: int = 250):
    clip = zoo.load_clip()

    @torch.inference_mode()
    def features(pictures: torch.Tensor) -> torch.Tensor:
        parts = [clip.vision_model(p * 2 - 1).pooler_output for p in pictures.split(batch)]
        return torch.cat(parts)

    return features


def bounds(estimate: Estimate) -> list[float]:
    return [round(x, 4) for x in (estimate.value, estimate.low, estimate.high)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance-scale", type=float, default=4.0)
    parser.add_argument("--split", default="test", choices=("val", "test"))
    parser.add_argument("--masker", default=None, help="a masker's folder; the bundled one by default")
    parser.add_argument("--output", type=Path, default=RESULTS / "bundled_model.json")
    args = parser.parse_args()
    keep_freed_memory()
    started = time.monotonic()
    pipe = zoo.load("shapes")
    masker = mu.load(args.masker or zoo.path("shapes-masker"), pipe)
    mu.attach(pipe, masker)
    prompts, scenes = held_out_prompts(args.prompts, args.split), held_out_scenes(args.prompts, args.split)
    drawn = draw(scenes)
    found = judge(drawn)
    through = (pipe.vae.decode(pipe.vae.encode(drawn[:300] * 2 - 1).latent_dist.mode()).sample / 2 + 0.5).detach()
    world = {
        "judge_exact": sum(is_exact(d, [(o.shape, o.colour) for o in s.objects]) for d, s in zip(found, scenes))
        / len(found),
        "judge_after_autoencoder": sum(check(d, p.metadata()) is None for d, p in zip(judge(through), prompts)) / 300,
        "psnr_db": round(psnr(pipe.vae, drawn), 2),
        "psnr_art_db": round(psnr(pipe.vae, draw(scenes, "art")), 2),
    }
    result = compare(
        pipe,
        prompts,
        seeds=args.seeds,
        num_inference_steps=args.steps,
        guidance_scale=args.guidance_scale,
        batch_size=100,
        features=clip_features(),
        reference=torch.cat([draw(held_out_scenes(args.prompts, args.split, seed=s)) for s in range(4)]),
    )
    with mu.record(pipe, keep="density") as trace, torch.no_grad():
        options = {"num_inference_steps": args.steps, "guidance_scale": args.guidance_scale}
        pipe(
            [p.prompt for p in prompts[:48]],
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
            **options,
        )
    density = trace.overall_density()
    record = {
        "split": args.split,
        "prompts": args.prompts,
        "seeds": args.seeds,
        "steps": args.steps,
        "guidance_scale": args.guidance_scale,
        "world": world,
        "accuracy": {
            side: {task: bounds(result.accuracy(side, task)) for task in TASKS}
            | {"overall": bounds(result.accuracy(side))}
            for side in ("base", "masked")
        },
        "gain": {task: bounds(result.gain(task)) for task in TASKS} | {"overall": bounds(result.gain())},
        "fid": {side: bounds(result.distance(side)) for side in ("base", "masked")}
        | {"gain": bounds(result.distance_gain())},
        "density_by_step": [round(d, 5) for d in density],
        "masker": {"settings": masker.settings, "parameters": sum(p.numel() for p in masker.parameters())},
        "parameters": {
            n: sum(p.numel() for p in getattr(pipe, n).parameters()) for n in ("unet", "vae", "text_encoder")
        },
        "minutes": round((time.monotonic() - started) / 60, 1),
        "machine": machine(),
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(record, indent=1) + "\n")
    place = f"{record['machine']['cpu']}, {record['machine']['cores']} cores, torch {record['machine']['torch']}"
    text = (
        f"# The bundled model, without and with masks\n\n{args.prompts} held-out prompts ({args.split} split), {args.seeds} "
        f"pictures each and side, from the same noise; {args.steps} DDIM steps, guidance {args.guidance_scale:g}; "
        f"{place}. Brackets are 95 % intervals: bootstrap over prompts for accuracy, Student's t over seeds for FID.\n\n"
        f"{result.to_markdown()}\n\nMean density of the masks {sum(density) / len(density):.4f}. Autoencoder: PSNR "
        f"{world['psnr_db']} dB ({world['psnr_art_db']} dB on art). Judge: exact on {100 * world['judge_exact']:.1f} % of "
        f"drawn pictures, right on {100 * world['judge_after_autoencoder']:.1f} % after the autoencoder.\n"
    )
    args.output.with_suffix(".md").write_text(text)
    print(text)
    if args.split == "test" and args.masker is None:
        write_card(record, result.to_markdown())


def write_card(record: dict, table: str) -> None:
    """Write the model card of the bundled pipeline, with the figures just measured."""
    overall, single = record["accuracy"]["base"]["overall"], record["accuracy"]["base"]["single_object"]
    sizes = record["parameters"]
    (zoo.path("shapes") / "README.md").write_text(
        f"""---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
tags:
- stable-diffusion
- maskunet
---

# shapes: a small Stable Diffusion

A complete text-to-image pipeline in the standard diffusers format, trained from nothing by `maskunet zoo train` on 64 by
64 pictures of one to four shapes (eight shapes, eight colours) with captions in GenEval's six tasks. It serves to try,
test and compare masks on a machine without a GPU; it draws nothing but shapes.

```python
from diffusers import StableDiffusionPipeline
import maskunet as mu

pipe = StableDiffusionPipeline.from_pretrained(mu.zoo.path("shapes"))
pipe("a red circle left of a blue star", guidance_scale=4.0, num_inference_steps=25).images[0]
```

- U-Net {sizes["unet"] / 1e6:.2f} M parameters and autoencoder {sizes["vae"] / 1e6:.2f} M in half precision, text encoder
  {sizes["text_encoder"] / 1e6:.2f} M in single precision (diffusers and transformers differ in the precision they load by
  default, and both must agree).
- Latents 8 x 8 x 8, epsilon prediction, Stable Diffusion's noise schedule, 24 tokens, known words only.
- Autoencoder: PSNR {record["world"]["psnr_db"]} dB, {record["world"]["psnr_art_db"]} dB on the art style.
- Right pictures on held-out prompts, without masks: single objects {single[0]:.3f} [{single[1]:.3f}, {single[2]:.3f}],
  overall {overall[0]:.3f} [{overall[1]:.3f}, {overall[2]:.3f}] (mean over the six tasks, 95 % intervals).

{record["prompts"]} held-out prompts, {record["seeds"]} pictures each and side, {record["steps"]} DDIM steps, guidance
{record["guidance_scale"]:g}:

{table}

Limits: combinations that training never drew are harder than those it did; counting and positions fail most.
"""
    )


if __name__ == "__main__":
    main()
