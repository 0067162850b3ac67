"""Measure a folder of images, or the images of a pipeline, with one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..distributed import process_rank
from ..errors import SettingError
from ..pipelines import quiet_loading
from ..sampling.guidance_scale import default_guidance_scale
from ..sampling.inputs import checked_seeds
from ..sampling.supported_pipelines import check_steps
from ..zoo.defaults import FEATURES, NUM_INFERENCE_STEPS, RESOLUTION
from .bundled import is_bundled, model_name
from .features import Features, features_class, load_features
from .folder import check_captions, check_reference, folder_jobs, generate_folder, measure_files, prompts_beside
from .image_jobs import wait_for_images
from .image_reader import image_files, warn_black
from .published import FEATURE_NAMES, GenerationSettings
from .report import ImageReport


@quiet_loading()
def measure_images(
    images: str | Path,
    features: Sequence[str | Features] | str | Features | None = None,
    *,
    pipe: Any = None,
    prompts: Sequence[str] | None = None,
    reference: str | Path | None = None,
    limit: int | None = None,
    resolution: int | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    guidance_rescale: float = 0.0,
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
    call resumes. These images are measured and no others, whatever else the folder holds. Without a pipeline, the images
    directly in the folder are measured, or those of its subfolders if it has none itself.

    Under `torchrun`, every process generates its part of the images and the first one measures them.

    Args:
        images: the folder of images.
        features: feature spaces: "clip:SOURCE", "cmmd" (as published), "dinov2:SOURCE", "inception", "shapes" (the bundled
            CLIP), or `Features` objects. "shapes" with the bundled model; required otherwise.
        pipe: a Stable Diffusion pipeline that generates the images, with or without masks; None to measure existing images.
        prompts: prompts of the images, for the CLIP score and to generate from; those beside the images if None.
        reference: folder of real images; without it only the CLIP score is measured.
        limit: use the first N prompts and images; all if None.
        resolution: both sets are resized to this many pixels per side; 256, or 64 with the bundled model, if None.
        num_inference_steps: denoising steps, >= 1; 50, or 25 with the bundled model, if None.
        guidance_scale: strength of classifier-free guidance; 7.5, or 4 with the bundled model, if None.
        guidance_rescale: share of the guided output that is rescaled to the conditional one's deviation, in [0, 1].
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
        DataError: a folder cannot be used, an image or a record cannot be read, there are other prompts than images, or
            features are not finite.
        CheckpointError: a feature network cannot be read.
    """
    GenerationSettings(
        None, num_inference_steps, guidance_scale, seed, batch_size, limit=limit, guidance_rescale=guidance_rescale
    )
    bundled = is_bundled(pipe)
    if isinstance(prompts, str) or (pipe is not None and not prompts):
        raise SettingError(f"expected a list of at least one prompt, got {prompts!r}")
    if features is None and not bundled:
        raise SettingError(f"expected features (--features {FEATURE_NAMES}); only the bundled model has a default")
    if resolution is not None and resolution < 8:
        raise SettingError(f"expected resolution to be an integer >= 8, got {resolution}")
    resolution = resolution or (RESOLUTION if bundled else 256)
    folder, (rank, world) = Path(images), process_rank()
    spaces = _named(FEATURES if features is None else features)
    captions = None if prompts is None else list(prompts)[:limit]
    real_files = None if reference is None else image_files(Path(reference))
    if pipe is not None and captions is not None:
        files = [job.file for job in folder_jobs(captions, folder, seed)]
    else:
        files = image_files(folder)[:limit]
        if captions is None and any(_has_texts(space) for space in spaces.values()):
            captions = prompts_beside(files)
    check_captions(captions, files)
    check_reference(files, real_files)
    # Networks are read before hours of work, by the process that measures.
    torch_device = device or (pipe.unet.device if pipe is not None else "cpu")
    loaded = {
        name: load_features(space, torch_device) if isinstance(space, str) else space
        for name, space in spaces.items()
        if rank == 0
    }
    record: dict[str, Any] = dict(settings or {})
    if pipe is not None and captions is not None:
        checked_seeds(seed, len(captions))
        steps = NUM_INFERENCE_STEPS if bundled else 50  # papers report FID at 50 steps
        options: dict[str, Any] = {
            "num_inference_steps": num_inference_steps or steps,
            "guidance_scale": default_guidance_scale(pipe) if guidance_scale is None else guidance_scale,
        }
        check_steps(pipe.scheduler, options["num_inference_steps"])
        options |= {"guidance_rescale": guidance_rescale} if guidance_rescale else {}
        record = {"model": model_name(pipe), "scheduler": type(pipe.scheduler).__name__} | record
        count = generate_folder(
            pipe,
            captions,
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
            wait_for_images(folder_jobs(captions, folder, seed))
    if rank > 0:
        return ImageReport({})
    black = warn_black(folder, files)
    metrics = {
        name: measure_files(files, real_files, space, resolution=resolution, captions=captions, progress=progress)
        for name, space in loaded.items()
    }
    report = ImageReport(
        metrics,
        {
            "images": str(images),
            "reference": None if reference is None else str(reference),
            "resolution": resolution,
            "black_images": black,
            "settings": record,
        },
    )
    if output_dir is not None:
        report.save(output_dir)
    return report


def _named(features: Sequence[str | Features] | str | Features) -> dict[str, str | Features]:
    """Return feature spaces by name, checked and not loaded."""
    listed: Any = [features] if isinstance(features, str | Features) else features
    if not isinstance(listed, Sequence) or not listed or not all(isinstance(item, str | Features) for item in listed):
        raise SettingError(f"expected names of feature spaces or Features, got {features!r}")
    for item in listed:
        if isinstance(item, str):
            features_class(item)
    return {item if isinstance(item, str) else type(item).__name__: item for item in listed}


def _has_texts(space: str | Features) -> bool:
    """Return whether a CLIP score is measured in a space."""
    kind = features_class(space)[0] if isinstance(space, str) else type(space)
    return kind.texts is not Features.texts and (kind.metrics is None or "clip_score" in kind.metrics)
