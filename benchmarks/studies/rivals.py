"""Other ways to spend compute on a reward at generation time: the rivals of a mask search.

Each takes a pipeline, prompts, seeds and a reward and returns images (B, 3, H, W) in [0, 1] on the CPU. The pipeline
does not change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from maskunet.attaching import attach, attachment_of, reattach
from maskunet.errors import DataError
from maskunet.maskers import RandomMasks
from maskunet.relaxation import derive_seed
from maskunet.rewards.base import Reward
from maskunet.sampling.freezing import frozen
from maskunet.sampling.offload import upcast_decoder, without_offload
from maskunet.sampling.stepwise import StepwiseSampler
from maskunet.searching.drafts import best_by_reward, candidate_seeds


def plain(pipe: Any, prompts: Sequence[str], seeds: Sequence[int], **options: Any) -> Tensor:
    """Sample as the pipeline does.

    Args:
        pipe: a Stable Diffusion pipeline.
        prompts: B prompts.
        seeds: B seeds.
        options: of `StepwiseSampler`: num_inference_steps, guidance_scale, ...
    """
    return StepwiseSampler(pipe, prompts, seeds=seeds, **options).finish()


def best_of_n(
    pipe: Any, prompts: Sequence[str], seeds: Sequence[int], reward: Reward, *, count: int, **options: Any
) -> Tensor:
    """Sample `count` images per prompt, each from its own noise, and return the one with the highest reward.

    Args:
        pipe, prompts, seeds: as in `plain`.
        reward: the reward.
        count: number of noises per prompt.
        options: of `StepwiseSampler`.
    """
    return best_noises(pipe, prompts, seeds, reward, count=count, **options)[1]


def best_noises(
    pipe: Any, prompts: Sequence[str], seeds: Sequence[int], reward: Reward, *, count: int, **options: Any
) -> tuple[list[int], Tensor, Tensor]:
    """Return the seed of the best of `count` noises for each prompt, the images (B, 3, H, W) and their rewards (B,).

    Args:
        pipe, prompts, seeds, reward, count, options: as in `best_of_n`.
    """
    images, rewards, index = best_by_reward(
        lambda j: plain(pipe, prompts, candidate_seeds(seeds, j), **options), count, prompts, reward
    )
    numbers = [candidate_seeds(seeds, j) for j in range(count)]
    return [numbers[j][i] for i, j in enumerate(index.tolist())], images, rewards


def random_masks(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    reward: Reward,
    *,
    count: int,
    density: float = 0.98,
    **options: Any,
) -> Tensor:
    """Sample `count` times from one noise, first without masks, then under random ones; return the best image by reward.

    Args:
        pipe, prompts, seeds, reward: as in `best_of_n`.
        count: images per prompt.
        density: kept fraction of the masks.
        options: of `StepwiseSampler`.
    """
    previous = attachment_of(pipe)

    def sample(j: int) -> Tensor:
        if j:
            attach(pipe, RandomMasks.for_unet(pipe.unet, density=density, seed=derive_seed("random masks", j) % 2**31))
        try:
            return plain(pipe, prompts, seeds, **options)
        finally:
            reattach(pipe, previous)

    return best_by_reward(sample, count, prompts, reward)[0]


def particles(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    reward: Reward,
    *,
    count: int,
    scale: float = 10.0,
    every: int = 3,
    **options: Any,
) -> Tensor:
    """Steer `count` particles per prompt: resample them at intervals by the reward of their predicted clean images.

    Args:
        pipe, prompts, seeds, reward: as in `best_of_n`.
        count: particles per prompt.
        scale: lambda; a particle's weight is exp(lambda (r - its reward at the last resampling)).
        every: steps between resamplings.
        options: of `StepwiseSampler`. The default is eta = 1 under DDIM, since copied particles would stay identical without
            noise.

    Reference: Singhal et al., "A General Framework for Inference-time Scaling and Steering of Diffusion Models", 2025.
    """
    rows = [p for p in prompts for _ in range(count)]
    numbers = [candidate_seeds([s], j)[0] for s in seeds for j in range(count)]
    sampler = StepwiseSampler(pipe, rows, seeds=numbers, **({"eta": 1.0} | options))
    generator = torch.Generator().manual_seed(derive_seed("particles", *seeds))
    previous = torch.zeros(len(prompts), count)
    with torch.no_grad(), without_offload(pipe.vae), upcast_decoder(pipe):
        while not sampler.is_finished:
            output = sampler.predict()
            steps = len(sampler.timesteps)
            if sampler.index % every == every - 1 and sampler.index < steps - 1:
                rewards = reward(sampler.decode(sampler.pred_x0(output)), rows).float().cpu().view(-1, count)
                weights = torch.softmax(scale * (rewards - previous), 1)
                drawn = torch.multinomial(weights, count, replacement=True, generator=generator)
                previous = rewards.gather(1, drawn)
                index = (drawn + torch.arange(len(prompts))[:, None] * count).view(-1).to(output.device)
                output = output[index]
                _reorder(sampler, index)
            sampler.advance(output)
        images = sampler.decode(sampler.latents).cpu()
        rewards = reward(images, rows).float().cpu().view(-1, count)
    best = rewards.argmax(1) + torch.arange(len(prompts)) * count
    return images[best]


def _reorder(sampler: StepwiseSampler, index: Tensor) -> None:
    """Reorder the rows of the latents and of the scheduler's history."""
    count = len(sampler.latents)
    sampler.latents = sampler.latents[index]

    def reorder(value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim == 4 and len(value) == count:
            return value[index]
        return [reorder(v) for v in value] if isinstance(value, list) else value

    for name, value in vars(sampler.scheduler).items():
        if isinstance(value, Tensor | list):
            setattr(sampler.scheduler, name, reorder(value))


def gradient_guidance(
    pipe: Any, prompts: Sequence[str], seeds: Sequence[int], reward: Reward, *, scale: float = 1.0, **options: Any
) -> Tensor:
    """Push the latents of every step along the gradient of the reward on the predicted clean image.

    Args:
        pipe, prompts, seeds, reward: as in `best_of_n`.
        scale: length of a push, relative to the remaining noise of the step.
        options: of `StepwiseSampler`.

    Raises:
        DataError: the scheduler predicts the sample itself.

    Reference: Bansal et al., "Universal Guidance for Diffusion Models", 2023.
    """
    sampler = StepwiseSampler(pipe, prompts, seeds=seeds, **options)
    if sampler.scheduler.config.prediction_type == "sample":
        raise DataError("expected a scheduler that predicts noise or velocity for gradient guidance, got 'sample'")
    with without_offload(pipe.unet, pipe.vae), frozen(pipe), upcast_decoder(pipe):
        while not sampler.is_finished:
            latents = sampler.latents.detach().requires_grad_(True)
            sampler.latents = latents
            with torch.enable_grad():
                output = sampler.predict()
                rewards = reward(sampler.decode(sampler.pred_x0(output)), prompts)
                (gradient,) = torch.autograd.grad(rewards.sum(), latents)
            _, sigma = sampler.scales()
            norm = gradient.float().flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)
            push = gradient.float() / norm * output.float().flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            sampler.latents = latents.detach()
            # x_0 moves up the reward when the predicted noise moves down.
            sampler.advance(output.detach() - (scale * sigma * push).to(output.dtype))
        with torch.no_grad():
            return sampler.decode(sampler.latents).cpu()


