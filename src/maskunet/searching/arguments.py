"""Arguments of `search`, checked before anything is loaded."""

from __future__ import annotations

from typing import Any

from ..data.scaling import has_statistics, uses_statistics
from ..errors import SettingError
from ..rewards.base import Reward
from ..sampling.supported_pipelines import check_is_pipeline
from .config import SearchConfig


def check_arguments(pipe: Any, reward: Any, config: Any, decoder: Any, on_step: Any) -> None:
    """Refuse arguments of the wrong type.

    Args:
        pipe: a Stable Diffusion pipeline.
        reward: a reward, a function or a description.
        config: settings.
        decoder: a network with `decode`, or None.
        on_step: a function, or None.

    Raises:
        SettingError: one of the others has another type.
        TargetError: no pipeline.
    """
    if not isinstance(config, SearchConfig):
        raise SettingError(f"expected config to be a SearchConfig, got {type(config).__name__}")
    if not (isinstance(reward, Reward | str) or callable(reward)):
        raise SettingError(
            "expected a reward: a Reward, a function (images, prompts) -> (B,), or a description such as 'hpsv2:5', got "
            f"{type(reward).__name__}"
        )
    if decoder is not None and not (callable(getattr(decoder, "decode", None)) and hasattr(decoder, "dtype")):
        raise SettingError(f"expected a decoder such as diffusers' AutoencoderTiny, got {type(decoder).__name__}")
    if on_step is not None and not callable(on_step):
        raise SettingError(f"expected on_step to be a function of the search's state, got {type(on_step).__name__}")
    check_is_pipeline(pipe)
    if decoder is not None and uses_statistics(pipe) and has_statistics(pipe.vae) and not has_statistics(decoder):
        raise SettingError(
            "expected a decoder of this model's latents, whose config has latents_mean and latents_std as its "
            f"autoencoder's has, got a {type(decoder).__name__} without; search without it"
        )
