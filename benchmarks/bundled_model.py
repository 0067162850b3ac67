"""The bundled model with and without its masker: autoencoder, judge, accuracy by task, FID.

    python -m benchmarks.bundled_model --prompts 600 --seeds 3     # twelve minutes on two cores

Writes docs/results/bundled_model.{json,md} and the model card of the bundled pipeline. The prompts are the test split's; no
setting was selected on them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import maskunet as mu
from benchmarks.records import RESULTS, bounds, machine_line, save_record
from benchmarks.studies.report import CHANCE_NOTE
from maskunet import zoo
from maskunet.allocator import keep_freed_memory
from maskunet.evaluation import compare
from maskunet.files import save_text
from maskunet.machine import machine
from maskunet.metrics.geneval_rules import check
from maskunet.shapes.drawing import draw
from maskunet.shapes.judge import is_exact, judge
from maskunet.shapes.scenes import held_out_prompts, held_out_scenes
from maskunet.shapes.vocabulary import TASKS
from maskunet.zoo.defaults import CHANCE_TASK
from maskunet.zoo.recipe.autoencoder import psnr

AUTOENCODED = 300  # images of the judge after the autoencoder


def clip_features(batch: int = 250) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the bundled CLIP's pooled features as a function of images (N, 3, H, W)."""
    clip = zoo.load_clip()

    @torch.inference_mode()
    def features(images: torch.Tensor) -> torch.Tensor:
        return torch.cat([clip.vision_model(x * 2 - 1).pooler_output for x in images.split(batch)])

    return features


def measure_world(pipe: Any, count: int, split: str) -> dict[str, float]:
    """Return the judge's accuracy on drawn images and after the autoencoder, and the autoencoder's PSNR."""
    prompts, scenes = held_out_prompts(count, split), held_out_scenes(count, split)
    drawn = draw(scenes)
    pairs = zip(judge(drawn), scenes, strict=True)
    latents = pipe.vae.encode(drawn[:AUTOENCODED] * 2 - 1).latent_dist.mode()
    decoded = (pipe.vae.decode(latents).sample / 2 + 0.5).detach()
    verdicts = [check(objects, p.metadata()) is None for objects, p in zip(judge(decoded), prompts)]
    return {
        "judge_exact": sum(is_exact(objects, [(o.shape, o.colour) for o in s.objects]) for objects, s in pairs)
        / count,
        "judge_after_autoencoder": sum(verdicts) / len(verdicts),
        "psnr_db": round(psnr(pipe.vae, drawn), 2),
        "psnr_art_db": round(psnr(pipe.vae, draw(scenes, "art")), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance-scale", type=float, default=4.0)
    parser.add_argument("--split", default="test", choices=("val", "test"))
    parser.add_argument("--masker", default=None, help="folder of a masker; the bundled one by default")
    parser.add_argument("--output", type=Path, default=RESULTS / "bundled_model.json")
    args = parser.parse_args()
    keep_freed_memory()
    start = time.monotonic()
    pipe = zoo.load("shapes")
    masker = mu.load(args.masker or "shapes-masker", pipe)
    mu.attach(pipe, masker)
    prompts = held_out_prompts(args.prompts, args.split)
    world = measure_world(pipe, args.prompts, args.split)
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
            | {f"without {CHANCE_TASK}": bounds(result.accuracy(side, without=CHANCE_TASK))}
            for side in ("base", "masked")
        },
        "gain": {task: bounds(result.gain(task)) for task in TASKS}
        | {"overall": bounds(result.gain()), f"without {CHANCE_TASK}": bounds(result.gain(without=CHANCE_TASK))},
        "changes": vars(result.changes()),
        # One digit per prompt and set of noises, so that intervals can be computed again.
        "verdicts": {
            side: ["".join(f"{int(v)}" for v in run) for run in verdicts.tolist()]
            for side, verdicts in zip(("base", "masked"), result.right, strict=True)
        },
        "fid": {side: bounds(result.distance(side)) for side in ("base", "masked")}
        | {"gain": bounds(result.distance_gain())},
        "density_by_step": [round(d, 5) for d in density],
        "masker": {"settings": masker.settings, "parameters": sum(p.numel() for p in masker.parameters())},
        "parameters": {
            n: sum(p.numel() for p in getattr(pipe, n).parameters()) for n in ("unet", "vae", "text_encoder")
        },
        "minutes": round((time.monotonic() - start) / 60, 1),
        "machine": machine(),
    }
    distinct = len({p.prompt for p in prompts})
    text = (
        f"{args.prompts} held-out prompts ({args.split} split, {distinct} of them distinct), "
        f"{args.seeds} images per prompt and side from one noise, "
        f"{args.steps} DDIM steps, guidance {args.guidance_scale:g}; {machine_line(record['machine'])}. Brackets are 95 % "
        f"intervals: over distinct prompts for accuracy, Student's over sets of noises for FID. {CHANCE_NOTE} Mended and "
        f"spoilt images: exact sign test.\n\n{result.to_markdown()}\n\n"
        f"Mean density of the masks: {sum(density) / len(density):.4f}. Autoencoder: PSNR {world['psnr_db']} dB "
        f"({world['psnr_art_db']} dB on art). The judge names every object of {100 * world['judge_exact']:.1f} % of "
        f"the drawn images, and finds {100 * world['judge_after_autoencoder']:.1f} % of them to match their prompt after "
        "the autoencoder."
    )
    print(text)
    save_record(record, args.output, "The bundled model with and without masks", text)
    if args.split == "test" and args.masker is None:
        write_card(record, result.to_markdown())


