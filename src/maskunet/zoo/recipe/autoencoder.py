"""First stage of the shapes recipe: the autoencoder, on pictures of both styles."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from ...shapes.drawing import draw
from ...shapes.scenes import training_scene
from .stage import StageConfig, run_stage


def new_autoencoder(latent_channels: int) -> AutoencoderKL:
    """Return an untrained autoencoder: 64 by 64 pixels to 8 by 8 latents."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
    )


def draw_pool(count: int, seed: int) -> Tensor:
    """Draw `count` training pictures, a third of them in the art style; uint8 (count, 3, 64, 64)."""
    pool = torch.empty(count, 3, 64, 64, dtype=torch.uint8)
    for start in range(0, count, 500):
        scenes = [training_scene(i, seed) for i in range(start, min(count, start + 500))]
        style = "art" if start // 500 % 3 == 2 else "plain"
        pool[start : start + len(scenes)] = (draw(scenes, style) * 255).round().byte()
    return pool


def psnr(vae: AutoencoderKL, pictures: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures (N, 3, H, W) in [0, 1] through the autoencoder."""
    with torch.inference_mode():
        latents = vae.encode(pictures * 2 - 1).latent_dist.mode()
        decoded = (vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)
    return float(-10 * (decoded - pictures).square().mean((1, 2, 3)).log10().mean())


def train_autoencoder(
    config: StageConfig, folder: Path, *, latent_channels: int, pool: int, progress: bool = True
) -> AutoencoderKL:
    """Train the autoencoder on `pool` pictures: L1 + 2 MSE + 2e-4 KL, bf16 autocast."""
    torch.manual_seed(config.seed)
    vae = new_autoencoder(latent_channels)
    # Drawn at the first step, so that a finished stage costs nothing.
    pictures = functools.cache(lambda: draw_pool(pool, config.seed))

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        index = torch.randint(pool, (config.batch_size,), generator=generator)
        target = pictures()[index].float() / 127.5 - 1
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(target).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator)
            decoded = vae.decode(posterior.mean + posterior.std * noise).sample
        error = decoded.float() - target
        squared = error.square().mean()
        total = error.abs().mean() + 2 * squared + 2e-4 * posterior.kl().mean() / 64
        return total, {"psnr": float(-10 * (squared.detach() / 4).log10())}

    run_stage("autoencoder", nn.ModuleDict({"vae": vae}), loss, config, folder, progress=progress)
    return vae.eval()
