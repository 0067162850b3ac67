"""First stage of the shapes recipe: the autoencoder, on images of both styles."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from ...shapes.drawing import draw
from ...shapes.scenes import training_scene
from .stage import Figures, StageConfig, run_stage


def new_autoencoder(latent_channels: int) -> AutoencoderKL:
    """Return an untrained autoencoder: images of 64 by 64 pixels, latents of 8 by 8.

    Args:
        latent_channels: channels of the latents.
    """
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
    """Draw training images, a third of them in the art style.

    Args:
        count: number of images.
        seed: seed of the scenes.

    Returns:
        Images (count, 3, 64, 64), uint8.
    """
    pool = torch.empty(count, 3, 64, 64, dtype=torch.uint8)
    for start in range(0, count, 500):
        scenes = [training_scene(i, seed) for i in range(start, min(count, start + 500))]
        style = "art" if start // 500 % 3 == 2 else "plain"
        pool[start : start + len(scenes)] = (draw(scenes, style) * 255).round().byte()
    return pool


def psnr(vae: AutoencoderKL, images: Tensor) -> float:
    """Return the peak signal-to-noise ratio of reconstructed images, in dB, averaged over the images.

    Args:
        vae: the autoencoder.
        images: (N, 3, H, W) in [0, 1].
    """
    with torch.inference_mode():
        latents = vae.encode(images * 2 - 1).latent_dist.mode()
        decoded = (vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)
    return float(-10 * (decoded - images).square().mean((1, 2, 3)).log10().mean())


def train_autoencoder(
    config: StageConfig, folder: Path, *, latent_channels: int, pool: int, progress: bool = True
) -> AutoencoderKL:
    """Train the autoencoder: L1 + 2 MSE + 2e-4 KL, bf16 autocast.

    Args:
        config: settings of the stage.
        folder: folder of the run; a run in it is continued.
        latent_channels: channels of the latents.
        pool: number of images that are drawn.
        progress: show a progress bar.
    """
    torch.manual_seed(config.seed)
    vae = new_autoencoder(latent_channels)
    # Drawn at the first step, so a finished stage costs nothing.
    pool_images = functools.cache(lambda: draw_pool(pool, config.seed))

    def loss(generator: torch.Generator) -> tuple[Tensor, Figures]:
        index = torch.randint(pool, (config.batch_size,), generator=generator)
        target = pool_images()[index].float() / 127.5 - 1
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
