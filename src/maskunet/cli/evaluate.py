"""`maskunet evaluate`: measure the images of a folder or of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import SettingError
from ..evaluation.published import COCO_PROTOCOLS, FEATURE_NAMES
from ..settings import MAX_PIXELS
from ..zoo import defaults as bundled
from .checks import check_exists, check_features, check_output, read_prompts
from .defaults import MEASURED_STEPS, is_bundled, num_inference_steps
from .loading import check_compose, describe_maskers, local_device, open_pipeline
from .options import (
    Compose,
    Device,
    Dtype,
    Guidance,
    GuidanceRescale,
    MaskerSources,
    MeasuredSteps,
    OptionalModel,
    PromptsFile,
    Scheduler,
    Seed,
    batch_size,
    option,
    output,
)


def evaluate(
    model: OptionalModel = None,
    masker: MaskerSources = None,
    compose: Compose = None,
    images: Annotated[
        Path | None,
        option(text="Folder of images: to measure, or to generate into with --model.", default="OUTPUT/images"),
    ] = None,
    prompts_file: PromptsFile = None,
    reference: Annotated[
        Path | None,
        option(text="Folder of real images, for all metrics except the CLIP score.", default="none"),
    ] = None,
    features: Annotated[
        list[str] | None,
        option(
            text="Feature space: clip:SOURCE, cmmd (as published), dinov2:SOURCE, inception or shapes; may be repeated.",
            default=f"{bundled.FEATURES} with shapes, else required",
        ),
    ] = None,
    resolution: Annotated[
        int | None,
        option(
            text="Pixels per side that both sets are resized to.",
            default=f"256; {bundled.RESOLUTION} with shapes",
            min=8,
            max=MAX_PIXELS,
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        option(text="Prompts, their number and resolution as published: coco2014-30k or coco2017-5k.", default="none"),
    ] = None,
    annotations: Annotated[
        Path | None, option(text="COCO's caption annotations, for --protocol.", default="none")
    ] = None,
    limit: Annotated[
        int | None, option(text="Use the first N prompts, and the first N images of --images.", default="all", min=1)
    ] = None,
    output: Annotated[Path, output("Folder for metrics.json and metrics.md.", "evaluation")] = Path("evaluation"),
    steps: MeasuredSteps = None,
    guidance_scale: Guidance = None,
    guidance_rescale: GuidanceRescale = 0.0,
    scheduler: Scheduler = None,
    seed: Seed = 0,
    batch_size: Annotated[int, batch_size(8)] = 8,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Measure the images of a folder or of a model: FID, KID, CMMD, precision, recall, CLIP score."""
    if model is None and images is None:
        raise SettingError("expected --model to generate with, or --images to measure, got neither")
    for name in features or []:
        check_features(name)
    if not features and not is_bundled(model):
        raise SettingError(f"expected --features ({FEATURE_NAMES}); only the model shapes has a default")
    published = COCO_PROTOCOLS.get(protocol or "")
    if protocol is not None and published is None:
        raise SettingError(f"expected --protocol to be one of {', '.join(COCO_PROTOCOLS)}, got {protocol!r}")
    if published is not None and annotations is None:
        raise SettingError(f"expected --annotations with --protocol, COCO's {published.annotations}")
    check_exists(annotations, "--annotations", "COCO's caption annotations")
    check_exists(reference, "--reference", "a folder of images")
    if model is None:
        check_exists(images, "--images", "a folder of images")
    check_compose(masker, compose)
    check_output(output)
    folder = images or output / "images"
    check_output(folder)

    prompts = None
    if published is not None and annotations is not None:
        from ..evaluation.coco import coco_captions

        prompts = coco_captions(annotations, published.count, seed)
    elif model is not None or prompts_file is not None:
        prompts = read_prompts(None, prompts_file)

    from ..evaluation import measure_images

    torch_device = local_device(device)
    pipe = open_pipeline(model, masker, device, dtype, scheduler, compose=compose) if model else None
    report = measure_images(
        folder,
        features or None,
        pipe=pipe,
        prompts=prompts,
        reference=reference,
        limit=limit,
        resolution=resolution or (published.resolution if published else None),
        num_inference_steps=num_inference_steps(model, steps, MEASURED_STEPS),
        guidance_scale=guidance_scale,
        guidance_rescale=guidance_rescale,
        seed=seed,
        batch_size=batch_size,
        settings={"model": model, "masker": describe_maskers(masker, compose)} if model else None,
        output_dir=output,
        device=torch_device,
        on_generated=lambda path, count: typer.echo(f"{count} images made, {path}"),
    )
    if report.metrics:
        typer.echo(report.to_markdown())
