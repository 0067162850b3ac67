"""Measure a folder of images, or the images of a pipeline, with one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..distributed import process_rank
from ..errors import SettingError
from ..pipelines import quiet_loading
from ..zoo.defaults import FEATURES, GUIDANCE_SCALE, NUM_INFERENCE_STEPS, RESOLUTION
from .bundled import is_bundled, model_name
from .features import Features, load_features
from .folder import folder_jobs, generate_folder, measure_folder
from .image_jobs import wait_for_images
from .published import GenerationSettings
from .report import ImageReport


@quiet_loading()
def measure_images(
    images: str | Path,
    features: Sequence[str | Features] | str | Features | None = None,
    *,
    pipe: Any = None,
    prompts: Sequence[str] | None = None,
    reference: str | Path | None = None,
    resolution: int | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    seed: int = 0,
    batch_size: int = 8,
    settings: Mapping[str, Any] | None = None,
    output_dir: str | Path | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
    on_generated: Callable[[Path, int], object] | None = None,
) -> ImageReport:
    """Measure a folder of images: FID, KID, CMMD, precision and recall, CLIP score.

    With a pipeline the images are generated first, one per prompt; those that exist already are kept, so that the same
    call resumes. Under `torchrun`, every process generates its part of the images and the first one measures them.

    Args:
        images: the folder of images.
        features: feature spaces: "clip:SOURCE", "dinov2:SOURCE", "inception", "shapes" (the bundled CLIP), or `Features`
            objects. "shapes" with the bundled model; required otherwise.
        pipe: a Stable Diffusion pipeline that generates the images, with or without masks; None to measure existing images.
        prompts: prompts of the images, for the CLIP score and to generate from; those beside the images if None.
        reference: folder of real images; without it only the CLIP score is measured.
        resolution: both sets are resized to this many pixels per side; 256, or 64 with the bundled model, if None.
        num_inference_steps: denoising steps, >= 1; 50, or 25 with the bundled model, if None.
        guidance_scale: strength of classifier-free guidance; 7.5, or 4 with the bundled model, if None.
        seed: image i starts from the noise of `seed + i`.
        batch_size: prompts per call of the pipeline, >= 1.
        settings: further values of the record beside every image; images of other values are refused.
        output_dir: receives `metrics.json` and `metrics.md`; nothing is written if None.
        device: where the feature networks run; the pipeline's device, or the CPU, if None.
        progress: show progress bars.
        on_generated: called with the folder and the number of images that this process generated.

    Returns:
        The report; empty on every process but the first.

    Raises:
        SettingError: a setting is out of range, or features or prompts are missing.
        DataError: a folder cannot be used, or an image cannot be read.
        CheckpointError: a feature network cannot be read.
    """
    GenerationSettings(None, num_inference_steps, guidance_scale, seed, batch_size)
    bundled = is_bundled(pipe)
    if pipe is not None and (isinstance(prompts, str) or not prompts):
        raise SettingError(f"expected a list of at least one prompt to generate from, got {prompts!r}")
    if features is None and not bundled:
        raise SettingError(
            "expected features (--features clip:SOURCE, dinov2:SOURCE, inception or shapes); only the bundled model has a "
            "default"
        )
    if resolution is not None and resolution < 8:
        raise SettingError(f"expected resolution to be an integer >= 8, got {resolution}")
    resolution = resolution or (RESOLUTION if bundled else 256)
    folder, (rank, world) = Path(images), process_rank()
    # Networks are read before hours of work, by the process that measures.
    spaces = _load_spaces(
        FEATURES if features is None else features,
        device or (pipe.unet.device if pipe is not None else "cpu"),
        rank == 0,
    )
    record: dict[str, Any] = dict(settings or {})
    if pipe is not None and prompts is not None:
        steps, scale = (NUM_INFERENCE_STEPS, GUIDANCE_SCALE) if bundled else (50, 7.5)  # papers report FID at 50 steps
        options: dict[str, Any] = {
            "num_inference_steps": num_inference_steps or steps,
            "guidance_scale": scale if guidance_scale is None else guidance_scale,
        }
        record = {"model": model_name(pipe), "scheduler": type(pipe.scheduler).__name__} | record
        count = generate_folder(
            pipe,
            prompts,
            folder,
            settings=record,
            seed=seed,
            batch_size=batch_size,
            rank=rank,
            world=world,
            progress=progress,
            **options,
        )
        if on_generated is not None:
            on_generated(folder, count)
        record |= {"seed": seed, "batch_size": batch_size} | options
        if rank == 0:
            wait_for_images(folder_jobs(prompts, folder, seed))
    if rank > 0:
        return ImageReport({})
    metrics = {
        name: measure_folder(folder, reference, space, resolution=resolution, prompts=prompts, progress=progress)
        for name, space in spaces.items()
    }
    report = ImageReport(
        metrics,
        {
            "images": str(images),
            "reference": None if reference is None else str(reference),
            "resolution": resolution,
            "settings": record,
        },
    )
    if output_dir is not None:
        report.save(output_dir)
    return report


def _load_spaces(
    features: Sequence[str | Features] | str | Features, device: torch.device | str, loads: bool
) -> dict[str, Features]:
    listed: Any = [features] if isinstance(features, str | Features) else features
    if not isinstance(listed, Sequence) or not listed or not all(isinstance(item, str | Features) for item in listed):
        raise SettingError(f"expected names of feature spaces or Features, got {features!r}")
    if not loads:
        return {}
    named = {item if isinstance(item, str) else type(item).__name__: item for item in listed}
    return {name: load_features(item, device) if isinstance(item, str) else item for name, item in named.items()}
