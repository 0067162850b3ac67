r"""Find masks for given prompts and seeds by the gradient of a reward, at generation time.

At each denoising step the logits S of every target layer, one set a sample, are improved K times:

.. math:: S \leftarrow \mathrm{Adam}(S, \nabla_S R(D(\hat x_0(m(S)))), c))

where m(S) are the masks, :math:`\hat x_0` the predicted clean latents under them, D the decoder and R the reward for the
caption c; then the step is taken with the best masks. A sample whose reward is good enough, or does not get better, is
done with the step and drops out of its batch. Before, each sample's noise may be chosen among several by coarse drafts
(`searching.drafts`). The weights are never written.

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
from ..errors import DataError, UnscoredError
from ..maskers import MaskSchedule
from ..rewards.base import FunctionReward, Reward
from ..sampling.stepwise import StepwiseSampler
from ..targets import Network, describe
from .best import BestIterates
from .config import SearchConfig
from .drafts import best_drafts
from .logits import LogitOptimizer
from .pipeline_state import search_mode, uses_float16
from .prefix_cache import PrefixCache
from .progress import OnStep, SearchStep
from .result import SearchResult
from .searched_masks import SearchedMasks


def search(
    pipe: Any,
    prompts: Sequence[str],
    reward: Reward | Callable[[Tensor, Sequence[str]], Tensor],
    config: SearchConfig | None = None,
    *,
    seeds: Sequence[int] | None = None,
    decoder: Any = None,
    progress: bool = True,
    on_step: OnStep | None = None,
) -> SearchResult:
    """Search masks for a batch of prompts, each with masks of its own.

    Args:
        pipe: a Stable Diffusion pipeline (1.x, 2.x, XL). Whatever happens it is left as it was: the same weights,
            masker, scheduler, dtype and device. With accelerate's offload on, by model or by layer, U-Net and decoder stay
            on the execution device meanwhile, as gradients need both at once; text encoders do not.
        prompts: B captions.
        reward: a reward, or a function that gives (B,) for pictures (B, 3, H, W) in [0, 1] and their prompts, higher is
            better, differentiable.
        config: settings; the preset "default" if None.
        seeds: a seed for each prompt, of its noise or of the first of its candidates; consecutive ones from
            `config.seed` if None.
        decoder: a cheaper decoder for the rewards while searching, as `AutoencoderTiny`; final pictures come from the
            pipeline's own.
        progress: show a progress bar with reward and density.
        on_step: is told of every trial of masks, and of every step that is taken without, but not of drafts. When it answers
            true the optimising ends, as after `time_limit_s`: the steps that are left are taken as they are and the result
            holds what was found. It changes no bit of a search that it lets run.

    Returns:
        Pictures of the search, pictures of the seeds without it, rewards of both, the masks, and the history.

    Raises:
        DataError: no prompts, a setting out of range, or networks offloaded by groups of layers.
        RewardError: the reward gives another shape, is not finite, or has no gradient; an `UnscoredError`, which holds the
            result, where that happens with the finished pictures.
        TargetError: the targets match nothing, or a masker that lies under the search has masks for another number of
            prompts.
    """
    config = config or SearchConfig()
    if isinstance(prompts, str) or not prompts:
        raise DataError(f"expected a list of at least one prompt, got {prompts!r}")
    prompts = list(prompts)
    reward = reward if isinstance(reward, Reward) else FunctionReward(reward)
    seeds = list(seeds) if seeds is not None else [config.seed + i for i in range(len(prompts))]
    options: dict[str, Any] = {
        "num_inference_steps": config.num_inference_steps,
        "guidance_scale": config.guidance_scale,
        "negative_prompt": config.negative_prompt,
        "height": config.height,
        "width": config.width,
    }

    @torch.no_grad()
    def score(images: Tensor) -> Tensor:
        return reward(images.to(pipe._execution_device), prompts).float().cpu()

    with search_mode(pipe, config, decoder):
        sampler = StepwiseSampler(pipe, prompts, seeds=seeds, **options)
        # Wrong targets or an unsuitable masker are reported before anything is drafted.
        network = describe(pipe.unet, config.targets)
        if (attached := attachment_of(pipe)) is not None and attached.enabled:
            attached.masker.check_prompts(len(prompts))
        started, start_seeds = time.monotonic(), seeds
        if config.candidates > 1:
            deadline = None if config.time_limit_s is None else started + config.time_limit_s
            start_seeds = best_drafts(sampler, reward, config, decoder, deadline=deadline, progress=progress)
        drafted_s = time.monotonic() - started
        run = _Search(pipe, network, sampler.restarted(start_seeds), reward, config, decoder, on_step)
        base, base_rewards = None, None
        if config.compare_base:
            base = sampler.finish()
            base_rewards = score(base)  # before the search, so that a reward that cannot score fails early
        images = run.run(progress, drafted_s)
    unscored = SearchResult(
        tensor=images,
        prompts=prompts,
        seeds=seeds,
        start_seeds=start_seeds,
        base=base,
        rewards=torch.full((len(prompts),), math.nan),
        base_rewards=base_rewards,
        masks=run.schedule,
        history=run.history,
        config=config,
    )
    try:
        return replace(unscored, rewards=score(images))
    except Exception as error:
        raise UnscoredError(f"the images are finished and could not be scored: {error}", unscored) from error


class _Search:
    """One search under way."""

    def __init__(
        self,
        pipe: Any,
        network: Network,
        sampler: StepwiseSampler,
        reward: Reward,
        config: SearchConfig,
        decoder: Any,
        on_step: OnStep | None = None,
    ) -> None:
        self.pipe, self.network, self.sampler = pipe, network, sampler
        self.reward, self.config, self.decoder = reward, config, decoder
        self.on_step, self.stop_requested = on_step, False
        self.logits = LogitOptimizer(
            network,
            sampler.seeds,
            config,
            device=sampler.device,
            scale_gradients=uses_float16(sampler, decoder, reward),
            reward_name=reward.name,
        )
        attached = attachment_of(pipe)
        attached = attached if attached is not None and attached.enabled else None
        names = [layer.name for layer in network.layers]
        names += [] if attached is None else [layer.name for layer in attached.masker.network.layers]
        self.masker = SearchedMasks(describe(pipe.unet, names), attached)
        # An underlying masker may count rows or draw by batch, so with one the batch stays whole.
        self.can_shrink = attached is None
        self.masks_conditional_half = config.halves == "conditional" and sampler.guided
        self.schedule = MaskSchedule(
            network,
            [float(t) for t in sampler.timesteps],
            samples=len(sampler.prompts),
            guided_half="conditional" if self.masks_conditional_half else None,
        )
        self.history: list[dict[str, Any]] = []
        self.cache: PrefixCache | None = None
        self.unconditional: Tensor | None = None

    def run(self, progress: bool, drafted_s: float = 0.0) -> Tensor:
        """Search and sample to the end; return the images on the CPU.

        Args:
            progress: show a progress bar.
            drafted_s: seconds spent on drafts, which count towards the time limit.
        """
        attach(self.pipe, self.masker)
        self.started = time.monotonic() - drafted_s
        try:
            if self.config.reuse:
                self.cache = PrefixCache(self.pipe.unet, self.network)
            bar = tqdm(total=len(self.sampler.timesteps), desc="search", disable=not progress, leave=False)
            with bar:
                while not self.sampler.finished:
                    self._step()
                    bar.update()
                    # A step's last iterate may be taken unseen, so the latest reward that is known is shown.
                    shown = (_mean(h["reward"]) for h in reversed(self.history))
                    reward = next((text for text in shown if text != "-"), "-")
                    bar.set_postfix(reward=reward, density=_mean(self.history[-1]["density"]))
            with torch.no_grad():
                return self.sampler.decode(self.sampler.latents).cpu()
        finally:
            if self.cache is not None:
                self.cache.remove()

    def _is_over(self) -> bool:
        """Whether optimising is over, by the clock or because the caller said so."""
        limit = self.config.time_limit_s
        return self.stop_requested or (limit is not None and time.monotonic() - self.started > limit)

    def _step(self) -> None:
        config, index, rows = self.config, self.sampler.index, list(range(len(self.sampler.prompts)))
        self._clear_cache()
        iterations = 0 if self._is_over() else config.iterations_at(index, len(self.sampler.timesteps))
        if not iterations:
            self.masker.masks = {}
            with torch.no_grad():
                output = self.sampler.predict()
            self._log(index, 0, dict.fromkeys(rows, math.nan), dict.fromkeys(rows, 1.0))
            self._report(output, rows, rows)
            self.sampler.advance(output)
            return
        self.logits.restart()
        self._compute_unconditional_half()
        best, active = BestIterates(len(rows), config), rows
        for k in range(iterations + 1):
            last = k == iterations
            # With keep="last" the last iterate is taken whatever its reward.
            needs_reward = not last or config.keep == "best"
            rewards, output, masks = self._evaluate(
                index, k, rows, active, needs_gradient=not last, needs_reward=needs_reward
            )
            best.offer(rewards, output, masks, rows, active)
            active = [i for i in active if not best.is_finished(i)]
            if last or not active or self._is_over():
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
        """Compute the unconditional half of the step once, where masks leave it alone."""
        self.unconditional = None
        if self.masks_conditional_half:
            self.masker.masks = {}
            with torch.no_grad():
                self.unconditional = self.sampler.predict_half(conditional=False)
            self._clear_cache()

    def _evaluate(
        self, index: int, k: int, rows: list[int], active: list[int], *, needs_gradient: bool, needs_reward: bool
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Rewards, guided output and masks of freshly drawn masks, one row per sample; gradients for `active`."""
        sampler = self.sampler
        self.masker.masks = {}  # free the former iterate's memory
        with torch.set_grad_enabled(needs_gradient):
            drawn = self.masker.masks = self.logits.draw(index, k, rows)
            if self.unconditional is None:
                output = sampler.predict(rows)
            else:
                conditional = sampler.predict_half(conditional=True, samples=rows)
                output = sampler.guide(self.unconditional[rows], conditional)
            rewards = torch.full((len(rows),), math.nan)
            if needs_reward:
                images = sampler.preview(sampler.pred_x0(output, rows), self.config.preview_size, self.decoder)
                rewards = self.reward(images, [sampler.prompts[i] for i in rows]).float()
            if needs_gradient:
                self.logits.differentiate(rewards, active)
        masks = {name: mask.detach().bool() for name, mask in drawn.items()}
        rewards = rewards.detach().cpu()
        kept = torch.stack([m.flatten(1).sum(1).float() for m in masks.values()]).sum(0) / self.network.weights
        by_sample = [dict(zip(rows, values.tolist(), strict=True)) for values in (rewards, kept)]
        self._log(index, k, *({i: values[i] for i in active} for values in by_sample))
        self._report(output.detach(), rows, active)
        return rewards, output.detach(), masks

    def _log(self, index: int, k: int, rewards: dict[int, float], density: dict[int, float]) -> None:
        values = [rewards.get(i, math.nan) for i in range(len(self.sampler.prompts))]
        self.history.append(
            {
                "step": index,
                "timestep": float(self.sampler.timestep),
                "iteration": k,
                "reward": [r if math.isfinite(r) else None for r in values],  # JSON has no NaN
                "density": [density.get(i) for i in range(len(values))],
                "seconds": time.monotonic() - self.started,
            }
        )

    def _report(self, output: Tensor, rows: list[int], active: list[int]) -> None:
        """Show the caller the latest entry of the history; a true answer requests a stop."""
        if self.on_step is None:
            return

        @torch.no_grad()
        def preview() -> Tensor:
            clean = self.sampler.pred_x0(output, rows)[[rows.index(i) for i in active]]
            return self.sampler.preview(clean, self.config.preview_size, self.decoder).cpu()

        step = SearchStep(self.sampler.index, len(self.sampler.timesteps), self.history, tuple(active), preview)
        self.stop_requested |= bool(self.on_step(step))


def _mean(values: Sequence[float | None]) -> str:
    known = [v for v in values if v is not None]
    return f"{sum(known) / len(known):.4f}" if known else "-"
