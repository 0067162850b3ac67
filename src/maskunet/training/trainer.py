r"""Train masks, a LoRA or the whole U-Net, in one flat loop; the method decides which parameters are trained.

Per step, with cached latents :math:`x_0` and captions c, :math:`t \sim U\{0..T-1\}`, :math:`\epsilon \sim N(0, I)`:

.. math:: L = E\,[w_t\,\| \epsilon_{\theta \odot m}(x_t, t, c) - \epsilon \|^2]

where m are the masks of this timestep and these samples. Everything random about a sample follows from the seed and the
sample's position in the stream of epochs. A resumed run therefore equals an uninterrupted one, and two processes of batch B
take the same steps as one of batch 2 B.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ..attaching import attachment_of, disabled
from ..checkpoint import require_finite
from ..data import CachedLatents, PromptEmbeds
from ..generators import kept_generators
from ..maskers import Masker
from ..relaxation import derive_seed
from ..rewards import Reward
from ..sampling.freezing import checkpointed, frozen
from .accelerator import (
    build_accelerator,
    end_run,
    finished_trackers,
    resolve_precision,
    start_trackers,
    tf32_products,
)
from .arguments import (
    RewardLike,
    Source,
    as_datasets,
    as_method,
    as_training_reward,
    check_arguments,
    check_scheduler,
    resolve_guidance,
)
from .base import Method
from .batches import BatchSampler
from .checkpoints import FINGERPRINTS, Checkpoints
from .config import TrainConfig
from .fingerprints import run_fingerprints
from .mask_method import MaskMethod
from .objective import Objective, weigh_losses
from .optimizer import averaged_weights
from .prediction_errors import build_errors
from .restored import kept_accelerate_state, restored_pipeline
from .reward_objective import RewardObjective
from .run import Run
from .run_card import describe_run
from .state import build_state
from .step_guard import StepGuard, finite_figures
from .validation import Validation


@torch.inference_mode(False)
@kept_accelerate_state()
def train(
    pipe: Any,
    method: Method | Masker | Source,
    dataset: CachedLatents | Source,
    config: TrainConfig | None = None,
    output_dir: str | os.PathLike[str] = "runs/masker",
    *,
    validation: CachedLatents | None = None,
    reward: RewardLike | None = None,
    progress: bool = True,
) -> Run:
    """Train; the same call again resumes a run that was stopped.

    Args:
        pipe: a Stable Diffusion pipeline (1.x, 2.x, XL); its weights stay as they are unless the method is "full". It is
            restored afterwards, also after an error: masker, adapters, modes, flags, gradient checkpointing and scheduler.
            With several processes it stays on the device of its process.
        method: a `Method`; a masker to train; or the source of one: a folder, a hub id or "shapes-masker".
        dataset: cached latents and captions; or the source of a data set: a folder, a hub id, "shapes" or "shapes-art".
            `training.open_dataset` opens one with more options.
        config: settings of the run; the defaults fit SD 1.5 at 512 pixels on a 16 GB card.
        output_dir: the run's folder; `training.checkpoints` lists its files.
        validation: held-out latents for the comparison with the base model; a part of `dataset` if None, or all of it if it
            is cached already.
        reward: what objective "reward" raises: a `Reward`, a function (images, prompts) -> (B,), or a description such as
            "hpsv2:5".
        progress: show progress bars.

    Returns:
        The run; the method is removed from the pipeline.

    Raises:
        SettingError: an argument of another type, or settings that do not fit each other, the device or the method.
        DataError: a data set, precision or scheduler that cannot be trained on, or the tenth step in a row without a finite
            loss and finite gradients; such a step is skipped, and counted in the log as `skipped_steps`.
        CheckpointError: `output_dir` holds a run with other settings, or cannot be written; no masker at its source.
        TargetError: the masker was made for another U-Net.
        RewardError: an unknown reward, or one without a gradient.
    """
    config = TrainConfig() if config is None else config
    check_arguments(pipe, method, dataset, validation, reward, config)
    scheduler = check_scheduler(pipe, config)  # refused before images are encoded
    config = resolve_precision(pipe, resolve_guidance(pipe, config))
    folder = Path(output_dir)
    accelerator = build_accelerator(pipe, config, folder)
    is_main, world_size, rank = accelerator.is_main_process, accelerator.num_processes, accelerator.process_index
    method = as_method(method, pipe, config)
    loaded_reward = as_training_reward(reward, pipe)
    dataset, validation = as_datasets(dataset, validation, pipe, config, progress and is_main)

    # A method that trains a masker replaces the attached one; other methods train beside it, so their base has it too.
    kept = None if isinstance(method, MaskMethod) else attachment_of(pipe)
    settings = _run_settings(pipe, method, dataset, config, loaded_reward, world_size)
    settings[FINGERPRINTS] = run_fingerprints(pipe, dataset, loaded_reward, kept)
    checkpoints = Checkpoints(folder, settings)
    saved = checkpoints.load(config.resume_from_checkpoint)
    if is_main:
        checkpoints.create_folder()
    accelerator.wait_for_everyone()
    with (
        tf32_products(accelerator.device, config.allow_tf32),
        frozen(pipe, *_frozen_beside(pipe, method, loaded_reward)),
        restored_pipeline(pipe),
        kept_generators(accelerator.device) as seed_generators,
        contextlib.ExitStack() as cleanup,
    ):
        captions = [*dataset.captions, *(validation.captions if validation else ()), "", config.negative_prompt]
        embeds = PromptEmbeds(pipe, captions if config.cache_prompt_embeds else ())
        # The processes' batches have one size, so that two processes equal one with a batch twice as large.
        group_size = config.train_batch_size * world_size
        sampler = BatchSampler(pipe, dataset, embeds, config, scheduler.num_timesteps, group_size)
        held_out_sampler = BatchSampler(pipe, validation or dataset, embeds, config, scheduler.num_timesteps)

        # The base model's losses and rewards, before the method is installed.
        prediction_errors = build_errors(pipe, scheduler, embeds, method, config)
        with disabled(pipe) if kept is None else contextlib.nullcontext():
            comparison = Validation(pipe, held_out_sampler, prediction_errors, config, folder, accelerator)
        rewards = None if loaded_reward is None else RewardObjective(pipe, loaded_reward, config, method)
        reward_captions = list((validation or dataset).captions[: config.validation_rewards]) if rewards else []
        if rewards and reward_captions:
            with disabled(pipe) if kept is None else contextlib.nullcontext():
                rewards.compare(reward_captions)

        if config.gradient_checkpointing:
            cleanup.enter_context(checkpointed(pipe.unet))
        cleanup.callback(method.remove, pipe)
        trained = method.install(pipe, derive_seed(config.seed, "start"))
        state = build_state(trained, method, config, accelerator.scaler)
        state.optimizer.zero_grad(set_to_none=True)
        cleanup.callback(state.optimizer.zero_grad, set_to_none=True)  # an error may leave gradients
        first_step = state.load(saved)
        if is_main:
            checkpoints.drop_stats_after(first_step)
        require_finite(state.named, f"the checkpoint of step {first_step}", "delete it to resume from the one before")
        objective = accelerator.prepare_model(Objective(trained, prediction_errors, method, rewards))
        optimizer = accelerator.prepare_optimizer(state.optimizer)
        guard = StepGuard(accelerator, optimizer, state.named, checkpoints)
        guard.load(saved)
        start_trackers(accelerator, config, first_step)
        cleanup.enter_context(finished_trackers(accelerator))
        attachment = attachment_of(pipe)
        if attachment is not None and kept is None and config.objective == "guidance":
            attachment.masker.replaced_guidance = config.guidance_scale
        start_tau = 1.0 if attachment is None else attachment.masker.tau
        batch_size, accumulation = config.train_batch_size, config.gradient_accumulation_steps
        # Guidance in the masks leaves no call for the empty caption.
        dropout = 0.0 if config.objective == "guidance" else config.caption_dropout

        bar = tqdm(
            range(first_step, config.max_train_steps),
            initial=first_step,
            total=config.max_train_steps,
            desc="train",
            disable=not (progress and is_main),
        )
        for step in bar:
            # Dropout layers draw from the global generators.
            seed_generators(derive_seed(config.seed, "step", step, rank))
            method.set_tau(_tau_at(step, start_tau, config))
            entry: dict[str, Any] = {"step": step + 1}
            mean_loss = torch.zeros((), device=accelerator.device)
            for part in range(accumulation):
                position = ((step * accumulation + part) * world_size + rank) * batch_size
                positions = range(position, position + batch_size)
                batch = sampler(positions, seed=config.seed, dropout=dropout)
                method.start_batch(batch.seeds)
                with accelerator.accumulate(objective):
                    errors, density, reward_values = objective(batch)
                    losses = weigh_losses(errors, density, reward_values, batch.timesteps, scheduler, config)
                    mean_loss += losses.loss.detach() / accumulation
                    entry |= losses.figures
                    accelerator.backward(losses.total())
                    if accelerator.sync_gradients:
                        norm = accelerator.clip_grad_norm_(state.parameters, config.max_grad_norm)
                        entry["loss"] = float(accelerator.reduce(mean_loss, "mean"))
                        guard.take_step(step + 1, entry["loss"], float(norm))
                        optimizer.zero_grad(set_to_none=True)
            state.schedule.step()
            if state.ema is not None:
                state.ema.step(state.parameters)
            if guard.skipped:
                entry["skipped_steps"] = guard.skipped
            entry["lr"] = state.schedule.get_last_lr()[0]

            is_last = step + 1 == config.max_train_steps
            if (step + 1) % config.validation_steps == 0 or is_last:
                method.set_eval()
                with averaged_weights(state.ema, state.parameters):
                    entry |= comparison.compare()
                    if rewards and reward_captions:
                        entry |= rewards.compare(reward_captions)
                    if is_main:
                        comparison.save_images(step + 1)
                if is_main and "gain" in entry:
                    bar.write(" · ".join(f"{name} {value:.5g}" for name, value in entry.items()))
            bar.set_postfix(_bar_figures(entry))
            if is_main and ((step + 1) % config.logging_steps == 0 or "gain" in entry or is_last):
                entry = finite_figures(entry)
                checkpoints.append_stats(entry)
                accelerator.log({k: v for k, v in entry.items() if k != "step"}, step=step + 1)
            if (step + 1) % config.checkpointing_steps == 0 or is_last:
                guard.require_finite_parameters(step + 1)
                accelerator.wait_for_everyone()
                if is_main:
                    checkpoints.save(state.to_save(step + 1) | guard.to_save(), config.checkpoints_total_limit)

        accelerator.wait_for_everyone()
        if state.ema is not None:
            state.ema.copy_to(state.parameters)
        method.set_eval()
        stats, card = checkpoints.read_stats(), dict[str, Any]()
        if isinstance(method, MaskMethod):
            options = {"tau": start_tau, "held_out": validation is not None, "num_processes": world_size}
            card = describe_run(pipe, method, dataset, config, stats, **options)
        if is_main:
            method.save(pipe, folder, card)
        end_run(accelerator)
    return Run(method, folder, stats, card)


def _frozen_beside(pipe: Any, method: Method, reward: Reward | None) -> list[Any]:
    """Return modules that a run must not train beside the pipeline's: the reward's, and a masker attached before."""
    attachment = attachment_of(pipe)
    former = None if attachment is None else attachment.masker
    is_trained = isinstance(method, MaskMethod) and method.masker is former
    return [*(reward.models if reward else ()), *(() if former is None or is_trained else (former,))]


def _run_settings(
    pipe: Any, method: Method, data: CachedLatents, config: TrainConfig, reward: Reward | None, world_size: int
) -> dict[str, Any]:
    """Return the settings that a run must share with the one that it resumes, by group."""
    data_settings: dict[str, Any] = {"num_samples": len(data), "num_processes": world_size}
    if data.sizes is not None:
        data_settings["num_buckets"] = len(data.buckets)
    if reward is not None:
        data_settings |= {"reward": reward.name, "sampler": type(pipe.scheduler).__name__}
    return {"config": asdict(config), "method": {"name": method.name} | method.settings, "data": data_settings}


def _tau_at(step: int, start: float, config: TrainConfig) -> float:
    """Return the temperature of a step, geometric from `start` to `tau_end`."""
    if config.tau_end is None:
        return start
    return start * (config.tau_end / start) ** (step / max(1, config.max_train_steps - 1))


def _bar_figures(entry: dict[str, Any]) -> dict[str, str]:
    names = ("loss", "reward", "density", "expected_density")
    return {name: f"{entry[name]:.4g}" for name in names if name in entry}
