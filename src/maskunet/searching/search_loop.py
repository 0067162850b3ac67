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

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..attaching.attachment import attach, attachment_of
from ..errors import DataError, UnscoredError
from ..maskers import MaskSchedule
from ..rewards.base import FunctionReward, Reward
from ..sampling.rollout import rolled_out
from ..sampling.stepwise import StepwiseSampler
from ..targets import Network, describe
from .config import SearchConfig
from .drafts import best_drafts
from .logits import Ascent, Best
from .pipeline_state import computes_in_half, prepared
from .prefix_cache import Reuse
from .progress import OnStep, SearchStep
from .result import SearchResult
from .searched_masks import LiveMasks


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
    config = (config or SearchConfig.preset("default")).checked()
    if isinstance(prompts, str) or not prompts:
        raise DataError(f"expected a list of at least one prompt, got {prompts!r}")
    prompts = list(prompts)
    reward = reward if isinstance(reward, Reward) else FunctionReward(reward)
    numbers = list(seeds) if seeds is not None else [config.seed + i for i in range(len(prompts))]
    options: dict[str, Any] = {
        "num_inference_steps": config.num_inference_steps,
        "guidance_scale": config.guidance_scale,
        "negative_prompt": config.negative_prompt,
        "height": config.height,
        "width": config.width,
    }

    @torch.no_grad()
    def scored(pictures: Tensor) -> Tensor:
        return reward(pictures.to(pipe._execution_device), prompts).float().cpu()

    with prepared(pipe, config, decoder):
        first = StepwiseSampler(pipe, prompts, seeds=numbers, **options)
        # What is wrong with targets or a masker is said before anything is drafted.
        network = describe(pipe.unet, config.targets)
        if (attached := attachment_of(pipe)) is not None and attached.enabled:
            attached.masker.check_prompts(len(prompts))
        started, starts = time.monotonic(), numbers
        if config.candidates > 1:
            limit = config.time_limit_s
            deadline = None if limit is None else started + limit
            starts = best_drafts(first, reward, config, decoder, deadline=deadline, progress=progress)
        drafted_s = time.monotonic() - started
        run = _Search(pipe, network, first.restarted(starts), reward, config, decoder, on_step)
        base, before = None, None
        if config.compare_base:
            base = first.finish()
            before = scored(base)  # before the search: a reward that cannot score is found out early
        pictures = run.run(progress, drafted_s)
    settings = {"prompts": prompts, "seeds": numbers, "start_seeds": starts}
    unscored = torch.full((len(prompts),), math.nan)
    found = SearchResult(pictures, base, unscored, before, run.schedule, run.history, config, settings)
    try:
        return replace(found, rewards=scored(pictures))
    except Exception as error:
        raise UnscoredError(f"the pictures are finished and could not be scored: {error}", found) from error


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
        self.pipe, self.sampler, self.reward, self.config, self.decoder = pipe, sampler, reward, config, decoder
        self.on_step, self.stopped = on_step, False
        self.carried = False  # whether there are logits of a step before to go on from
        self.network = network
        count = len(sampler.prompts)
        half = computes_in_half(sampler, decoder, reward)
        self.ascent = Ascent(self.network, sampler.seeds, config, device=sampler.device, half=half, reward=reward.name)
        attached = attachment_of(pipe)
        attached = attached if attached is not None and attached.enabled else None
        names = [layer.name for layer in self.network.layers]
        names += [] if attached is None else [layer.name for layer in attached.masker.network.layers]
        self.live = LiveMasks(describe(pipe.unet, names), attached)
        # A masker below may count rows or draw by batch, so with one the batch stays whole.
        self.shrinks = attached is None
        masked = "conditional" if config.halves == "conditional" and sampler.guided else None
        times = [float(t) for t in sampler.timesteps]
        self.schedule = MaskSchedule(self.network, times, samples=count, guided_half=masked)
        self.history: list[dict[str, Any]] = []
        self.reuse: Reuse | None = None
        self.without: Tensor | None = None

    def run(self, progress: bool, spent_s: float = 0.0) -> Tensor:
        """Search and sample to the end, `spent_s` seconds of it being gone; return the pictures on the CPU."""
        attach(self.pipe, self.live)
        self.started = time.monotonic() - spent_s
        try:
            if self.config.reuse:
                self.reuse = Reuse(self.pipe.unet, self.network)
            bar = tqdm(total=len(self.sampler.timesteps), desc="search", disable=not progress, leave=False)
            with bar:
                while not self.sampler.finished:
                    self._step()
                    bar.update()
                    # A step's last iterate may be taken unseen: what was judged latest is shown.
                    seen = (_mean(h["reward"]) for h in reversed(self.history))
                    judged = next((text for text in seen if text != "-"), "-")
                    bar.set_postfix(reward=judged, density=_mean(self.history[-1]["density"]))
            with torch.no_grad():
                return self.sampler.decode(self.sampler.latents).cpu()
        finally:
            if self.reuse is not None:
                self.reuse.remove()

    def _ended(self) -> bool:
        """Whether optimising is over, by the clock or because the caller said so."""
        limit = self.config.time_limit_s
        return self.stopped or (limit is not None and time.monotonic() - self.started > limit)

    def _step(self) -> None:
        config, index, rows = self.config, self.sampler.index, list(range(len(self.sampler.prompts)))
        if self.reuse is not None:
            self.reuse.clear()
        iterations = 0 if self._ended() else config.iterations_at(index, len(self.sampler.timesteps))
        if not iterations and not self.carried:
            self.live.masks, self.live.sequence = {}, "both halves"
            with torch.no_grad():
                output = self.sampler.predict()
            self._note(index, 0, dict.fromkeys(rows, float("nan")), dict.fromkeys(rows, 1.0))
            self._tell(output, rows, rows)
            self.sampler.advance(output)
            return
        if not self.carried:
            self.ascent.restart(index)
            self.carried = config.carry_over
        self._prepare_halves()
        best, active = Best(len(rows), config), rows
        for k in range(iterations + 1):
            last = k == iterations
            # The last iterate of "last" is taken whatever its reward, and so is what a step without iterations carries on.
            judged = not last or (config.keep == "best" and iterations > 0)
            found = self._iterate(index, k, rows, active, gradient=not last and config.ascend, judged=judged)
            best.offer(*found, rows, active)
            active = [i for i in active if not best.done(i)]
            if last or not active or self._ended():
                break
            if config.ascend:
                self.ascent.improve(active)
            if self.shrinks and len(active) < len(rows):
                rows = active
                if self.reuse is not None:
                    self.reuse.clear()  # what it holds has a row for each sample of before
        assert best.output is not None
        self.schedule.set(index, best.masks)
        self.sampler.advance(best.output)

    def _prepare_halves(self) -> None:
        """Compute the unconditional half of the step, where masks leave it alone."""
        self.without = None
        if self.config.halves == "conditional" and self.sampler.guided:
            self.live.masks, self.live.sequence = {}, "unconditional"
            with torch.no_grad():
                self.without = self.sampler.predict_half(conditional=False)
            if self.reuse is not None:
                self.reuse.clear()

    def _clean(self, output: Tensor, rows: list[int]) -> Tensor:
        """Clean latents that an iterate is judged by: predicted, or at the end of a short roll-out without masks."""
        if not self.config.rollout:
            return self.sampler.pred_x0(output, rows)
        self.live.masks, self.live.sequence = {}, "roll-out"
        with contextlib.nullcontext() if self.reuse is None else self.reuse.paused():
            return rolled_out(
                self.sampler, output, self.config.rollout, samples=rows, gradient=self.config.rollout_gradient
            )

    def _iterate(
        self, index: int, k: int, rows: list[int], active: list[int], *, gradient: bool, judged: bool
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """An iteration's draws, the best of each sample, as `_evaluate` gives it."""
        rewards, output, masks = self._evaluate(index, k, rows, active, 0, gradient=gradient, judged=judged)
        # A mask that is taken unjudged is as good as any other.
        for number in range(1, self.config.draws if judged else 1):
            found, other, drawn = self._evaluate(index, k, rows, active, number, gradient=gradient, judged=judged)
            better = (found > rewards).nonzero().flatten().tolist()
            rewards[better], output[better] = found[better], other[better]
            for name, mask in drawn.items():
                masks[name][better] = mask[better]
        return rewards, output, masks

    def _evaluate(
        self, index: int, k: int, rows: list[int], active: list[int], number: int, *, gradient: bool, judged: bool
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Rewards, guided output and masks of the present logits, a row each for `rows`; gradients for `active`."""
        sampler = self.sampler
        self.live.masks = {}  # the former iterate's make room
        self.live.sequence = "both halves" if self.without is None else "conditional"
        with torch.set_grad_enabled(gradient):
            live = self.live.masks = self.ascent.draw(index, k, rows, number)
            if self.without is None:
                output = sampler.predict(rows)
            else:
                output = sampler.guide(self.without[rows], sampler.predict_half(conditional=True, samples=rows))
            rewards = torch.full((len(rows),), float("nan"))
            if judged:
                pictures = sampler.preview(self._clean(output, rows), self.config.preview_size, self.decoder)
                rewards = self.reward(pictures, [sampler.prompts[i] for i in rows]).float()
            if gradient:
                self.ascent.differentiate(rewards, active)
        masks = {name: mask.detach().bool() for name, mask in live.items()}
        found = rewards.detach().cpu()
        kept = torch.stack([m.flatten(1).sum(1).float() for m in masks.values()]).sum(0) / self.network.weights
        noted = [dict(zip(rows, x.tolist(), strict=True)) for x in (found, kept)]
        self._note(index, k, *({i: values[i] for i in active} for values in noted))
        self._tell(output.detach(), rows, active)
        return found, output.detach(), masks

    def _note(self, index: int, k: int, rewards: dict[int, float], density: dict[int, float]) -> None:
        found = [rewards.get(i, math.nan) for i in range(len(self.sampler.prompts))]
        self.history.append(
            {
                "step": index,
                "timestep": float(self.sampler.timestep),
                "iteration": k,
                "reward": [r if math.isfinite(r) else None for r in found],  # JSON has no NaN
                "density": [density.get(i) for i in range(len(found))],
                "seconds": time.monotonic() - self.started,
            }
        )

    def _tell(self, output: Tensor, rows: list[int], active: list[int]) -> None:
        """Show the caller the latest entry of the history, and ask whether to go on."""
        if self.on_step is None:
            return

        @torch.no_grad()
        def preview() -> Tensor:
            clean = self.sampler.pred_x0(output, rows)[[rows.index(i) for i in active]]
            return self.sampler.preview(clean, self.config.preview_size, self.decoder).cpu()

        steps = len(self.sampler.timesteps)
        self.stopped |= bool(self.on_step(SearchStep(self.sampler.index, steps, self.history, tuple(active), preview)))


def _mean(values: Sequence[float | None]) -> str:
    known = [v for v in values if v is not None]
    return f"{sum(known) / len(known):.4f}" if known else "-"
