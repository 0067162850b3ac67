r"""Train a masker on the diffusion loss; the pipeline itself stays frozen.

Per step, with cached latents :math:`x_0` and captions c, :math:`t \sim U\{0..T-1\}`, :math:`\epsilon \sim N(0, I)`:

.. math:: L = E\,[w_t\,\| \epsilon_{\theta \odot m}(x_t, t, c) - \epsilon \|^2]

where m are the masks that the masker gives for this timestep and these samples. A step's batch and noise depend on
the seed and the step's number alone, so a run that was stopped goes on as if it had not been.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler
from torch import Tensor
from tqdm.auto import tqdm

from ..attachment import attach, attachment_of, detach, disabled, record
from ..data import CachedLatents
from ..diffusion import diffusion_errors, snr_weights
from ..errors import CheckpointError, DataError
from ..maskers import Masker
from ..relaxation import derive_seed

logger = logging.getLogger(__name__)

STATE, STATS = "training_state.pt", "stats.jsonl"


@dataclass(frozen=True)
class TrainConfig:
    """How a masker is trained. Names follow diffusers' example scripts.

    Args:
        max_train_steps: optimiser steps.
        train_batch_size: samples a step.
        learning_rate: rate of AdamW.
        lr_scheduler: schedule of the rate, as diffusers' `get_scheduler` names it.
        lr_warmup_steps: steps of warm-up.
        caption_dropout: share of captions replaced by the empty one, for classifier-free guidance.
        snr_gamma: gamma of min-SNR loss weights; None weighs all timesteps equally.
        gumbel: draw masks with Gumbel noise, as the paper does, or by the deterministic threshold.
        max_grad_norm: gradients are clipped to this norm.
        validation_samples: pairs of sample and noise on which base and masked losses are compared; 0 for none.
        validation_steps: steps between comparisons.
        checkpointing_steps: steps between saved states.
        seed: seed of batches, noise and masks.
    """

    max_train_steps: int = 1000
    train_batch_size: int = 64
    learning_rate: float = 1e-3
    lr_scheduler: str = "cosine"
    lr_warmup_steps: int = 50
    caption_dropout: float = 0.1
    snr_gamma: float | None = None
    gumbel: bool = True
    max_grad_norm: float = 1.0
    validation_samples: int = 1024
    validation_steps: int = 250
    checkpointing_steps: int = 250
    seed: int = 0


@dataclass(frozen=True)
class Run:
    """What a training run leaves behind.

    Args:
        masker: the trained masker, in evaluation mode.
        folder: where `masker/`, `stats.jsonl` and the state are.
        stats: the logged figures, one entry a log line.
    """

    masker: Masker
    folder: Path
    stats: list[dict[str, Any]]


def _validate(pipe: Any, scheduler: Any, batches: list[tuple[Tensor, ...]]) -> dict[str, float]:
    """Paired comparison of base and masked loss on fixed samples, noise and timesteps."""
    gains = []
    with torch.no_grad():
        for batch in batches:
            with disabled(pipe):
                base = diffusion_errors(pipe.unet, scheduler, *batch)
            gains.append(base - diffusion_errors(pipe.unet, scheduler, *batch))
    gain = torch.cat(gains)
    return {"gain": float(gain.mean()), "gain_ci95": 1.96 * float(gain.std()) / len(gain) ** 0.5}


def train(
    pipe: Any,
    masker: Masker,
    dataset: CachedLatents,
    config: TrainConfig | None = None,
    output_dir: str | os.PathLike[str] = "runs/masker",
    *,
    validation: CachedLatents | None = None,
    progress: bool = True,
) -> Run:
    """Train a masker; the same call again resumes a run that was stopped.

    Args:
        pipe: a Stable Diffusion pipeline; its weights stay as they are.
        masker: the masker to train, made for the pipeline's U-Net.
        dataset: cached latents and captions.
        config: how to train.
        output_dir: where the run is kept.
        validation: held-out latents for the paired comparison; the training set's if None.
        progress: show a progress bar.

    Returns:
        The run; the masker is attached to nothing and in evaluation mode.

    Raises:
        DataError: nothing to train on, or the loss stopped being finite.
        CheckpointError: `output_dir` holds a run with other settings.
    """
    config = config or TrainConfig()
    parameters = [p for p in masker.parameters() if p.requires_grad]
    if not len(dataset) or not parameters:
        raise DataError(
            f"expected samples and a masker with parameters, got {len(dataset)} samples and {len(parameters)} parameters"
        )
    if getattr(pipe, "text_encoder_2", None) is not None:
        raise DataError(
            "expected a Stable Diffusion 1.x or 2.x pipeline to train on, got one with two text encoders (SDXL), which "
            "the trainer does not take yet; attaching, loading and generating do"
        )
    if pipe.unet.dtype == torch.float16:
        raise DataError(
            "expected a pipeline in float32 or bfloat16 to train on, got float16, in which gradients underflow; load it "
            "with dtype=torch.bfloat16 or torch.float32"
        )
    folder = Path(output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"expected a folder that can be written, got {folder}: {error}") from error
    # Noise is added on the training schedule, whatever sampler the pipeline carries.
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    device, dtype = pipe.unet.device, pipe.unet.dtype
    masker.to(device)
    frozen = [(p, p.requires_grad) for m in (pipe.unet, pipe.text_encoder, pipe.vae) for p in m.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate)
    schedule = get_scheduler(
        config.lr_scheduler,
        optimizer,
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=config.max_train_steps,
    )
    first, stats = _resume(folder, config, masker, optimizer, schedule)

    def sample(data: CachedLatents, size: int, seed: int, dropout: float) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        latents, ids = data.batch(size, generator, dropout)
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = torch.randint(scheduler.config.num_train_timesteps, (size,), generator=generator)
        with torch.no_grad():
            embeds = pipe.text_encoder(ids.to(pipe.text_encoder.device)).last_hidden_state
        return latents.to(device, dtype), embeds.to(device, dtype), noise.to(device, dtype), timesteps.to(device)

    held_out = []
    for i in range(0, config.validation_samples, 64):
        size = min(64, config.validation_samples - i)
        held_out.append(sample(validation or dataset, size, derive_seed(config.seed, "validation", i), 0.0))

    attachment = attach(pipe, masker)
    bar = tqdm(range(first, config.max_train_steps), initial=first, total=config.max_train_steps, disable=not progress)
    bar.set_description("train")
    try:
        for p, _ in frozen:
            p.requires_grad_(False)
        for step in bar:
            masker.train(config.gumbel)
            attachment.reseed(derive_seed(config.seed, "gumbel", step) if config.gumbel else None)
            seed = derive_seed(config.seed, "batch", step)
            batch = sample(dataset, config.train_batch_size, seed, config.caption_dropout)
            errors = diffusion_errors(pipe.unet, scheduler, *batch)
            weights = snr_weights(scheduler, batch[3], config.snr_gamma) if config.snr_gamma else 1.0
            loss = (errors * weights).mean()
            if not torch.isfinite(loss):
                raise DataError(
                    f"the loss is {float(loss.detach())} at step {step + 1}; the last saved state in {folder} is intact. "
                    "Lower the learning rate or look at the data."
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
            optimizer.step()
            schedule.step()
            entry: dict[str, Any] = {"step": step + 1, "loss": float(loss.detach())}
            last = step + 1 == config.max_train_steps
            if held_out and ((step + 1) % config.validation_steps == 0 or last):
                masker.eval()
                attachment.reseed(None)  # with a seed even masks at inference would be drawn with noise
                entry |= _validate(pipe, scheduler, held_out)
                entry["density"] = density_of(pipe, scheduler, held_out[0])
                bar.write(" · ".join(f"{k} {v:.5g}" for k, v in entry.items()))
            bar.set_postfix({k: f"{entry[k]:.4g}" for k in ("loss",)})
            if (step + 1) % 25 == 0 or "gain" in entry:
                stats.append(entry)
            if (step + 1) % config.checkpointing_steps == 0 or last:
                _checkpoint(folder, config, masker, optimizer, schedule, step + 1, stats)
    finally:
        detach(pipe)
        masker.eval()
        for p, before in frozen:
            p.requires_grad_(before)
    masker.save_pretrained(folder / "masker")
    return Run(masker, folder, stats)


def density_of(pipe: Any, scheduler: Any, batch: tuple[Tensor, ...]) -> float:
    """Return the mean density of the attached masker's masks over all weights on one batch."""
    attachment = attachment_of(pipe)
    assert attachment is not None
    latents, embeds, noise, timesteps = batch
    with torch.no_grad(), record(pipe, keep="density") as trace:
        pipe.unet(scheduler.add_noise(latents, noise, timesteps), timesteps, embeds)
    weights = {layer.name: layer.weights for layer in attachment.masker.network.layers}
    kept = sum(float(trace.calls[-1].density[name].mean()) * n for name, n in weights.items())
    return kept / sum(weights.values())


