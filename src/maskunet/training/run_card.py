"""What the model card says about a run: base model, data set, and the settings and figures that matter to a reader."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch

from ..data import CachedLatents
from ..version import __version__
from .config import TrainConfig
from .mask_method import MaskMethod


def _public_name(name: str | None) -> str | None:
    """Return a name, without its parent folders if it is a path of this machine."""
    if not name:
        return None
    path = Path(name).expanduser()
    return path.resolve().name if path.exists() else name


def describe_run(
    pipe: Any,
    method: MaskMethod,
    data: CachedLatents,
    config: TrainConfig,
    stats: Sequence[dict[str, Any]],
    *,
    tau: float,
    held_out: bool,
    num_processes: int = 1,
) -> dict[str, Any]:
    """Return `base_model`, `dataset` and `recipe` for `Masker.save_pretrained` and `push_to_hub`.

    Args:
        pipe: the pipeline; the path that it was loaded from is its name.
        method: the method.
        data: the training set.
        config: settings of the run.
        stats: entries of the log.
        tau: temperature at the first step.
        held_out: whether the gain was measured on held-out samples.
        num_processes: number of processes that shared each step.
    """
    base_model, dataset = _public_name(getattr(pipe.config, "_name_or_path", None)), _public_name(data.source)
    rate = method.learning_rate if config.learning_rate is None else config.learning_rate
    recipe = {
        "Base model": base_model or "not named",
        "Method": f"{method.name} ({type(method.masker).__name__})",
        "Data set": f"{dataset or 'not named'}, {len(data):,} images",
        "Steps": f"{config.max_train_steps:,}",
        "Batch": _batch_size(config, num_processes),
        "Learning rate": f"{rate:g}, {config.lr_scheduler}, {config.lr_warmup_steps} steps of warm-up",
        "Loss weights": "even" if config.snr_gamma is None else f"min-SNR, gamma {config.snr_gamma:g}",
        "Caption dropout": f"{config.caption_dropout:g}",
        "Masks in training": "drawn with Gumbel noise" if config.gumbel else "by threshold",
        "Initial logit": f"{method.masker.settings.get('initial_logit', 'not named')}",
        "Temperature": f"{tau:g}" if config.tau_end is None else f"{tau:g} to {config.tau_end:g}",
        "Precision": f"{config.mixed_precision} (mixed), base model in {str(pipe.unet.dtype).removeprefix('torch.')}",
        "Seed": f"{config.seed}",
    }
    if (scale := method.masker.replaced_guidance) is not None:
        recipe["Objective"] = f"guidance of scale {scale:g}, so sample with guidance_scale=1"
    if config.target_density is not None:
        recipe["Target density"] = f"{config.target_density:g}, weight {config.density_weight:g}"
    if (lora := method.settings.get("lora")) is not None:
        recipe["LoRA"] = f"rank {lora['rank']}, trained with the masks; use both"
    if config.use_ema:
        recipe["Averaged weights"] = f"decay {config.ema_decay:g}"
    if stats and (skipped := stats[-1].get("skipped_steps")):
        recipe["Skipped steps"] = f"{skipped:,} of {config.max_train_steps:,}, without a finite loss or gradient"
    recipe |= _last_comparison(stats, config.validation_samples, held_out)
    versions = ("maskunet", __version__), ("torch", torch.__version__), ("diffusers", diffusers.__version__)
    recipe["Versions"] = ", ".join(f"{name} {version}" for name, version in versions)
    return {"base_model": base_model, "dataset": dataset, "recipe": recipe}


def _batch_size(config: TrainConfig, num_processes: int) -> str:
    per_process, accumulated = config.train_batch_size, config.gradient_accumulation_steps
    size = per_process * accumulated * num_processes
    if size == per_process:
        return f"{size}"
    processes = "1 process" if num_processes == 1 else f"{num_processes} processes"
    return f"{size} ({per_process} per process, {accumulated} accumulated, {processes})"


def _last_comparison(stats: Sequence[dict[str, Any]], count: int, held_out: bool) -> dict[str, str]:
    last = next((entry for entry in reversed(stats) if "gain" in entry), None)
    if last is None:
        return {}
    samples = "held-out" if held_out else "training"
    interval = f" ± {last['gain_ci95']:.1e} (95 % interval)" if "gain_ci95" in last else ""
    return {
        "Gain in loss over the base model": (
            f"{last['gain']:.3e}{interval} on {count:,} fixed pairs of {samples} samples "
            f"and noise, after {last['step']:,} steps"
        ),
        "Density": f"{last['density']:.4f} of the masked weights kept, by threshold",
    }
