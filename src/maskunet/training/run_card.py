"""What a run tells the model card: base model, data set and the settings and figures that matter to a reader."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch

from ..data import CachedLatents
from ..version import __version__
from .config import TrainConfig
from .methods import TrainMasks


def _public(name: str | None) -> str | None:
    """Return a name without the folders above it, where it is a folder or file of this machine."""
    if not name:
        return None
    path = Path(name).expanduser()
    return path.resolve().name if path.exists() else name


def describe_run(
    pipe: Any,
    method: TrainMasks,
    data: CachedLatents,
    config: TrainConfig,
    stats: Sequence[dict[str, Any]],
    *,
    tau: float,
    held_out: bool,
    num_processes: int = 1,
) -> dict[str, Any]:
    """Return `base_model`, `dataset` and `recipe` as `Masker.save_pretrained` and `push_to_hub` take them.

    Args:
        pipe: the pipeline that was trained on; where it was loaded from is its name.
        method: what was trained.
        data: what it was trained on.
        config: how.
        stats: the logged figures.
        tau: temperature at the first step.
        held_out: whether the gain was measured on samples that were held out.
        num_processes: processes that shared each step.
    """
    base, source = _public(getattr(pipe.config, "_name_or_path", None)), _public(data.source)
    rate = method.learning_rate if config.learning_rate is None else config.learning_rate
    settings = method.masker.settings
    each, parts = config.train_batch_size, config.gradient_accumulation_steps
    size = each * parts * num_processes
    shares = f"{each} a process, {parts} accumulated, processes {num_processes}"
    masks = "drawn with Gumbel noise" if config.gumbel else "by threshold"
    recipe = {
        "Base model": base or "not named",
        "Method": f"{method.name} ({type(method.masker).__name__})",
        "Data set": f"{source or 'not named'}, {len(data):,} pictures",
        "Steps": f"{config.max_train_steps:,}",
        "Batch": f"{size} ({shares})" if size != each else f"{size}",
        "Learning rate": f"{rate:g}, {config.lr_scheduler}, {config.lr_warmup_steps} steps of warm-up",
        "Loss weights": "even" if config.snr_gamma is None else f"min-SNR, gamma {config.snr_gamma:g}",
        "Caption dropout": f"{config.caption_dropout:g}",
        "Masks in training": masks,
        "Initial logit": f"{settings.get('initial_logit', 'not named')}",
        "Temperature": f"{tau:g}" if config.tau_end is None else f"{tau:g} to {config.tau_end:g}",
        "Precision": f"{config.mixed_precision} (mixed), base model in {str(pipe.unet.dtype).removeprefix('torch.')}",
        "Seed": f"{config.seed}",
    }
    if config.target_density is not None:
        recipe["Target density"] = f"{config.target_density:g}, weight {config.density_weight:g}"
    if (lora := method.settings.get("lora")) is not None:
        recipe["LoRA"] = f"rank {lora['rank']}, trained with the masks; use both"
    if config.use_ema:
        recipe["Averaged weights"] = f"decay {config.ema_decay:g}"
    if (last := next((entry for entry in reversed(stats) if "gain" in entry), None)) is not None:
        samples = "held-out" if held_out else "training"
        recipe["Gain in loss over the base model"] = (
            f"{last['gain']:.3e} ± {last['gain_ci95']:.1e} (95 % interval) on {config.validation_samples:,} fixed pairs of "
            f"{samples} samples and noise, after {last['step']:,} steps"
        )
        recipe["Density"] = f"{last['density']:.4f} of the masked weights kept, by threshold"
    versions = ("maskunet", __version__), ("torch", torch.__version__), ("diffusers", diffusers.__version__)
    recipe["Versions"] = ", ".join(f"{name} {version}" for name, version in versions)
    return {"base_model": base, "dataset": source, "recipe": recipe}
