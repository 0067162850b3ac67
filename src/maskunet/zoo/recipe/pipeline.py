"""The whole recipe of the bundled model in one call: autoencoder, denoiser, CLIP, rewards, export.

Each stage resumes if it was interrupted. On two CPU cores that did other work as well, the first three stages took about 14,
85 and 10 minutes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPModel, CLIPTextModel

from ...errors import CheckpointError
from ...files import make_folder, save_folder
from ..matcher import Matcher
from .autoencoder import train_autoencoder
from .clip import new_image_processor, train_clip
from .denoiser import new_scheduler, train_denoiser
from .matching import train_matcher
from .reward import train_reward
from .stage import StageConfig
from .tokenizer import build_tokenizer

_AUTOENCODER = StageConfig(4000, 16, 2e-3, warmup=100)
_DENOISER = StageConfig(8000, 64, 1e-3, warmup=300, decay=0.35, ema_decay=0.9995)
_CLIP = StageConfig(1000, 96, 1e-3, warmup=100)
_FIRST_REWARD = StageConfig(1600, 96, 1e-3, warmup=100, decay=0.4, seed=3)
_REWARD = StageConfig(1200, 84, 7e-4, warmup=100, decay=0.6, seed=3)
_FIRST_MATCHER = StageConfig(1600, 84, 1e-3, warmup=100, decay=0.7, ema_decay=0.998, weight_decay=0.05, seed=3)
_SECOND_MATCHER = StageConfig(700, 48, 5e-4, warmup=30, decay=0.7, ema_decay=0.99, weight_decay=0.05, seed=3)
_MATCHER = StageConfig(500, 48, 5e-4, warmup=30, decay=0.7, ema_decay=0.99, weight_decay=0.05, seed=3)
_REFEREE = StageConfig(1500, 84, 1e-3, warmup=100, decay=0.6, seed=4)


_REWARDS = ("shapes-reward", "shapes-matching", "shapes-referee")


@dataclass(frozen=True)
class Recipe:
    """Settings of all stages.

    Main:
        autoencoder, denoiser, clip: training of the first three stages.
        first_reward, reward: training of the reward: the contrastive round, then the harder one.
        first_matcher, second_matcher, matcher: training of the matcher: objects and colours, then relations, then both.
        referee: training of the referee.

    Fine-tuning:
        latent_channels: channels of the latents.
        autoencoder_pool, denoiser_pool, clip_pool: number of images that each stage draws.
        reward_groups, referee_groups: number of scenes that the rewards draw, each with its near misses.
        referee_width: channels of the referee's towers.
    """

    autoencoder: StageConfig = _AUTOENCODER
    denoiser: StageConfig = _DENOISER
    clip: StageConfig = _CLIP
    first_reward: StageConfig = _FIRST_REWARD
    reward: StageConfig = _REWARD
    first_matcher: StageConfig = _FIRST_MATCHER
    second_matcher: StageConfig = _SECOND_MATCHER
    matcher: StageConfig = _MATCHER
    referee: StageConfig = _REFEREE
    latent_channels: int = 8
    autoencoder_pool: int = 15_000
    denoiser_pool: int = 60_000
    clip_pool: int = 12_000
    reward_groups: int = 6_000
    referee_groups: int = 3_000
    referee_width: int = 64

    def shortened(self, share: float) -> Recipe:
        """Return the recipe with a share of every stage's steps and images, to try it out.

        Args:
            share: the share, in (0, 1].
        """

        def shorten(stage: StageConfig) -> StageConfig:
            return replace(stage, steps=max(1, round(stage.steps * share)), warmup=1)

        def reduce(count: int) -> int:
            return max(128, round(count * share))

        return replace(
            self,
            autoencoder=shorten(self.autoencoder),
            denoiser=shorten(self.denoiser),
            clip=shorten(self.clip),
            first_reward=shorten(self.first_reward),
            reward=shorten(self.reward),
            first_matcher=shorten(self.first_matcher),
            second_matcher=shorten(self.second_matcher),
            matcher=shorten(self.matcher),
            referee=shorten(self.referee),
            autoencoder_pool=reduce(self.autoencoder_pool),
            denoiser_pool=reduce(self.denoiser_pool),
            clip_pool=reduce(self.clip_pool),
            reward_groups=reduce(self.reward_groups),
            referee_groups=reduce(self.referee_groups),
        )


def new_pipeline(
    vae: AutoencoderKL, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, tokenizer: Any
) -> StableDiffusionPipeline:
    """Return a Stable Diffusion pipeline of the trained parts.

    Args:
        vae: the autoencoder.
        unet: the U-Net.
        text_encoder: the text encoder.
        tokenizer: tokenizer of the prompts.
    """
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


def _export(folder: Path, write: Callable[[Path], object]) -> None:
    save_folder(folder, write, keep=("README.md",))  # the model card


def train_shapes(output: Path, work: Path, recipe: Recipe | None = None, *, progress: bool = True) -> Path:
    """Run the recipe.

    Args:
        output: folder for `shapes/`, `shapes-clip/` and the rewards' `shapes-reward/`, `shapes-matching/` and
            `shapes-referee/`; all in half precision, except for the text encoder.
        work: folder of the stages' runs; the same call resumes them.
        recipe: settings of the stages; those of the bundled model if None.
        progress: show progress bars with the time left.

    Returns:
        The pipeline's folder.

    Raises:
        CheckpointError: `work` has runs with other settings, or `output` has something else than an earlier model.
        DataError: a folder cannot be written.
    """
    recipe = recipe or Recipe()
    _make_folders(output, work, ("shapes", "shapes-clip", *_REWARDS))
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
    clip = train_clip(vae, tokenizer, recipe.clip, work, pool=recipe.clip_pool, progress=progress)
    pipe = new_pipeline(vae, unet, text_encoder, tokenizer)
    # The text encoder stays in single precision: by default diffusers loads weights in float32 and transformers in the
    # file's own precision, and both must agree.
    _halve(pipe.unet, pipe.vae)
    _export(output / "shapes", lambda part: pipe.save_pretrained(part, safe_serialization=True))
    _export_scorer(output / "shapes-clip", clip, tokenizer)
    # The rewards learn from predictions of the stored weights, so they can be trained again without the other stages.
    stored = StableDiffusionPipeline.from_pretrained(output / "shapes", local_files_only=True)
    train_rewards(stored, output, work, recipe, clip=clip, progress=progress)
    return output / "shapes"


def train_rewards(
    pipe: StableDiffusionPipeline,
    output: Path,
    work: Path,
    recipe: Recipe | None = None,
    *,
    clip: CLIPModel,
    progress: bool = True,
) -> Path:
    """Train the reward, the matcher and the referee for a pipeline of the shapes world.

    Args:
        pipe: the pipeline, in single precision.
        output: folder for `shapes-reward/`, `shapes-matching/` and `shapes-referee/`, in half precision.
        work: folder of the stages' runs; the same call resumes them.
        recipe: settings of the stages; those of the bundled model if None.
        clip: the world's CLIP. The reward starts from its image tower, the matcher from the reward's; the referee starts
            from random weights.
        progress: show progress bars with the time left.

    Returns:
        The reward's folder.

    Raises:
        CheckpointError: `work` has runs with other settings, or `output` has something else than an earlier model.
        DataError: a folder cannot be written.
    """
    recipe = recipe or Recipe()
    _make_folders(output, work, _REWARDS)
    options: dict[str, Any] = {"groups": recipe.reward_groups, "progress": progress}
    first = train_reward(
        pipe, pipe.tokenizer, recipe.first_reward, work, name="first_reward", start=clip.float(), **options
    )
    reward = train_reward(pipe, pipe.tokenizer, recipe.reward, work, start=first, harder=True, **options)
    _export_scorer(output / "shapes-reward", reward, pipe.tokenizer)
    options["name"] = "first_matcher"
    matcher = train_matcher(pipe, pipe.tokenizer, recipe.first_matcher, work, start=reward.float(), **options)
    _halve(matcher)  # the later rounds of the bundled weights began from stored ones
    options |= {"name": "second_matcher", "relations": True}
    matcher = train_matcher(pipe, pipe.tokenizer, recipe.second_matcher, work, start=matcher.float(), **options)
    _halve(matcher)
    options |= {"name": "matcher", "bindings": True}
    matcher = train_matcher(pipe, pipe.tokenizer, recipe.matcher, work, start=matcher.float(), **options)
    _export_scorer(output / "shapes-matching", matcher, pipe.tokenizer)
    options = {"width": recipe.referee_width, "groups": recipe.referee_groups, "harder": True, "progress": progress}
    referee = train_reward(pipe, pipe.tokenizer, recipe.referee, work, name="referee", **options)
    _export_scorer(output / "shapes-referee", referee, pipe.tokenizer)
    return output / "shapes-reward"


def _make_folders(output: Path, work: Path, names: tuple[str, ...]) -> None:
    make_folder(work)
    make_folder(output)
    for name in names:
        folder, mark = output / name, "model_index.json" if name == "shapes" else "config.json"
        if folder.exists() and not (folder / mark).is_file() and (folder.is_file() or any(folder.iterdir())):
            raise CheckpointError(
                f"expected {folder} to be free or an earlier model's folder, it has something else; choose another output"
            )


def _export_scorer(folder: Path, model: CLIPModel | Matcher, tokenizer: Any) -> None:
    """Write a network that scores images, halved in place, with its tokenizer and its image processor."""
    _halve(model)

    def write(part: Path) -> None:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        new_image_processor().save_pretrained(part)

    _export(folder, write)


def _halve(*modules: nn.Module) -> None:
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor.data = tensor.data.half()