def noise_optimisation(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    reward: Reward,
    *,
    iterations: int,
    learning_rate: float = 1.0,
    regularisation: float = 0.01,
    **options: Any,
) -> Tensor:
    """Improve the starting noise by the reward of the first step's predicted clean image, then sample.

    Args:
        pipe, prompts, seeds, reward: as in `best_of_n`.
        iterations: gradient steps.
        learning_rate: of Nesterov's accelerated gradient, on gradients clipped to norm 0.1 per sample.
        regularisation: weight of the log-likelihood of the noise's norm.
        options: of `StepwiseSampler`.

    Reference: Eyring et al., "ReNO: Enhancing One-step Text-to-Image Models through Reward-based Noise Optimization",
    NeurIPS 2024; for a model of several steps the first step's prediction replaces the image.
    """
    sampler = StepwiseSampler(pipe, prompts, seeds=seeds, **options)
    start = sampler.latents / float(sampler.scheduler.init_noise_sigma)
    noise = start.clone().requires_grad_(True)
    optimizer = torch.optim.SGD([noise], lr=learning_rate, momentum=0.9, nesterov=True)
    best, rewards = start.clone(), torch.full((len(prompts),), -float("inf"), device=start.device)
    size = start[0].numel()
    with without_offload(pipe.unet, pipe.vae), frozen(pipe), upcast_decoder(pipe):
        for k in range(iterations + 1):
            with torch.enable_grad():
                sampler.latents = noise * sampler.scheduler.init_noise_sigma
                values = reward(sampler.decode(sampler.pred_x0(sampler.predict())), prompts).float()
                norm = noise.flatten(1).norm(dim=1)
                likelihood = (size - 1) * norm.log() - norm.square() / 2
                loss = -(values.sum() + regularisation * likelihood.sum() / size)
            better = values.detach() > rewards
            best = torch.where(better[:, None, None, None], noise.detach(), best)
            rewards = torch.where(better, values.detach(), rewards)
            if k == iterations:
                break
            (gradient,) = torch.autograd.grad(loss, noise)  # of the noise alone, not of an attached masker
            norms = gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            noise.grad = gradient * (0.1 / norms.clamp(min=1e-12)).clamp(max=1)
            optimizer.step()
        sampler.latents = best * sampler.scheduler.init_noise_sigma
        return sampler.finish()
