"""The whole recipe of the bundled model, in one call: autoencoder, denoiser, reward, export.

Each stage resumes where it was stopped. On two CPU cores, shared with other work, the stages took about 14, 85 and
10 minutes.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel

from ..errors import CheckpointError
from .autoencoder import train_autoencoder
from .denoiser import new_scheduler, train_denoiser
from .reward import new_image_processor, train_reward
from .stage import StageConfig
from .tokenizer import build_tokenizer

logger = logging.getLogger(__name__)


_AUTOENCODER = StageConfig(4000, 16, 2e-3, warmup=100)
_DENOISER = StageConfig(8000, 64, 1e-3, warmup=300, decay=0.35, ema_decay=0.9995)
_REWARD = StageConfig(1000, 96, 1e-3, warmup=100)


@dataclass(frozen=True)
class Recipe:
    """Settings of every stage.

    Args:
        autoencoder, denoiser, reward: how each stage trains.
        latent_channels: channels of the latents.
        autoencoder_pool, denoiser_pool, reward_pool: how many pictures each stage draws.
    """

    autoencoder: StageConfig = _AUTOENCODER
    denoiser: StageConfig = _DENOISER
    reward: StageConfig = _REWARD
    latent_channels: int = 8
    autoencoder_pool: int = 15_000
    denoiser_pool: int = 60_000
    reward_pool: int = 12_000

    def shortened(self, share: float) -> Recipe:
        """Return the recipe with a share of every stage's steps and pictures, to try it out."""

        def cut(stage: StageConfig) -> StageConfig:
            return replace(stage, steps=max(1, round(stage.steps * share)), warmup=1)

        def fewer(count: int) -> int:
            return max(128, round(count * share))

        return replace(
            self,
            autoencoder=cut(self.autoencoder),
            denoiser=cut(self.denoiser),
            reward=cut(self.reward),
            autoencoder_pool=fewer(self.autoencoder_pool),
            denoiser_pool=fewer(self.denoiser_pool),
            reward_pool=fewer(self.reward_pool),
        )


def new_pipeline(
    vae: AutoencoderKL, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, tokenizer: Any
) -> StableDiffusionPipeline:
    """Put the parts together as a Stable Diffusion pipeline."""
    scheduler = new_scheduler(DDIMScheduler, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _export(folder: Path, save: Any) -> None:
    """Write a folder of weights under a temporary name, then put it in place; a model card there is kept."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    save(part)
    if (folder / "README.md").exists():
        shutil.copy(folder / "README.md", part / "README.md")
    shutil.rmtree(folder, ignore_errors=True)
    part.replace(folder)


def train_shapes(output: Path, work: Path, recipe: Recipe | None = None, *, progress: bool = True) -> Path:
    """Run the recipe.

    Args:
        output: folder that receives `shapes/` and `shapes-reward/`, in half precision but for the text encoder.
        work: folder of the runs under way; the same call again resumes them.
        recipe: settings of the stages.
        progress: show progress bars with the time left.

    Returns:
        The pipeline's folder.

    Raises:
        CheckpointError: `work` holds runs with other settings, or a folder cannot be written.
    """
    recipe = recipe or Recipe()
    try:
        work.mkdir(parents=True, exist_ok=True)
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"expected folders that can be written, got {output} and {work}: {error}") from error
    for name, mark in (("shapes", "model_index.json"), ("shapes-reward", "config.json")):
        there = output / name
        if there.exists() and not (there / mark).is_file() and (there.is_file() or any(there.iterdir())):
            raise CheckpointError(
                f"expected {there} to be free or an earlier model's folder, it holds something else; choose another output"
            )
    tokenizer = build_tokenizer()
    vae = train_autoencoder(
        recipe.autoencoder,
        work,
        latent_channels=recipe.latent_channels,
        pool=recipe.autoencoder_pool,
        progress=progress,
    )
    unet, text_encoder = train_denoiser(
        vae, tokenizer, recipe.denoiser, work, pool=recipe.denoiser_pool, progress=progress
    )
    clip = train_reward(vae, tokenizer, recipe.reward, work, pool=recipe.reward_pool, progress=progress)
    pipe = new_pipeline(vae, unet, text_encoder, tokenizer)
    # The text encoder stays in single precision: diffusers loads in float32 what is not asked for otherwise, transformers
    # in the file's own precision, and both must agree.
    _halve(pipe.unet, pipe.vae, clip)
    _export(output / "shapes", lambda part: pipe.save_pretrained(part, safe_serialization=True))

    def save_reward(part: Path) -> None:
        clip.save_pretrained(part)
        tokenizer.save_pretrained(part)
        new_image_processor().save_pretrained(part)

    _export(output / "shapes-reward", save_reward)
    return output / "shapes"


def _halve(*modules: nn.Module) -> None:
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor.data = tensor.data.half()
