r"""Search masks for given prompts and seeds by the gradient of a reward, at generation time.

At each denoising step the logits S of every target layer, one set per sample, are optimised for K iterations:

.. math:: S \leftarrow \mathrm{AdamW}(S, \nabla_S R(D(\hat x_0(m(S))), c))

where m(S) are the masks, :math:`\hat x_0` the predicted clean latents under them, D the decoder and R the reward for the
caption c; then the step is taken with the best masks. A sample whose reward reaches its target or stops improving leaves
the step and its batch. Before the first step, drafts choose each sample's starting noise (`searching.drafts`). The weights
are never written.

Reference: Wang et al., "Not All Parameters Matter", CVPR 2025, section 3.4.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..attaching import attach, attachment_of
from ..errors import UnscoredError, first_line
from ..maskers import MaskSchedule
from ..network import Network
from ..rewards.base import Reward
from ..rewards.registry import as_reward
from ..sampling.guidance_scale import default_guidance_scale
from ..sampling.inputs import checked_prompts, checked_seeds
from ..sampling.stepwise import StepwiseSampler
from ..targets import describe
from .arguments import check_arguments
from .best import BestIterates
from .config import SearchConfig
from .drafts import best_drafts
from .history import SearchHistory
from .logits import LogitOptimizer
from .pipeline_state import needs_gradient_scaling, prepared_pipeline
from .prefix_cache import PrefixCache
from .progress import SearchState, StepCallback
from .result import SearchResult
from .searched_masks import SearchedMasks

_SAMPLING_OPTIONS = ("num_inference_steps", "guidance_scale", "guidance_rescale", "negative_prompt", "height", "width")


@torch.inference_mode(False)
def search(
    pipe: Any,
    prompts: Sequence[str],
    reward: Reward | Callable[[Tensor, Sequence[str]], Tensor] | str,
    config: SearchConfig | None = None,
    *,
    seeds: Sequence[int] | int | None = None,
    decoder: Any = None,
    progress: bool = True,
    on_step: StepCallback | None = None,
) -> SearchResult:
    """Try seven starting noises per prompt, keep the most promising one and optimise masks against a reward.

    Args:
        pipe: a Stable Diffusion pipeline (1.x, 2.x, XL). It is restored afterwards, also after an error: weights, masker,
            scheduler, dtype and device. Under accelerate's offload, U-Net and decoder stay on the execution device while
            the search runs, since gradients need both at once.
        prompts: B captions.
        reward: a `Reward`, a differentiable function of images (B, 3, H, W) in [0, 1] and B prompts that returns (B,), or
            a description such as "hpsv2:5" or "shapes-matching". Higher is better.
        config: settings; the preset "default" if None.
        seeds: one seed per prompt, or the first of B consecutive ones; `config.seed` if None.
        decoder: a cheaper decoder for the rewards, such as `AutoencoderTiny`; the pipeline's own decodes the results.
        progress: show a progress bar with reward and density.
        on_step: called at every iteration and every step, but not for drafts. True ends the optimisation, like
            `time_limit_s`: the remaining steps are taken without masks. It does not change the result otherwise.

    Returns:
        Images of the search, images of the seeds without it, rewards of both, masks, and the history. Where the seed's own
        image has the higher reward (`config.compare_base`), it is the result, with masks that keep every weight.

    Raises:
        DataError: no prompts, a pipeline that cannot be sampled step by step, or networks offloaded by groups of layers.
        SettingError: a reward, config, decoder or callback of another type, or seeds that do not fit the prompts.
        RewardError: the reward is unknown, returns another shape, is not finite, or has no gradient; an `UnscoredError`,
            which holds the result, if that happens with the finished images.
        TargetError: no pipeline, the targets match nothing, or the attached masker has masks for another number of prompts.
    """
    config = SearchConfig() if config is None else config
    check_arguments(pipe, reward, config, decoder, on_step)
    if config.guidance_scale is None:
        config = replace(config, guidance_scale=default_guidance_scale(pipe))
    prompts = checked_prompts(prompts)
    seeds = checked_seeds(config.seed if seeds is None else seeds, len(prompts))
    reward = as_reward(reward, device=pipe._execution_device, dtype=pipe.unet.dtype)

    @torch.no_grad()
    def score(images: Tensor) -> Tensor:
        return reward(images.to(pipe._execution_device), prompts).float().cpu()

    with prepared_pipeline(pipe, config, decoder):
        options = {name: getattr(config, name) for name in _SAMPLING_OPTIONS}
        sampler = StepwiseSampler(pipe, prompts, seeds=seeds, **options)
        # Wrong targets or an unsuitable masker are reported before anything is drafted.
        network = describe(pipe.unet, config.targets)
        if (attached := attachment_of(pipe)) is not None and attached.enabled:
            attached.masker.check_prompt_count(len(prompts))
        started, start_seeds = time.monotonic(), seeds
        if config.candidates > 1:
            deadline = None if config.time_limit_s is None else started + config.time_limit_s
            start_seeds = best_drafts(sampler, reward, config, decoder, deadline=deadline, progress=progress)
        draft_s = time.monotonic() - started
        loop = _SearchLoop(pipe, network, sampler.with_seeds(start_seeds), reward, config, decoder, on_step)
        base, base_rewards = None, None
        if config.compare_base:
            base = sampler.finish()
            base_rewards = score(base)  # before the search, so that a reward that cannot score fails early
        images = loop.run(progress, draft_s)
    unscored = SearchResult(
        tensor=images,
        prompts=prompts,
        seeds=seeds,
        start_seeds=start_seeds,
        base=base,
        rewards=torch.full((len(prompts),), math.nan),
        base_rewards=base_rewards,
        masks=loop.schedule,
        search_rewards=torch.full((len(prompts),), math.nan),
        history=loop.history.entries,
        config=config,
    )
    try:
        rewards = score(images)
    except Exception as error:
        raise UnscoredError(
            f"the images are finished and could not be scored: {first_line(error)}", unscored
        ) from error
    result = replace(unscored, rewards=rewards, search_rewards=rewards)
    return result if base is None or base_rewards is None else result.better_of(base, base_rewards)


class _SearchLoop:
    """The denoising loop of a search, which optimises masks before it takes a step."""

    def __init__(
        self,
        pipe: Any,
        network: Network,
        sampler: StepwiseSampler,
        reward: Reward,
        config: SearchConfig,
        decoder: Any,
        on_step: StepCallback | None = None,
    ) -> None:
        self.pipe, self.network, self.sampler = pipe, network, sampler
        self.reward, self.config, self.decoder = reward, config, decoder
        self.on_step, self.stop_requested = on_step, False
        self.logits = LogitOptimizer(
            network,
            sampler.seeds,
            config,
            device=sampler.device,
            scale_gradients=needs_gradient_scaling(sampler, decoder, reward),
            reward_name=reward.name,
        )
        attached = attachment_of(pipe)
        attached = attached if attached is not None and attached.enabled else None
        names = [layer.name for layer in network.layers]
        names += [] if attached is None else [layer.name for layer in attached.masker.network.layers]
        self.masker = SearchedMasks(describe(pipe.unet, names), attached)
        # An underlying masker may count rows or draw by batch, so the batch does not shrink with one.
        self.can_shrink = attached is None
        self.masks_conditional_half = config.halves == "conditional" and sampler.is_guided
        self.schedule = MaskSchedule(
            network,
            [float(t) for t in sampler.timesteps],
            samples=len(sampler.prompts),
            guided_half="conditional" if self.masks_conditional_half else None,
        )
        self.cache: PrefixCache | None = None
        self.unconditional: Tensor | None = None

    def run(self, progress: bool, draft_s: float = 0.0) -> Tensor:
        """Search and sample to the end; return the images (B, 3, H, W) on the CPU.

        Args:
            progress: show a progress bar.
            draft_s: seconds spent on drafts, which count towards the time limit.
        """
        attach(self.pipe, self.masker)
        self.started = time.monotonic() - draft_s
        self.history = SearchHistory(len(self.sampler.prompts), self.started)
        try:
            if self.config.reuse:
                self.cache = PrefixCache(self.pipe.unet, self.network)
            with tqdm(total=len(self.sampler.timesteps), desc="search", disable=not progress, leave=False) as bar:
                while not self.sampler.is_finished:
                    self._take_step()
                    bar.update()
                    bar.set_postfix(self.history.latest())
            return self.sampler.final_images()
        finally:
            if self.cache is not None:
                self.cache.remove()

    def _is_over(self) -> bool:
        """Whether the caller or the time limit has ended the optimisation."""
        limit = self.config.time_limit_s
        return self.stop_requested or (limit is not None and time.monotonic() - self.started > limit)

    def _take_step(self) -> None:
        config, index, rows = self.config, self.sampler.index, list(range(len(self.sampler.prompts)))
        self._clear_cache()
        iterations = 0 if self._is_over() else config.iterations_at(index, len(self.sampler.timesteps))
        if not iterations:
            self.masker.masks = {}
            with torch.no_grad():
                output = self.sampler.predict()
            self._report(0, output, rows, dict.fromkeys(rows, math.nan), dict.fromkeys(rows, 1.0))
            self.sampler.advance(output)
            return
        self.logits.restart()
        self._compute_unconditional_half()
        best, active = BestIterates(len(rows), config), rows
        for k in range(iterations + 1):
            is_last = k == iterations
            # With keep="last" the last iterate is kept for any reward.
            needs_reward = not is_last or config.keep == "best"
            needs = {"needs_gradient": not is_last, "needs_reward": needs_reward}
            rewards, output, masks = self._evaluate(k, rows, active, **needs)
            best.update(rewards, output, masks, rows, active)
            active = [i for i in active if not best.is_finished(i)]
            if is_last or not active or self._is_over():
                break
            self.logits.improve(active)
            if self.can_shrink and len(active) < len(rows):
                rows = active
                self._clear_cache()  # its outputs have one row for each sample of the larger batch
        assert best.output is not None
        self.schedule.set(index, best.masks)
        self.sampler.advance(best.output)

    def _clear_cache(self) -> None:
        if self.cache is not None:
            self.cache.clear()

    def _compute_unconditional_half(self) -> None:
        """Compute the unconditional half of the step once, if it is not masked."""
        self.unconditional = None
        if self.masks_conditional_half:
            self.masker.masks = {}
            with torch.no_grad():
                self.unconditional = self.sampler.predict_half(conditional=False)
            self._clear_cache()

    def _evaluate(
        self, k: int, rows: list[int], active: list[int], *, needs_gradient: bool, needs_reward: bool
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return rewards (M,), guided output and masks of newly drawn masks for M samples; differentiate for `active`."""
        sampler = self.sampler
        self.masker.masks = {}  # free the previous iterate's memory
        with torch.set_grad_enabled(needs_gradient):
            drawn = self.masker.masks = self.logits.draw(sampler.index, k, rows)
            if self.unconditional is None:
                output = sampler.predict(rows)
            else:
                conditional = sampler.predict_half(conditional=True, samples=rows)
                output = sampler.apply_guidance(self.unconditional[rows], conditional)
            rewards = torch.full((len(rows),), math.nan)
            if needs_reward:
                images = sampler.preview(sampler.pred_x0(output, rows), self.config.preview_size, self.decoder)
                rewards = self.reward(images, [sampler.prompts[i] for i in rows]).float()
            if needs_gradient:
                self.logits.differentiate(rewards, active)
        masks = {name: mask.detach().bool() for name, mask in drawn.items()}
        rewards = rewards.detach().cpu()
        densities = torch.stack([m.flatten(1).sum(1).float() for m in masks.values()]).sum(0) / self.network.weights
        by_sample = [dict(zip(rows, values.tolist(), strict=True)) for values in (rewards, densities)]
        self._report(k, output.detach(), rows, *({i: values[i] for i in active} for values in by_sample))
        return rewards, output.detach(), masks

    def _report(
        self, k: int, output: Tensor, rows: list[int], rewards: dict[int, float], densities: dict[int, float]
    ) -> None:
        """Add an entry to the history and call `on_step`; a true result requests a stop."""
        self.history.add(self.sampler.index, float(self.sampler.timestep), k, rewards, densities)
        if self.on_step is None:
            return

        @torch.no_grad()
        def preview() -> Tensor:
            clean = self.sampler.pred_x0(output, rows)[[rows.index(i) for i in rewards]]
            return self.sampler.preview(clean, self.config.preview_size, self.decoder).cpu()

        state = SearchState(
            self.sampler.index, len(self.sampler.timesteps), self.history.entries, tuple(rewards), preview
        )
        self.stop_requested |= bool(self.on_step(state))