def _made_of(masker: Masker) -> str:
    return json.dumps([type(masker).__name__, masker.settings, masker.network.to_json()])


def _checkpoint(
    folder: Path, config: TrainConfig, masker: Masker, optimizer: Any, schedule: Any, step: int, stats: list[Any]
) -> None:
    state = {
        "config": asdict(config),
        "made_of": _made_of(masker),
        "masker": masker.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "step": step,
    }
    # The figures first: a state without its figures could not go on, the other way round it can.
    for name, write in (
        (STATS, lambda part: part.write_text("".join(json.dumps(entry) + "\n" for entry in stats))),
        (STATE, lambda part: torch.save(state, part)),
    ):
        part = folder / (name + ".part")
        write(part)
        part.replace(folder / name)


def _resume(
    folder: Path, config: TrainConfig, masker: Masker, optimizer: Any, schedule: Any
) -> tuple[int, list[dict[str, Any]]]:
    path = folder / STATE
    if not path.exists():
        return 0, []
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        before = {"config": state["config"], "made_of": state["made_of"]}
        lines = (folder / STATS).read_text().splitlines()
    except Exception as error:  # a damaged file can raise anything from the unpickler
        raise CheckpointError(
            f"expected the state of a run in {path}, could not read it ({type(error).__name__}); delete it or use "
            "another output_dir"
        ) from error
    if before["made_of"] != _made_of(masker):
        raise CheckpointError(
            f"expected {folder} to hold a run of the same masker, it is of another; use another output_dir"
        )
    if state["config"] != asdict(config):
        changed = [k for k, v in asdict(config).items() if state["config"].get(k) != v]
        raise CheckpointError(
            f"expected {folder} to hold a run with these settings, {', '.join(changed)} differ; use another output_dir"
        )
    masker.load_state_dict(state["masker"])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    stats = [entry for entry in map(json.loads, lines) if entry["step"] <= state["step"]]
    logger.info("resumed %s at step %d", folder, state["step"])
    return state["step"], stats
