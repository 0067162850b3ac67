r"""Find masks for given prompts and seeds by the gradient of a reward, at generation time.

At each denoising step the logits S of every target layer, one set a sample, are improved K times:

.. math:: S \leftarrow \mathrm{Adam}(S, \nabla_S R(D(\hat x_0(m(S)))), c))

where m(S) are the masks, :math:`\hat x_0` the predicted clean latents under them, D the decoder and R the reward for the
caption c; then the step is taken with the best masks. The weights are never written.

Reference: Wang et al., "Not All Parameters Matter", CVPR 2025, section 3.4.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..attachment import attach, attachment_of
from ..errors import DataError, RewardError
from ..maskers import MaskSchedule
from ..relaxation import derive_seed, gumbel_noise, gumbel_sigmoid, threshold
from ..rewards.base import FunctionReward, Reward
from ..targets import describe
from .config import SearchConfig
from .live import LiveMasks
from .preparation import prepared
from .result import SearchResult
from .reuse import Reuse
from .sampling import StepwiseSampler

logger = logging.getLogger(__name__)


def search(
    pipe: Any,
    prompts: Sequence[str],
    reward: Reward | Callable[[Tensor, Sequence[str]], Tensor],
    config: SearchConfig | None = None,
    *,
    seeds: Sequence[int] | None = None,
    decoder: Any = None,
    progress: bool = True,
) -> SearchResult:
    """Search masks for a batch of prompts, each with masks of its own.

    Args:
        pipe: a Stable Diffusion pipeline (1.x, 2.x, XL). Whatever happens it is left as it was: the same weights,
            masker, scheduler, dtype and device.
        prompts: B captions.
        reward: a reward, or a function that gives (B,) for pictures (B, 3, H, W) in [0, 1] and their prompts, higher is
            better, differentiable.
        config: settings.
        seeds: a seed for each prompt; consecutive ones from `config.seed` if None.
        decoder: a cheaper decoder for the rewards while searching, as `AutoencoderTiny`; final pictures come from the
            pipeline's own.
        progress: show a progress bar with reward and density.

    Returns:
        Pictures with and without masks, rewards of both, the masks, and the history.

    Raises:
        DataError: no prompts, or a setting out of range.
        RewardError: the reward gives another shape, is not finite, or has no gradient.
        TargetError: the targets match nothing.
    """
    config = (config or SearchConfig()).checked()
    if isinstance(prompts, str) or not prompts:
        raise DataError(f"expected a list of at least one prompt, got {prompts!r}")
    prompts = list(prompts)
    reward = reward if isinstance(reward, Reward) else FunctionReward(reward)
    numbers = list(seeds) if seeds is not None else [config.seed + i for i in range(len(prompts))]
    options: dict[str, Any] = {
        "seeds": numbers,
        "num_inference_steps": config.num_inference_steps,
        "guidance_scale": config.guidance_scale,
        "negative_prompt": config.negative_prompt,
        "height": config.height,
        "width": config.width,
    }
    with prepared(pipe, config, decoder):
        run = _Search(pipe, StepwiseSampler(pipe, prompts, **options), reward, config, decoder)
        base = None
        if config.compare_base:
            with torch.no_grad():
                base = _finish(StepwiseSampler(pipe, prompts, **options))
        pictures = run.run(progress)
    with torch.no_grad():
        after = reward(pictures.to(pipe._execution_device), prompts).float().cpu()
        before = None if base is None else reward(base.to(pipe._execution_device), prompts).float().cpu()
    settings = {"prompts": prompts, "seeds": numbers}
    return SearchResult(pictures, base, after, before, run.schedule, run.history, config, settings)


def _finish(sampler: StepwiseSampler) -> Tensor:
    """Sample to the end and decode."""
    while not sampler.finished:
        sampler.advance(sampler.predict())
    return sampler.decode(sampler.latents).cpu()


class _Best:
    """The best iterate of a step, sample by sample."""

    def __init__(self, count: int) -> None:
        self.rewards = torch.full((count,), -float("inf"))
        self.output: Tensor | None = None
        self.masks: dict[str, Tensor] = {}

    def offer(self, rewards: Tensor, output: Tensor, masks: dict[str, Tensor], *, take: bool) -> Tensor:
        """Take what is better, or everything; return which samples were."""
        better = torch.ones_like(rewards, dtype=torch.bool) if take else rewards > self.rewards
        if self.output is None:
            self.output, self.masks = output.clone(), {n: m.clone() for n, m in masks.items()}
        else:
            chosen = better.to(output.device)
            self.output[chosen] = output[chosen]
            for name, mask in masks.items():
                self.masks[name][chosen] = mask[chosen]
        self.rewards = torch.where(better, rewards, self.rewards)
        return better


class _Search:
    """One search under way."""

    def __init__(
        self, pipe: Any, sampler: StepwiseSampler, reward: Reward, config: SearchConfig, decoder: Any
    ) -> None:
        self.pipe, self.sampler, self.reward, self.config, self.decoder = pipe, sampler, reward, config, decoder
        self.network = describe(pipe.unet, config.targets)
        count = len(sampler.prompts)
        shapes = {layer.name: (count, *layer.shape) for layer in self.network.layers}
        self.logits = {
            name: torch.full(shape, config.initial_logit, device=sampler.device, requires_grad=True)
            for name, shape in shapes.items()
        }
        attached = attachment_of(pipe)
        attached = attached if attached is not None and attached.enabled else None
        names = [layer.name for layer in self.network.layers]
        names += [] if attached is None else [layer.name for layer in attached.masker.network.layers]
        self.live = LiveMasks(describe(pipe.unet, names), attached)
        self.grads: list[Tensor | None] = []
        half = "conditional" if config.halves == "conditional" and sampler.guided else None
        self.schedule = MaskSchedule(
            self.network, [float(t) for t in sampler.timesteps], samples=count, guided_half=half
        )
        self.history: list[dict[str, Any]] = []
        self.reuse: Reuse | None = None
        self.without: Tensor | None = None

    def run(self, progress: bool) -> Tensor:
        """Search and sample to the end; return the pictures on the CPU."""
        attach(self.pipe, self.live)
        # Half-precision gradients of a reward underflow unless they are scaled; Adam does not see the scale.
        self.scale = 1024.0 if self.sampler.dtype == torch.float16 else 1.0
        self.started = time.monotonic()
        try:
            if self.config.reuse:
                self.reuse = Reuse(self.pipe.unet, self.network)
            bar = tqdm(total=len(self.sampler.timesteps), desc="search", disable=not progress, leave=False)
            with bar:
                while not self.sampler.finished:
                    self._step()
                    bar.update()
                    shown = self.history[-1]
                    kept = shown["density"]
                    bar.set_postfix(reward=_mean(shown["reward"]), density=_mean(kept))
            with torch.no_grad():
                return self.sampler.decode(self.sampler.latents).cpu()
        finally:
            if self.reuse is not None:
                self.reuse.remove()

    def _out_of_time(self) -> bool:
        limit = self.config.time_limit_s
        return limit is not None and time.monotonic() - self.started > limit

    def _step(self) -> None:
        config, index = self.config, self.sampler.index
        if self.reuse is not None:
            self.reuse.clear()
        iterations = 0 if self._out_of_time() else config.iterations_at(index)
        if not iterations and not config.carry_over:
            self.live.masks = {}
            with torch.no_grad():
                output = self.sampler.predict()
            count = len(self.sampler.prompts)
            self._note(index, 0, torch.full((count,), float("nan")), torch.ones(count))
            self.sampler.advance(output)
            return
        if index == 0 or not config.carry_over:
            with torch.no_grad():
                for logits in self.logits.values():
                    logits.fill_(config.initial_logit)
            rate, decay = config.learning_rate, config.weight_decay
            self.optimizer = torch.optim.AdamW(self.logits.values(), lr=rate, weight_decay=decay, fused=True)
        self._prepare_halves()
        best, stale = _Best(len(self.sampler.prompts)), 0
        for k in range(iterations + 1):
            last = k == iterations
            # The last iterate of "last" is taken whatever its reward.
            judged = not last or config.keep == "best"
            rewards, output, masks = self._evaluate(index, k, gradient=not last, judged=judged)
            better = best.offer(rewards, output, masks, take=config.keep == "last")
            stale = 0 if bool(better.any()) else stale + 1
            reached = config.target_reward is not None and bool((best.rewards >= config.target_reward).all())
            if last or reached or (config.patience is not None and stale >= config.patience) or self._out_of_time():
                break
            self._improve()
        assert best.output is not None
        self.schedule.set(index, best.masks)
        self.sampler.advance(best.output)

    def _prepare_halves(self) -> None:
        """Compute the unconditional half of the step, where masks leave it alone."""
        self.without = None
        if self.config.halves == "conditional" and self.sampler.guided:
            self.live.masks = {}
            with torch.no_grad():
                self.without = self.sampler.predict_half(conditional=False)
            if self.reuse is not None:
                self.reuse.clear()

    def _preview(self, latents: Tensor) -> Tensor:
        """Average latents down to the size that rewards are computed at."""
        size = self.config.preview_size
        factor = 1 if size is None else min(self.sampler.height, self.sampler.width) // size
        return latents if factor < 2 else torch.nn.functional.avg_pool2d(latents, factor)

    def _evaluate(
        self, index: int, k: int, *, gradient: bool, judged: bool
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Rewards (B,), the guided output and the masks of the present logits; their gradients go to `grads`."""
        sampler = self.sampler
        self.live.masks, self.grads = {}, []  # the former iterate's make room
        with torch.set_grad_enabled(gradient):
            self.live.masks = {name: self._draw(name, logits, index, k) for name, logits in self.logits.items()}
            if self.without is None:
                output = sampler.predict()
            else:
                output = sampler.guide(self.without, sampler.predict_half(conditional=True))
            rewards = torch.full((len(sampler.prompts),), float("nan"))
            if judged:
                pictures = sampler.decode(self._preview(sampler.pred_x0(output)), self.decoder)
                rewards = self.reward(pictures, sampler.prompts).float()
            if gradient:  # to the logits alone: whatever else the reward is made of keeps its own gradients
                loss = rewards.sum() * -self.scale
                self.grads = list(torch.autograd.grad(loss, list(self.logits.values()), allow_unused=True))
        masks = {name: mask.detach().bool() for name, mask in self.live.masks.items()}
        found = rewards.detach().cpu()
        kept = torch.stack([m.flatten(1).sum(1).float() for m in masks.values()]).sum(0) / self.network.weights
        self._note(index, k, found, kept.cpu())
        return found, output.detach(), masks

    def _draw(self, name: str, logits: Tensor, index: int, k: int) -> Tensor:
        """Masks (B, *weight.shape) of a layer, with its gradient; a sample's noise follows from its own seed."""
        if not self.config.gumbel:
            return threshold(logits, self.config.tau)
        seeds = [derive_seed(seed, "search", index, k, name) for seed in self.sampler.seeds]
        noise = torch.stack([gumbel_noise(tuple(logits.shape[1:]), s, device=logits.device) for s in seeds])
        return gumbel_sigmoid(logits, noise, self.config.tau)

    def _improve(self) -> None:
        """Take a step on the logits by the gradients that `_evaluate` left."""
        grads = [g for g in self.grads if g is not None]
        if not grads:
            raise RewardError("expected the reward to depend on the masks, no gradient reached them")
        if not all(bool(torch.isfinite(g).all()) for g in grads):
            if self.scale <= 1:
                raise RewardError(
                    f"expected finite gradients of reward {self.reward.name!r}, got others; try float32, or bfloat16"
                )
            self.scale /= 16
            logger.warning("gradients overflowed; scaled down to %g", self.scale)
            return
        for g in grads:
            g /= self.scale
        if self.config.max_grad_norm is not None:
            norms = torch.stack([g.flatten(1).square().sum(1) for g in grads]).sum(0).sqrt()
            shrink = (self.config.max_grad_norm / norms.clamp(min=1e-12)).clamp(max=1)
            for g in grads:
                g *= shrink.view(-1, *[1] * (g.ndim - 1))
        for logits, grad in zip(self.logits.values(), self.grads, strict=True):
            # Batched products give transposed gradients, and the fused AdamW reads memory as it lies.
            logits.grad = None if grad is None else grad.contiguous()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _note(self, index: int, k: int, rewards: Tensor, density: Tensor) -> None:
        self.history.append(
            {
                "step": index,
                "timestep": float(self.sampler.timestep),
                "iteration": k,
                "reward": [r if math.isfinite(r) else None for r in rewards.tolist()],  # JSON has no NaN
                "density": density.tolist(),
                "seconds": time.monotonic() - self.started,
            }
        )


def _mean(values: Sequence[float | None]) -> str:
    known = [v for v in values if v is not None]
    return f"{sum(known) / len(known):.4f}" if known else "-"
