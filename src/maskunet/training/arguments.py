"""The objects that the arguments of `train` stand for: a method, data sets and a reward."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..attaching import disabled
from ..data import CachedLatents
from ..diffusion import NoiseSchedule
from ..errors import SettingError
from ..maskers import Masker
from ..maskers import load as load_masker
from ..rewards import Reward, as_reward
from ..sampling.guidance_scale import default_guidance_scale
from ..sampling.supported_pipelines import check_input_channels, check_steps
from .base import Method
from .config import TrainConfig
from .dataset import open_dataset
from .mask_method import MaskMethod

Source = str | os.PathLike[str]
RewardLike = Reward | Callable[[Tensor, Sequence[str]], Tensor] | str


def check_arguments(pipe: Any, method: Any, dataset: Any, validation: Any, reward: Any, config: Any) -> None:
    """Refuse arguments of wrong types, before anything is loaded.

    Args:
        pipe: a Stable Diffusion pipeline.
        method: a `Method`, a `Masker` or the source of one.
        dataset: `CachedLatents` or the source of a data set.
        validation: `CachedLatents` or None.
        reward: a `Reward`, a function, a description, or None.
        config: a `TrainConfig`.

    Raises:
        DataError: a model that needs an image beside the prompt.
        SettingError: an argument is of another type, or reward and objective do not fit.
    """
    if not isinstance(config, TrainConfig):
        raise SettingError(f"expected config to be a TrainConfig, got {type(config).__name__}")
    if any(getattr(pipe, part, None) is None for part in ("unet", "vae", "scheduler")):
        raise SettingError(
            f"expected a Stable Diffusion pipeline with unet, vae and scheduler, got {type(pipe).__name__}"
        )
    check_input_channels(pipe)
    if not isinstance(method, Method | Masker | str | os.PathLike):
        raise SettingError(
            "expected a method: a Method, a Masker, or a masker's folder, hub id or bundled name, got "
            f"{type(method).__name__}"
        )
    if not isinstance(dataset, CachedLatents | str | os.PathLike):
        raise SettingError(
            "expected a data set: CachedLatents, a folder, a hub id, 'shapes' or 'shapes-art', got "
            f"{type(dataset).__name__}"
        )
    if isinstance(dataset, CachedLatents) and not len(dataset):
        raise SettingError("expected samples to train on, got an empty data set")
    if not (validation is None or isinstance(validation, CachedLatents)):
        raise SettingError(f"expected validation to be CachedLatents or None, got {type(validation).__name__}")
    if not (reward is None or isinstance(reward, Reward | str) or callable(reward)):
        raise SettingError(
            "expected a reward: a Reward, a function (images, prompts) -> (B,), or a description such as 'hpsv2:5', got "
            f"{type(reward).__name__}"
        )
    if config.objective == "reward" and reward is None:
        raise SettingError("expected a reward for objective 'reward', got None; set reward")
    if config.objective != "reward" and reward is not None:
        raise SettingError(f"expected objective 'reward' with a reward, got {config.objective!r}; set objective")


def check_scheduler(pipe: Any, config: TrainConfig) -> NoiseSchedule:
    """Return the noise schedule to train on; refuse a scheduler that has none, or cannot take the steps of the run's images.

    Args:
        pipe: the pipeline.
        config: settings of the run.

    Raises:
        DataError: the scheduler has no noise schedule.
        SettingError: it cannot take that number of steps.
    """
    schedule = NoiseSchedule(pipe.scheduler)
    if config.validation_prompts:
        check_steps(pipe.scheduler, config.validation_num_inference_steps)
    if config.objective == "reward":
        check_steps(pipe.scheduler, config.reward_num_inference_steps)
    return schedule


def resolve_guidance(pipe: Any, config: TrainConfig) -> TrainConfig:
    """Return the settings with the model's own guidance where they leave it open.

    Args:
        pipe: the pipeline.
        config: settings of the run.
    """
    with disabled(pipe):  # attached masks may have replaced guidance
        own = default_guidance_scale(pipe)
    # Images of masks that replace guidance need none.
    of_images = 1.0 if config.objective == "guidance" else own
    defaults = {"reward_guidance_scale": own, "validation_guidance_scale": of_images}
    if config.objective == "guidance":
        defaults["guidance_scale"] = own
    missing: dict[str, Any] = {name: value for name, value in defaults.items() if getattr(config, name) is None}
    return replace(config, **missing)


def as_method(method: Method | Masker | Source, pipe: Any, config: TrainConfig) -> Method:
    """Return the method that an argument stands for.

    Args:
        method: a method, a masker, or the source of one.
        pipe: the pipeline; a loaded masker must fit its U-Net.
        config: settings of the run.

    Raises:
        CheckpointError: no masker can be read there.
        TargetError: the masker was made for another U-Net.
    """
    if isinstance(method, Method):
        return method
    masker = method if isinstance(method, Masker) else load_masker(method, pipe.unet)
    return MaskMethod(masker, gumbel=config.gumbel, collect_density=config.target_density is not None)


def as_datasets(
    dataset: CachedLatents | Source, validation: CachedLatents | None, pipe: Any, config: TrainConfig, progress: bool
) -> tuple[CachedLatents, CachedLatents | None]:
    """Return the samples to train on and those held out.

    Args:
        dataset: cached latents, or the source of a data set.
        validation: held-out latents; a source is split if None.
        pipe: the pipeline.
        config: settings of the run.
        progress: show a progress bar.

    Raises:
        DataError: the data set cannot be opened, or holds no usable image.
    """
    if isinstance(dataset, CachedLatents):
        return dataset, validation
    if validation is not None:
        return open_dataset(pipe, dataset, replace(config, validation_samples=0), progress=progress)[0], validation
    return open_dataset(pipe, dataset, config, progress=progress)


def as_training_reward(reward: RewardLike | None, pipe: Any) -> Reward | None:
    """Return the reward that an argument stands for; a described one is loaded to the pipeline's device.

    Args:
        reward: a reward, a function, a description, or None.
        pipe: the pipeline.

    Raises:
        RewardError: an unknown reward.
        CheckpointError: its weights cannot be read.
    """
    return None if reward is None else as_reward(reward, device=pipe.unet.device)
