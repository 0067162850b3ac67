"""Benchmarks by name, with their prompts and the networks that score their images."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import DataError, SettingError
from ..shapes.scenes import held_out_prompts
from . import blip_vqa, t2i_compbench
from .benchmark import Benchmark
from .detectors import Detector, JudgeDetector
from .geneval import GenEval, check_metadata, read_metadata
from .mask2former import CLIP, MASK2FORMER, Mask2FormerDetector
from .published import BENCHMARKS, BUNDLED_PROMPTS
from .t2i_compbench import T2ICompBench, check_prompts, read_prompts

#: Prompts of a benchmark: its file or folder; GenEval's metadata; or T2I-CompBench's prompts by category.
Prompts = str | os.PathLike[str] | Sequence[Mapping[str, Any]] | Mapping[str, Sequence[str]]


def load_benchmark(
    name: str,
    prompts: Prompts | None,
    *,
    limit: int | None = None,
    images_per_prompt: int | None = None,
    seed: int = 0,
    bundled: bool = False,
    generates: bool = True,
    scores: bool = True,
    detector: Detector | str | None = None,
    clip: str | None = None,
    vqa: blip_vqa.Vqa | str | None = None,
    device: torch.device | str = "cpu",
) -> Benchmark:
    """Load a benchmark by name.

    Args:
        name: "geneval" or "t2i-compbench".
        prompts: its prompts; the bundled ones if None, for GenEval on the bundled model.
        limit: use the first N prompts, of each category with T2I-CompBench.
        images_per_prompt: images per prompt; the benchmark's number if None.
        seed: seed of the noise.
        bundled: the images are the bundled model's.
        generates: images are generated, which needs prompts.
        scores: images are scored, which needs the networks.
        detector: GenEval's detector, or its source: "judge", a folder or a hub id.
        clip: source of the CLIP that names colours in GenEval.
        vqa: T2I-CompBench's question answering, or the source of a BLIP.
        device: where the networks run.

    Raises:
        SettingError: an unknown benchmark, or a network of another benchmark.
        DataError: prompts that cannot be used, or spaCy is missing.
        CheckpointError: a network cannot be read.
    """
    if name not in BENCHMARKS:
        raise SettingError(f"expected a benchmark ({', '.join(BENCHMARKS)}) or a Benchmark, got {name!r}")
    count = images_per_prompt or BENCHMARKS[name].images_per_prompt
    if name == "geneval":
        _refuse(name, vqa=vqa)
        metadata = _geneval_prompts(prompts, limit, bundled, generates)
        loaded = _load_detector(detector, clip, bundled, device) if scores else None
        return GenEval(metadata, loaded, images_per_prompt=count, seed=seed)
    _refuse(name, detector=detector, clip=clip)
    by_category = _t2i_compbench_prompts(prompts, limit, generates)
    if not scores:
        return T2ICompBench(by_category, images_per_prompt=count, seed=seed)
    phrases = t2i_compbench.spacy_phrases()
    if vqa is None or isinstance(vqa, str):
        vqa = blip_vqa.BlipVqa.from_pretrained(vqa or blip_vqa.BLIP_VQA, device=device)
    return T2ICompBench(by_category, vqa, phrases, images_per_prompt=count, seed=seed)


def _refuse(owner: str, **options: object) -> None:
    for name, value in options.items():
        if value is not None:
            raise SettingError(f"expected no {name} with {owner}, got {value!r}")


def _geneval_prompts(
    prompts: Prompts | None, limit: int | None, bundled: bool, generates: bool
) -> Sequence[Mapping[str, Any]]:
    if isinstance(prompts, str | os.PathLike):
        return read_metadata(Path(prompts))[:limit]
    if prompts is not None:
        if not isinstance(prompts, Sequence):
            raise SettingError(
                f"expected GenEval's evaluation_metadata.jsonl or a list of its entries, got {type(prompts).__name__}"
            )
        return check_metadata(prompts, "prompts")[:limit]
    if bundled:
        return [prompt.metadata() for prompt in held_out_prompts(limit or BUNDLED_PROMPTS)]
    if generates:
        raise DataError(
            "expected prompts (--prompts-file), GenEval's evaluation_metadata.jsonl; only the bundled model has its own"
        )
    return []


def _t2i_compbench_prompts(prompts: Prompts | None, limit: int | None, generates: bool) -> dict[str, list[str]]:
    if prompts is None:
        if generates:
            raise DataError(
                "expected prompts (--prompts-file), T2I-CompBench's color_val.txt or a folder of such files"
            )
        return {}
    if isinstance(prompts, str | os.PathLike):
        by_category = read_prompts(Path(prompts))
    elif isinstance(prompts, Mapping):
        by_category = {name: check_prompts(category, "prompts") for name, category in prompts.items()}
    else:
        raise SettingError(
            "expected T2I-CompBench's color_val.txt, a folder of such files or prompts by category, got "
            f"{type(prompts).__name__}"
        )
    return {name: category[:limit] for name, category in by_category.items()}


def _load_detector(
    detector: Detector | str | None, clip: str | None, bundled: bool, device: torch.device | str
) -> Detector:
    source = detector if detector is not None else "judge" if bundled else MASK2FORMER
    if source == "judge" or not isinstance(source, str):
        _refuse("the judge" if source == "judge" else "a detector object", clip=clip)
        return JudgeDetector() if isinstance(source, str) else source
    return Mask2FormerDetector.from_pretrained(source, clip=clip or CLIP, device=device)