def write_card(record: dict[str, Any], table: str) -> None:
    """Write the model card of the bundled pipeline with the measured figures."""
    overall, single = record["accuracy"]["base"]["overall"], record["accuracy"]["base"]["single_object"]
    others, sizes = record["accuracy"]["base"][f"without {CHANCE_TASK}"], record["parameters"]
    save_text(
        f"""---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
tags:
- stable-diffusion
- maskunet
---

# shapes: a small Stable Diffusion

A complete text-to-image pipeline in diffusers format, trained from scratch by `maskunet zoo train` on images of 64 x 64
pixels with one to four shapes (eight shapes, eight colours) and captions in GenEval's six tasks. It is made to try, test
and compare masks on a machine without a GPU; it draws nothing but shapes.

```python
from diffusers import StableDiffusionPipeline
import maskunet as mu

pipe = StableDiffusionPipeline.from_pretrained(mu.zoo.path("shapes"))
pipe("a red circle left of a blue star", guidance_scale=4.0, num_inference_steps=25).images[0]
```

- U-Net {sizes["unet"] / 1e6:.2f} M parameters and autoencoder {sizes["vae"] / 1e6:.2f} M in half precision, text encoder
  {sizes["text_encoder"] / 1e6:.2f} M in single precision (diffusers and
  transformers load different precisions by default, and both must agree).
- Latents 8 x 8 x 8, epsilon prediction, Stable Diffusion's noise schedule, 24 tokens, a closed vocabulary.
- Autoencoder: PSNR {record["world"]["psnr_db"]} dB, {record["world"]["psnr_art_db"]} dB on the art style.
- Images that match a held-out prompt, without masks: single objects {single[0]:.3f} [{single[1]:.3f}, {single[2]:.3f}],
  overall {overall[0]:.3f} [{overall[1]:.3f}, {overall[2]:.3f}] (mean over the six tasks, 95 % intervals), without
  position {others[0]:.3f} [{others[1]:.3f}, {others[2]:.3f}].

{record["prompts"]} held-out prompts, {record["seeds"]} images per prompt and side, {record["steps"]} DDIM steps, guidance
{record["guidance_scale"]:g}:

{table}

Limits: the model ignores words of relation, so position stands at chance (one in four). Combinations outside the training
set are harder than those inside.
""",
        zoo.path("shapes") / "README.md",
    )


if __name__ == "__main__":
    main()
