r"""Train masks, a LoRA or the whole U-Net on the diffusion loss. One flat loop; the method says what trains.

Per step, with cached latents :math:`x_0` and captions c, :math:`t \sim U\{0..T-1\}`, :math:`\epsilon \sim N(0, I)`:

.. math:: L = E\,[w_t\,\| \epsilon_{\theta \odot m}(x_t, t, c) - \epsilon \|^2]

where m are the masks that the masker gives for this timestep and these samples. All that is random about a sample
follows from the seed and the sample's place in the stream of epochs: a run that was stopped goes on as if it had not
been, and two processes of batch B do what one of batch 2 B does.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..attaching.attachment import attachment_of, disabled
from ..data import CachedLatents, PromptEmbeds
from ..diffusion import diffusion_errors, snr_weights
from ..errors import DataError
from ..maskers import Masker
from ..relaxation import derive_seed
from ..rewards.base import Reward
from ..sampling.freezing import frozen
from .accelerator import build_accelerator, start_trackers
from .base import Method
from .batches import Batch, Sampler
from .checkpoints import Checkpoints
from .config import TrainConfig
from .methods import TrainMasks
from .optimizer import averaged, build_optimizer
from .reward_objective import RewardObjective
from .run_card import describe_run
from .validation import Validation

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """What a training run leaves behind.

    Args:
        method: what was trained, taken off the pipeline.
        folder: the run's folder.
        stats: the logged figures, one entry a log line.
        card: what a masker's `save_pretrained` and `push_to_hub` are told for its model card.
    """

    method: Method
    folder: Path
    stats: list[dict[str, Any]]
    card: dict[str, Any]

    @property
    def masker(self) -> Masker:
        """The trained masker, in evaluation mode.

        Raises:
            DataError: the method trains none.
        """
        if not isinstance(self.method, TrainMasks):
            raise DataError(f"expected a run that trains a masker, method {self.method.name!r} does not")
        return self.method.masker


class _Objective(nn.Module):
    """Errors and rewards of a batch. It holds what trains and nothing else: DDP averages just those gradients.

    Errors that nothing weighs are not computed, unless a target density needs the call's masks.
    """

    def __init__(
        self, unet: nn.Module, trained: nn.Module, scheduler: Any, method: Method, rewards: RewardObjective | None
    ) -> None:
        super().__init__()
        self.trained = trained
        self._call = (unet, scheduler, method, rewards)  # in a tuple, so that a frozen U-Net is not registered

    def forward(self, batch: Batch) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        unet, scheduler, method, rewards = self._call
        errors: Tensor | None = None
        kept: Tensor | None = None
        if rewards is None or rewards.config.diffusion_weight or rewards.config.target_density is not None:
            rest = (batch.latents, batch.embeds, batch.noise, batch.timesteps)
            errors = diffusion_errors(unet, scheduler, *rest, **batch.conditions)
            kept = method.regulariser()  # of this call: the samples of a reward are further calls
        if rewards is None:
            return errors, kept, None
        count = rewards.config.reward_batch_size
        return errors, kept, rewards(batch.captions[:count], batch.seeds[:count])


def _tau(config: TrainConfig, start: float, step: int) -> float:
    """Temperature at a step, from `start` to `tau_end` in equal ratios."""
    if config.tau_end is None:
        return start
    return start * (config.tau_end / start) ** (step / max(1, config.max_train_steps - 1))


def train(
    pipe: Any,
    method: Method | Masker,
    dataset: CachedLatents,
    config: TrainConfig | None = None,
    output_dir: str | os.PathLike[str] = "runs/masker",
    *,
    validation: CachedLatents | None = None,
    reward: Reward | None = None,
    progress: bool = True,
) -> Run:
    """Train; the same call again resumes a run that was stopped.

    Args:
        pipe: a Stable Diffusion pipeline (1.x, 2.x, XL); its weights stay as they are unless the method is "full".
        method: what trains; a masker stands for `TrainMasks(masker)`.
        dataset: cached latents and captions.
        config: how to train.
        output_dir: the run's folder; see `training.checkpoints`.
        validation: held-out latents for the paired comparison; the training set's if None.
        reward: what the objective "reward" climbs.
        progress: show a progress bar.

    Returns:
        The run; the method is taken off the pipeline.

    Raises:
        DataError: nothing to train on, a precision that does not work, or the loss stopped being finite.
        CheckpointError: `output_dir` holds a run with other settings, or cannot be written.
        TargetError: the masker was made for another U-Net.
    """
    config = config or TrainConfig()
    if isinstance(method, Masker):
        method = TrainMasks(method, gumbel=config.gumbel, density=config.target_density is not None)
    if (config.objective == "reward") != (reward is not None):
        raise DataError(f"expected a reward with objective 'reward' and with no other, got {config.objective!r}")
    if not len(dataset):
        raise DataError("expected samples to train on, got an empty data set")
    folder = Path(output_dir)
    accelerator = build_accelerator(pipe, config, folder)
    main, world, rank = accelerator.is_main_process, accelerator.num_processes, accelerator.process_index
    shape: dict[str, Any] = {"num_samples": len(dataset), "num_processes": world}
    if reward is not None:
        shape |= {"reward": reward.name, "sampler": type(pipe.scheduler).__name__}
    settings = {"config": asdict(config), "method": {"name": method.name} | method.settings, "data": shape}
    checkpoints = Checkpoints(folder, settings, writes=main)
    if main:
        checkpoints.start() if not checkpoints.all() else None
    accelerator.wait_for_everyone()
    # Noise is added on the training schedule, whatever sampler the pipeline carries.
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    steps = scheduler.config.num_train_timesteps
    rng = torch.get_rng_state()
    with frozen(pipe, *(reward.models if reward else ())), contextlib.ExitStack() as after:
        captions = [*dataset.captions, *(validation.captions if validation else ()), ""]
        embeds = PromptEmbeds(pipe, captions if config.cache_prompt_embeds else ())
        sampler = Sampler(pipe, dataset, embeds, config, steps)
        held_out_sampler = Sampler(pipe, validation or dataset, embeds, config, steps)
        held_out = Validation(pipe, held_out_sampler, scheduler, config, folder, accelerator)
        rewards = None if reward is None else RewardObjective(pipe, reward, config, method)
        rewarded = list((validation or dataset).captions[: config.validation_rewards]) if rewards else []
        if rewards and rewarded:
            with disabled(pipe):
                rewards.compare(rewarded)
        if config.gradient_checkpointing:
            pipe.unet.enable_gradient_checkpointing()
            after.callback(pipe.unet.disable_gradient_checkpointing)
        after.callback(torch.set_rng_state, rng)
        after.callback(method.remove, pipe)
        trained = method.install(pipe, derive_seed(config.seed, "start"))
        named = {n: p for n, p in trained.named_parameters() if p.requires_grad}
        if not named:
            raise DataError(
                f"expected something that trains, method {method.name!r} has 0 parameters that require gradients"
            )
        parameters = list(named.values())
        rate = method.learning_rate if config.learning_rate is None else config.learning_rate
        optimizer = build_optimizer(parameters, rate, config)
        schedule = get_scheduler(
            config.lr_scheduler,
            optimizer,
            num_warmup_steps=config.lr_warmup_steps,
            num_training_steps=config.max_train_steps,
        )
        ema = EMAModel(parameters, decay=config.ema_decay, use_ema_warmup=False) if config.use_ema else None
        state = checkpoints.read(config.resume_from_checkpoint)
        first = 0
        if state is not None:
            with torch.no_grad():
                for name, p in named.items():
                    p.copy_(state["trained"][name])
            optimizer.load_state_dict(state["optimizer"])
            schedule.load_state_dict(state["schedule"])
            if ema is not None:
                ema.load_state_dict(state["ema"])
            if accelerator.scaler is not None:
                accelerator.scaler.load_state_dict(state["scaler"])
            first = state["step"]
        if main:
            checkpoints.stats(until=first)
        objective = accelerator.prepare_model(_Objective(pipe.unet, trained, scheduler, method, rewards))
        optimizer_ = accelerator.prepare_optimizer(optimizer)
        start_trackers(accelerator, config, first)

        def save(step: int) -> None:
            accelerator.wait_for_everyone()
            if main:
                state = {
                    "trained": {n: p.detach() for n, p in named.items()},
                    "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                    "step": step,
                }
                state |= {"ema": ema.state_dict()} if ema is not None else {}
                state |= {"scaler": accelerator.scaler.state_dict()} if accelerator.scaler is not None else {}
                checkpoints.write(state, config.checkpoints_total_limit)

        start_tau = attached.masker.tau if (attached := attachment_of(pipe)) else 1.0
        micro, accumulation = config.train_batch_size, config.gradient_accumulation_steps
        bar = tqdm(
            range(first, config.max_train_steps),
            initial=first,
            total=config.max_train_steps,
            desc="train",
            disable=not (progress and main),
        )
        for step in bar:
            # Dropout draws from the global generator.
            torch.manual_seed(derive_seed(config.seed, "step", step, rank))
            method.anneal(_tau(config, start_tau, step))
            total, entry = torch.zeros((), device=accelerator.device), {"step": step + 1}
            for part in range(accumulation):
                place = ((step * accumulation + part) * world + rank) * micro
                batch = sampler(range(place, place + micro), seed=config.seed, dropout=config.caption_dropout)
                method.begin(batch.seeds)
                with accelerator.accumulate(objective):
                    errors, kept, climbed = objective(batch)
                    loss = torch.zeros((), device=accelerator.device)
                    if errors is not None:
                        weights = (
                            snr_weights(scheduler, batch.timesteps, config.snr_gamma) if config.snr_gamma else 1.0
                        )
                        loss = (errors * weights).mean()
                    if climbed is not None:
                        entry["reward"] = float(climbed.detach().mean())
                        loss = config.diffusion_weight * loss - config.reward_weight * climbed.mean()
                    total += loss.detach() / accumulation
                    if config.target_density is not None and kept is not None:
                        entry["expected_density"] = float(kept.detach())
                        loss = loss + config.density_weight * (kept - config.target_density).square()
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(parameters, config.max_grad_norm)
                    optimizer_.step()
                    optimizer_.zero_grad(set_to_none=True)
            schedule.step()
            if ema is not None:
                ema.step(parameters)
            entry["loss"] = float(accelerator.reduce(total, "mean"))
            if not math.isfinite(entry["loss"]):
                last = checkpoints.all()
                raise DataError(
                    f"the loss is {entry['loss']} at step {step + 1}; "
                    + (f"the last good checkpoint {last[-1]} is intact. " if last else "no checkpoint was due yet. ")
                    + "Lower the learning rate or look at the data."
                )
            entry["lr"] = schedule.get_last_lr()[0]
            last_step = step + 1 == config.max_train_steps
            if (step + 1) % config.validation_steps == 0 or last_step:
                method.evaluate()
                with averaged(ema, parameters):
                    entry |= held_out.compare()
                    if rewards and rewarded:
                        entry |= rewards.compare(rewarded)
                    if main:
                        held_out.draw(step + 1)
                if main and "gain" in entry:
                    bar.write(" · ".join(f"{k} {v:.5g}" for k, v in entry.items()))
            shown = {k: f"{entry[k]:.4g}" for k in ("loss", "reward", "density", "expected_density") if k in entry}
            bar.set_postfix(shown)
            if main and ((step + 1) % config.logging_steps == 0 or "gain" in entry or last_step):
                checkpoints.log(entry)
                accelerator.log({k: v for k, v in entry.items() if k != "step"}, step=step + 1)
            if (step + 1) % config.checkpointing_steps == 0 or last_step:
                save(step + 1)
        accelerator.wait_for_everyone()
        if ema is not None:
            ema.copy_to(parameters)
        method.evaluate()
        stats, card = checkpoints.stats(), dict[str, Any]()
        if isinstance(method, TrainMasks):
            shared = {"tau": start_tau, "held_out": validation is not None, "num_processes": world}
            card = describe_run(pipe, method, dataset, config, stats, **shared)
        if main:
            method.save(pipe, folder, card)
        accelerator.end_training()
    return Run(method, folder, stats, card)
