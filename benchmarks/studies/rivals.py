"""Other ways to spend compute on a reward at generation time: what a search of masks must beat.

Each takes a pipeline, prompts, seeds and a reward and returns pictures (B, 3, H, W) in [0, 1] on the CPU. The pipeline is
left as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from maskunet.attaching.attachment import attach, attachment_of, reattach
from maskunet.errors import DataError
from maskunet.maskers import RandomMasks
from maskunet.relaxation import derive_seed
from maskunet.rewards.base import Reward
from maskunet.sampling.freezing import frozen
from maskunet.sampling.offload import upcast_decoder, without_offload
from maskunet.sampling.stepwise import StepwiseSampler
from maskunet.searching.drafts import best_of, candidates


def plain(pipe: Any, prompts: Sequence[str], seeds: Sequence[int], **options: Any) -> Tensor:
    """Sample as the pipeline does.

    Args:
        pipe: a Stable Diffusion pipeline.
        prompts: B captions.
        seeds: a seed for each.
        options: of `StepwiseSampler`: num_inference_steps, guidance_scale, ...
    """
    return StepwiseSampler(pipe, prompts, seeds=seeds, **options).finish()


def best_of_n(
    pipe: Any, prompts: Sequence[str], seeds: Sequence[int], reward: Reward, *, count: int, **options: Any
) -> Tensor:
    """Sample `count` pictures from noises of their own and keep the one with the highest reward."""
    return best_noises(pipe, prompts, seeds, reward, count=count, **options)[1]


def best_noises(
    pipe: Any, prompts: Sequence[str], seeds: Sequence[int], reward: Reward, *, count: int, **options: Any
) -> tuple[list[int], Tensor, Tensor]:
    """Return the seeds of the best of `count` noises for each prompt, their pictures and their rewards (B,)."""
    pictures, rewards, which = best_of(
        lambda j: plain(pipe, prompts, candidates(seeds, j), **options), count, prompts, reward
    )
    tried = [candidates(seeds, j) for j in range(count)]
    return [tried[j][i] for i, j in enumerate(which.tolist())], pictures, rewards


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
    """Sample under `count` random masks from the same noise, the first without, and keep the highest reward."""
    before = attachment_of(pipe)

    def make(j: int) -> Tensor:
        if j:
            attach(pipe, RandomMasks.for_unet(pipe.unet, density=density, seed=derive_seed("random masks", j) % 2**31))
        try:
            return plain(pipe, prompts, seeds, **options)
        finally:
            reattach(pipe, before)

    return best_of(make, count, prompts, reward)[0]


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
    """Steer `count` particles a prompt: resample them now and then by the reward of their predicted pictures.

    Args:
        pipe, prompts, seeds, reward: see the module.
        count: particles a prompt.
        scale: lambda; a particle's weight is exp(lambda (r - its reward at the last resampling)).
        every: steps between resamplings.
        options: of `StepwiseSampler`. Under DDIM steps are noisy (eta 1) unless said otherwise: particles that were copied
            would stay alike.

    Reference: Singhal et al., "A General Framework for Inference-time Scaling and Steering of Diffusion Models", 2025.
    """
    rows = [p for p in prompts for _ in range(count)]
    numbers = [candidates([s], j)[0] for s in seeds for j in range(count)]
    sampler = StepwiseSampler(pipe, rows, seeds=numbers, **({"eta": 1.0} | options))
    generator = torch.Generator().manual_seed(derive_seed("particles", *seeds))
    before = torch.zeros(len(prompts), count)
    with torch.no_grad(), without_offload(pipe.vae), upcast_decoder(pipe):
        while not sampler.finished:
            output = sampler.predict()
            steps = len(sampler.timesteps)
            if sampler.index % every == every - 1 and sampler.index < steps - 1:
                found = reward(sampler.decode(sampler.pred_x0(output)), rows).float().cpu().view(-1, count)
                weights = torch.softmax(scale * (found - before), 1)
                chosen = torch.multinomial(weights, count, replacement=True, generator=generator)
                before = found.gather(1, chosen)
                index = (chosen + torch.arange(len(prompts))[:, None] * count).view(-1).to(output.device)
                output = output[index]
                _reorder(sampler, index)
            sampler.advance(output)
        pictures = sampler.decode(sampler.latents).cpu()
        rewards = reward(pictures, rows).float().cpu().view(-1, count)
    best = rewards.argmax(1) + torch.arange(len(prompts)) * count
    return pictures[best]


def _reorder(sampler: StepwiseSampler, index: Tensor) -> None:
    """Reorder the rows of the latents and of whatever history the scheduler holds."""
    count = len(sampler.latents)
    sampler.latents = sampler.latents[index]

    def moved(value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim == 4 and len(value) == count:
            return value[index]
        return [moved(v) for v in value] if isinstance(value, list) else value

    for name, value in vars(sampler.scheduler).items():
        if isinstance(value, Tensor | list):
            setattr(sampler.scheduler, name, moved(value))


def gradient_guidance(
    pipe: Any, prompts: Sequence[str], seeds: Sequence[int], reward: Reward, *, scale: float = 1.0, **options: Any
) -> Tensor:
    """Push the latents of every step along the gradient of the reward on the predicted picture.

    Args:
        pipe, prompts, seeds, reward: see the module.
        scale: length of a push, as a share of the noise that the step still holds.
        options: of `StepwiseSampler`.

    Reference: Bansal et al., "Universal Guidance for Diffusion Models", 2023.
    """
    sampler = StepwiseSampler(pipe, prompts, seeds=seeds, **options)
    if sampler.scheduler.config.prediction_type == "sample":
        raise DataError("expected a scheduler that predicts noise or velocity for gradient guidance, got 'sample'")
    with without_offload(pipe.unet, pipe.vae), frozen(pipe), upcast_decoder(pipe):
        while not sampler.finished:
            latents = sampler.latents.detach().requires_grad_(True)
            sampler.latents = latents
            with torch.enable_grad():
                output = sampler.predict()
                found = reward(sampler.decode(sampler.pred_x0(output)), prompts)
                (gradient,) = torch.autograd.grad(found.sum(), latents)
            _, sigma = sampler.scales()
            norm = gradient.float().flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)
            push = gradient.float() / norm * output.float().flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            sampler.latents = latents.detach()
            # A move of x_0 up the reward is a move of the noise against it.
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
    """Improve the starting noise by the reward of the first step's predicted picture, then sample.

    Args:
        pipe, prompts, seeds, reward: see the module.
        iterations: gradient steps.
        learning_rate: of Nesterov's accelerated gradient, on gradients clipped to norm 0.1 a sample.
        regularisation: weight of the log-likelihood of the noise's norm.
        options: of `StepwiseSampler`.

    Reference: Eyring et al., "ReNO: Enhancing One-step Text-to-Image Models through Reward-based Noise Optimization",
    NeurIPS 2024; for a model of several steps the first step's prediction stands for the picture.
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
                found = reward(sampler.decode(sampler.pred_x0(sampler.predict())), prompts).float()
                norm = noise.flatten(1).norm(dim=1)
                likelihood = (size - 1) * norm.log() - norm.square() / 2
                loss = -(found.sum() + regularisation * likelihood.sum() / size)
            better = found.detach() > rewards
            best = torch.where(better[:, None, None, None], noise.detach(), best)
            rewards = torch.where(better, found.detach(), rewards)
            if k == iterations:
                break
            (gradient,) = torch.autograd.grad(loss, noise)  # of the noise alone, not of an attached masker
            norms = gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            noise.grad = gradient * (0.1 / norms.clamp(min=1e-12)).clamp(max=1)
            optimizer.step()
        sampler.latents = best * sampler.scheduler.init_noise_sigma
        return sampler.finish()
