"""Run a benchmark on a pipeline with one call.

report = evaluate(pipe, "geneval", masker="shapes-masker", output_dir="evaluation")
print(report.to_markdown())         # one row per task: base, masker, and their difference with 95 % intervals
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..attaching import Attachment, attach, attachment_of, reattach
from ..distributed import process_rank
from ..errors import SettingError
from ..maskers import Masker
from ..pipelines import quiet_loading
from ..rewards.base import Reward
from ..rewards.registry import as_reward, parse_reward
from ..sampling.generation import Side
from ..sampling.guidance_scale import replaces_guidance
from ..searching import SearchConfig
from ..zoo.defaults import GUIDANCE_SCALE, NUM_INFERENCE_STEPS
from .benchmark import Benchmark, gather_scores, run_benchmark
from .blip_vqa import Vqa
from .bundled import is_bundled
from .checks import check_benchmark, check_search, check_sides
from .detectors import Detector
from .image_reader import count_black
from .loading import Prompts, load_benchmark
from .published import BENCHMARKS, BenchmarkDefaults, GenerationSettings
from .report import BenchmarkReport
from .sides import BenchmarkSides, build_sides

logger = logging.getLogger(__name__)

Source = str | os.PathLike[str]


@quiet_loading()
def evaluate(
    pipe: Any,
    benchmark: str | Benchmark = "geneval",
    *,
    prompts: Prompts | None = None,
    masker: Masker | Source | None = None,
    sides: str | Sequence[str] | Mapping[str, Side] | None = None,
    reward: Reward | Callable[[Tensor, Sequence[str]], Tensor] | str | Sequence[str] | None = None,
    search_config: SearchConfig | str | None = None,
    images_per_prompt: int | None = None,
    output_dir: Source | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    guidance_rescale: float = 0.0,
    seed: int = 0,
    batch_size: int = 8,
    search_batch_size: int = 1,
    limit: int | None = None,
    detector: Detector | str | None = None,
    clip: str | None = None,
    vqa: Vqa | str | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: bool = True,
    on_generated: Callable[[Path, int], object] | None = None,
) -> BenchmarkReport:
    """Generate a benchmark's images on every side, score them, and compare the sides.

    All sides start from the same noise. Under `torchrun`, every process generates its part of the images and the first one
    scores them. The same call again resumes.

    Args:
        pipe: a Stable Diffusion pipeline; it is left as it was.
        benchmark: "geneval", "t2i-compbench", or a `Benchmark`.
        prompts: the benchmark's prompts: its file (or folder, for T2I-CompBench), GenEval's metadata entries, or
            T2I-CompBench's prompts by category. The bundled model has its own for GenEval.
        masker: a masker, its folder, a hub id or "shapes-masker"; the attached one if None.
        sides: names among base, masker, search, syngen, search+masker and syngen+masker, or sides by name. Base and masker
            if None, or base alone without a masker.
        reward: the reward that searches optimise: a reward, a function, or a description such as "hpsv2:5"; the bundled
            model has its own.
        output_dir: receives one folder per side, `summary.json` and `summary.md`; nothing is kept if None.
        search_config: settings of searches, or a preset's name; steps and guidance are those of this call.
        images_per_prompt: images per prompt, >= 1; the benchmark's number if None.
        num_inference_steps: denoising steps of every side, >= 1; the benchmark's number, or 25 with the bundled model, if
            None.
        guidance_scale: strength of classifier-free guidance; the benchmark's, or 4 with the bundled model, if None, and 1
            under masks that replace guidance.
        guidance_rescale: share of the guided output that is rescaled to the conditional one's deviation, in [0, 1].
        seed: seed of the noise.
        batch_size: prompts per call, >= 1.
        search_batch_size: prompts per search, >= 1.
        limit: use the first N prompts.
        detector: GenEval's detector, or its source: "judge" (of the shapes world), a Mask2Former's folder or hub id.
        clip: source of the CLIP that names colours in GenEval.
        vqa: T2I-CompBench's question answering, or the source of a BLIP.
        settings: further values of the record beside every image; images of other values are refused.
        progress: show progress bars.
        on_generated: called with each side's folder and the number of images that this process generated.

    Returns:
        The report; empty on every process but the first.

    Raises:
        SettingError: a setting is out of range, unknown, or contradicts another.
        DataError: prompts or a folder that cannot be used.
        CheckpointError: a masker or a network cannot be read.
        RewardError: the reward is unknown.
        TargetError: the masker was made for another model, or its masks are switched off.
    """
    numbers = GenerationSettings(
        images_per_prompt,
        num_inference_steps,
        guidance_scale,
        seed,
        batch_size,
        search_batch_size,
        limit,
        guidance_rescale,
    )
    rank, world = process_rank()
    check_benchmark(
        benchmark,
        prompts=prompts,
        images_per_prompt=images_per_prompt,
        limit=limit,
        detector=detector,
        clip=clip,
        vqa=vqa,
    )
    if pipe is None and not isinstance(sides, Mapping):
        raise SettingError("expected a Stable Diffusion pipeline to evaluate, got None; only sides by name need none")
    if pipe is not None and not hasattr(pipe, "unet"):
        raise SettingError(f"expected a Stable Diffusion pipeline to evaluate, got {type(pipe).__name__}")
    names = check_sides(pipe, sides, masker)
    config, reward_sources = check_search(names, reward, search_config, bundled=is_bundled(pipe))
    if isinstance(benchmark, str):
        # Networks are read before hours of work, by the process that scores.
        loaded = load_benchmark(
            benchmark,
            prompts,
            limit=limit,
            images_per_prompt=images_per_prompt,
            seed=seed,
            bundled=is_bundled(pipe),
            scores=rank == 0,
            detector=detector,
            clip=clip,
            vqa=vqa,
            device="cpu" if pipe is None else pipe.unet.device,
        )
    else:
        loaded = benchmark
    defaults = _defaults(benchmark, bundled=is_bundled(pipe))
    needs_masker = any("masker" in name for name in names)
    with contextlib.ExitStack() as stack:
        masker_name = stack.enter_context(_attached(pipe, masker)) if needs_masker else None
        if isinstance(sides, Mapping):
            records = {name: dict(settings or {}) for name in sides}
            built = BenchmarkSides(dict(sides), records, dict.fromkeys(sides, batch_size))
        else:
            built = build_sides(
                pipe,
                names,
                num_inference_steps=num_inference_steps or defaults.num_inference_steps,
                guidance_scale=defaults.guidance_scale if guidance_scale is None else guidance_scale,
                guidance_rescale=guidance_rescale,
                masked_guidance_scale=1.0 if guidance_scale is None and replaces_guidance(pipe) else None,
                masker=masker_name,
                reward=_load_reward(reward, reward_sources, pipe) if config is not None else None,
                reward_sources=reward_sources,
                search_config=config or SearchConfig(),
                batch_size=numbers.batch_size,
                search_batch_size=numbers.search_batch_size,
                settings=settings or {},
            )
        folder = stack.enter_context(tempfile.TemporaryDirectory()) if output_dir is None else output_dir
        scores = run_benchmark(
            loaded,
            built.sides,
            Path(folder),
            settings=built.settings,
            batch_size=built.batch_sizes,
            rank=rank,
            world=world,
            progress=progress,
            on_generated=on_generated,
        )
        files = {} if rank else {name: _job_files(loaded, Path(folder) / name) for name in built.sides}
        black = {name: [count_black(of_side), len(of_side)] for name, of_side in files.items()}
    record: dict[str, Any] = {"seed": seed, "black_images": black, "settings": dict(built.settings)}
    if isinstance(benchmark, str):
        record = {"images_per_prompt": images_per_prompt or defaults.images_per_prompt} | record
    report = BenchmarkReport(benchmark if isinstance(benchmark, str) else type(benchmark).__name__, scores, record)
    return _finished(report, output_dir)


@quiet_loading()
def score_images(
    images: Source,
    benchmark: str | Benchmark = "geneval",
    *,
    output_dir: Source | None = None,
    detector: Detector | str | None = None,
    clip: str | None = None,
    vqa: Vqa | str | None = None,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> BenchmarkReport:
    """Score a folder of images in a benchmark's layout.

    Args:
        images: the folder.
        benchmark: "geneval", "t2i-compbench", or a `Benchmark`.
        output_dir: receives the benchmark's result files, `summary.json` and `summary.md`; nothing is kept if None.
        detector: GenEval's detector, or its source: "judge" (of the shapes world), a Mask2Former's folder or hub id.
        clip: source of the CLIP that names colours in GenEval.
        vqa: T2I-CompBench's question answering, or the source of a BLIP.
        device: where the networks run.
        progress: show a progress bar.

    Raises:
        SettingError: an unknown benchmark, or a network of another benchmark.
        DataError: there are no images, or one cannot be read.
        CheckpointError: a network cannot be read.
    """
    check_benchmark(benchmark, detector=detector, clip=clip, vqa=vqa)
    name = benchmark if isinstance(benchmark, str) else type(benchmark).__name__
    if isinstance(benchmark, str):
        options: dict[str, Any] = {"detector": detector, "clip": clip, "vqa": vqa, "device": device}
        benchmark = load_benchmark(benchmark, None, generates=False, **options)
    with contextlib.ExitStack() as stack:
        results = stack.enter_context(tempfile.TemporaryDirectory()) if output_dir is None else output_dir
        scores = benchmark.score(Path(images), Path(results), progress=progress)
    files = [image.file for image in benchmark.find_images(Path(images))]
    record = {"images": str(images), "black_images": {"images": [count_black(files), len(files)]}}
    return _finished(BenchmarkReport(name, gather_scores(benchmark, {"images": scores}), record), output_dir)


def _job_files(benchmark: Benchmark, folder: Path) -> list[Path]:
    return [job.file for job in benchmark.jobs(folder)]


def _finished(report: BenchmarkReport, output_dir: Source | None) -> BenchmarkReport:
    """Save a report, and warn of black images."""
    for note in report.black_notes():
        logger.warning("%s", note)
    if output_dir is not None:
        report.save(output_dir)
    return report


def _defaults(benchmark: str | Benchmark, *, bundled: bool) -> BenchmarkDefaults:
    """Return how the benchmark's own script generates; the bundled model keeps its own steps and guidance."""
    published = BENCHMARKS[benchmark if isinstance(benchmark, str) else "geneval"]
    if not bundled:
        return published
    return BenchmarkDefaults(published.images_per_prompt, NUM_INFERENCE_STEPS, GUIDANCE_SCALE)


def _load_reward(reward: Any, sources: Sequence[str] | None, pipe: Any) -> Reward:
    if sources is None:
        return as_reward(reward)
    return parse_reward(sources).to(pipe.unet.device, pipe.unet.dtype)


@contextlib.contextmanager
def _attached(pipe: Any, masker: Masker | Source | None) -> Iterator[str]:
    """Attach a masker inside the context, if one is given; yield the attached one's name for the records."""
    attachment = attachment_of(pipe)
    try:
        current = attachment if masker is None else attach(pipe, masker)
        assert current is not None
        yield str(masker) if isinstance(masker, str | os.PathLike) else _masker_name(current)
    finally:
        reattach(pipe, attachment)


def _masker_name(attachment: Attachment) -> str:
    """Return class and digest of a masker at its strength, so that a resumed run cannot mix the images of two maskers."""
    masker = attachment.masker
    layers = [layer.name for layer in masker.network.layers]
    strength = () if attachment.strength == 1 else (attachment.strength,)
    digest = hashlib.sha256(repr((masker.settings, layers, attachment.seed, *strength)).encode())
    for name, tensor in sorted(masker.tensors().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"{type(masker).__name__} {digest.hexdigest()[:12]}"
