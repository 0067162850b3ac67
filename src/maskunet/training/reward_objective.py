r"""The reward as a training objective: what a search finds for one prompt, learnt once for all.

ReFL samples with the network under training up to a random step k, without gradient, and raises the reward of the image
predicted there. DRaFT-K samples to the end, with gradients through the last K steps.

.. math:: L = w_d L_{\mathrm{diffusion}} - w_r\,E[R(D(\hat x_0(x_k)), c)] \quad\text{or}\quad - w_r\,E[R(D(x_0), c)]

References: Xu et al., "ImageReward", NeurIPS 2023 (ReFL); Clark et al., "Directly Fine-Tuning Diffusion Models on
Differentiable Rewards", ICLR 2024 (DRaFT).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError
from ..metrics.intervals import student
from ..relaxation import derive_seed
from ..rewards.base import Reward
from ..sampling.stepwise import StepwiseSampler
from .base import Method
from .config import TrainConfig


class RewardObjective:
    """Rewards of the network's own guided samples.

    Args:
        pipe: the pipeline; its scheduler makes the samples.
        reward: the reward to raise.
        config: settings of the run.
        method: the method; its masks are drawn by the seeds of the guided batch.

    Raises:
        DataError: the autoencoder overflows in its precision.
    """

    def __init__(self, pipe: Any, reward: Reward, config: TrainConfig, method: Method) -> None:
        if pipe.vae.dtype == torch.float16 and getattr(pipe.vae.config, "force_upcast", False):
            raise DataError(
                "expected an autoencoder in float32 or bfloat16, this one overflows in float16; call "
                "pipe.vae.to(torch.float32) first"
            )
        self.pipe, self.reward, self.config, self.method = pipe, reward, config, method
        self.base: Tensor | None = None

    def _sampler(self, captions: Sequence[str], seeds: Sequence[int]) -> StepwiseSampler:
        return StepwiseSampler(
            self.pipe,
            captions,
            seeds=seeds,
            num_inference_steps=self.config.reward_num_inference_steps,
            guidance_scale=self.config.reward_guidance_scale,
        )

    def __call__(self, captions: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """Return the rewards (B,) of samples, with their gradient to the trained parameters.

        Args:
            captions: B captions.
            seeds: B seeds, one per sample, of its noise; the first one also decides ReFL's step.
        """
        config = self.config
        sampler = self._sampler(captions, [derive_seed(s, "reward") % 2**31 for s in seeds])
        self.method.start_batch(tuple(seeds) * (2 if sampler.is_guided else 1))
        steps = len(sampler.timesteps)
        if config.draft_steps is not None:
            stop = max(0, steps - config.draft_steps)
        else:
            first = int(config.refl_start * steps)
            stop = first + derive_seed(seeds[0], "stop") % max(1, steps - first)
        with torch.no_grad():
            while sampler.index < stop:
                sampler.advance(sampler.predict())
        if config.draft_steps is None:
            latents = sampler.pred_x0(sampler.predict())
        else:
            while not sampler.is_finished:
                sampler.advance(sampler.predict(), gradient=True)
            latents = sampler.latents
        return self.reward(sampler.decode(latents), captions).float()

    @torch.no_grad()
    def rewards(self, captions: Sequence[str]) -> Tensor:
        """Return the rewards (B,) of finished images; image i starts from the noise of seed i.

        Args:
            captions: B captions.
        """
        rewards, size = [], self.config.reward_batch_size
        for first in range(0, len(captions), size):
            chunk = list(captions[first : first + size])
            sampler = self._sampler(chunk, range(first, first + len(chunk)))
            while not sampler.is_finished:
                sampler.advance(sampler.predict())
            rewards.append(self.reward(sampler.decode(sampler.latents), chunk).float())
        return torch.cat(rewards)

    def compare(self, captions: Sequence[str]) -> dict[str, float]:
        """Return the mean reward and its paired gain over the first call, with Student's 95 % interval.

        The first call is made on the base model, before the method is installed. A single caption has no interval.

        Args:
            captions: B captions, the same in every call.
        """
        rewards = self.rewards(captions)
        if self.base is None:
            self.base = rewards
        gain = student(rewards - self.base)
        figures = {"reward": float(rewards.mean()), "reward_gain": gain.value}
        return figures | ({"reward_gain_ci95": gain.high - gain.value} if len(rewards) > 1 else {})
