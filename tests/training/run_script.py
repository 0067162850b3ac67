"""A small training run in its own process, to be launched twice at once or killed."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

import maskunet as mu
from maskunet.data import CachedLatents, sample_index
from maskunet.distributed import process_rank
from maskunet.training import batches as batches_module
from maskunet.zoo.recipe.denoiser import new_text_encoder
from maskunet.zoo.recipe.tokenizer import build_tokenizer


def pipeline() -> StableDiffusionPipeline:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=16,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=4,
    )
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    tokenizer = build_tokenizer()
    text_encoder = new_text_encoder(tokenizer, 16)
    scheduler = DDIMScheduler()
    return StableDiffusionPipeline(
        vae, text_encoder, tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--runs", type=int, default=1, help="Runs one after the other, in folders of their own.")
    parser.add_argument(
        "--group", choices=["none", "open", "closed"], default="none", help="What the caller did before."
    )
    args = parser.parse_args()
    if args.group == "open":
        dist.init_process_group("gloo")
    elif args.group == "closed":
        Accelerator(cpu=True).end_training()
    pipe = pipeline()
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(12, 4, 8, 8, generator=generator)
    data = CachedLatents(mean, torch.full_like(mean, 0.1), tuple(f"a red circle and {i}" for i in range(12)))
    config = mu.TrainConfig(
        max_train_steps=args.steps,
        train_batch_size=args.batch_size,
        gradient_accumulation_steps=1,
        learning_rate=1e-3,
        use_ema=True,
        validation_samples=5,
        validation_batch_size=2,
        checkpointing_steps=2,
        logging_steps=1,
    )
    rank, _ = process_rank()
    real, step = batches_module.BatchSampler.__call__, 0

    def seen(self, positions, **options):  # type: ignore[no-untyped-def]
        nonlocal step
        if not options["dropout"]:  # a batch of the validation
            return real(self, positions, **options)
        indices = [sample_index(p, len(data), options["seed"]) for p in positions]
        args.folder.mkdir(parents=True, exist_ok=True)
        with (args.folder / f"seen-{rank}.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "indices": indices}) + "\n")
        step += 1
        return real(self, positions, **options)

    batches_module.BatchSampler.__call__ = seen  # type: ignore[method-assign]
    for run in range(args.runs):
        masker = mu.MaskGenerator.for_unet(pipe.unet, mu.MaskGeneratorConfig(initial_logit=0.5), seed=0)
        folder = args.folder / str(run) if args.runs > 1 else args.folder
        mu.train(pipe, masker, data, config, folder, progress=False)
    if args.group == "open":  # it is the caller's, and still works
        count = torch.ones(())
        dist.all_reduce(count)
        assert int(count) == dist.get_world_size()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
