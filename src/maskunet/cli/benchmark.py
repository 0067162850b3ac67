"""`maskunet evaluate --benchmark`: GenEval or T2I-CompBench on the base model, a masker, a search, or several of them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..errors import DataError
from ..searching.config import SearchConfig
from ..version import __version__
from .options import local_device, open_pipeline, open_rewards, reward_sources

if TYPE_CHECKING:
    from ..evaluation import Benchmark, Scores
    from ..sampling import Side

#: What makes the pictures: the model, its masks, masks found by reward, and those found on top of the masker's; SynGen
#: without and with its masks.
SIDES = ("base", "masker", "search", "search+masker", "syngen", "syngen+masker")
#: Prompts of the shapes world where none are given: as many a task as GenEval has, 553 over six.
_BUNDLED_PROMPTS = 552


@dataclass(frozen=True)
class Setting:
    """How a benchmark's own script generates: pictures a prompt, denoising steps, guidance."""

    samples: int
    steps: int
    guidance_scale: float


SETTINGS = {"geneval": Setting(4, 50, 9.0), "t2i-compbench": Setting(10, 30, 7.5)}


def run_benchmark_command(
    name: str,
    *,
    model: str | None,
    masker: str | None,
    prompts_file: Path | None,
    pictures: Path | None,
    sides: str | None,
    rewards: list[str] | None,
    preset: str | None,
    search_batch_size: int,
    samples: int | None,
    sources: Mapping[str, str | None],
    limit: int | None,
    output: Path,
    scheduler: str | None,
    steps: int | None,
    guidance_scale: float | None,
    seed: int,
    batch_size: int,
    dtype: str | None,
    device: str | None,
) -> None:
    """Generate where there is a model, score, print a table and write `summary.json` and `summary.md`.

    Raises:
        DataError: options that do not fit each other, or prompts that cannot be used.
    """
    if name not in SETTINGS:
        raise DataError(f"expected a benchmark ({', '.join(SETTINGS)}), got {name!r}")
    if (model is None) == (pictures is None):
        raise DataError(
            "expected --model to generate with, or --pictures in the benchmark's layout to score, not both"
        )
    if pictures is not None and (sides or masker or prompts_file or limit):
        raise DataError(
            "expected --pictures without --sides, --masker, --prompts-file and --limit; the folder says what it holds"
        )
    chosen = read_sides(sides, masker)
    searched = any("search" in side for side in chosen)
    if not searched and (rewards or preset):
        raise DataError("expected --reward and --preset with --sides search or search+masker, got neither of them")
    sources_of_reward = reward_sources(rewards, str(model)) if searched else []
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if pictures is not None and rank > 0:
        return
    setting, where = SETTINGS[name], local_device(device)
    drawing: dict[str, Any] = {
        "num_inference_steps": steps or setting.steps,
        "guidance_scale": setting.guidance_scale if guidance_scale is None else guidance_scale,
    }
    config = SearchConfig.preset(preset or "default", **drawing)
    options = {"samples": samples or setting.samples, "seed": seed}
    bundled = model == "shapes"
    # Whoever scores reads its networks first: errors before hours of work.
    found = (_geneval if name == "geneval" else _t2i_compbench)(
        prompts_file,
        limit,
        sources,
        bundled=bundled,
        generate=model is not None,
        score=rank == 0,
        where=where,
        **options,
    )
    record: dict[str, Any] = {"benchmark": name, "samples": options["samples"], "seed": seed}
    if pictures is not None:
        _save(_score(found, pictures, output), record | {"pictures": str(pictures)}, output)
        return
    from ..evaluation import run_benchmark, search_side
    from ..evaluation.sides import search_settings
    from ..sampling import pipeline_side
    from ..syngen import shapes_phrases, syngen_side
    from ..syngen.guide import SCALE

    needed = masker if any("masker" in side for side in chosen) else None
    pipe = open_pipeline(str(model), needed, device, dtype, scheduler)
    reward = open_rewards(sources_of_reward, pipe) if searched else None
    shared = {"model": model, "scheduler": type(pipe.scheduler).__name__} | drawing
    by_search = {"search": search_settings(config), "reward_sources": sources_of_reward, "dtype": str(pipe.unet.dtype)}
    phrases = shapes_phrases if bundled else None
    makers: dict[str, Side] = {}
    settings: dict[str, dict[str, Any]] = {}
    sizes: dict[str, int] = {}
    for side in chosen:
        masks = "masker" in side
        settings[side] = shared | {"masker": masker if masks else None}
        if reward is not None and "search" in side:
            makers[side], sizes[side] = search_side(pipe, reward, config, masks=masks), search_batch_size
            settings[side] |= by_search | {"rewards": reward.name}
        elif "syngen" in side:
            makers[side], sizes[side] = syngen_side(pipe, masks=masks, phrases=phrases, **drawing), batch_size
            settings[side] |= {"syngen": {"scale": SCALE, "phrases": "shapes" if bundled else "spacy"}}
        else:
            makers[side], sizes[side] = pipeline_side(pipe, masks=masks, **drawing), batch_size
    scores = run_benchmark(
        found, makers, output, settings=settings, batch_size=sizes, rank=rank, world=world, say=typer.echo
    )
    if scores is not None:
        _save(scores, record | {"settings": settings}, output)


def read_sides(text: str | None, masker: str | None) -> tuple[str, ...]:
    """Return the sides that a comma list names; "both" stands for base and masker, the default where there is a masker.

    Raises:
        DataError: an unknown side, one twice, or masks without a masker.
    """
    text = text or ("both" if masker else "base")
    names = [name.strip() for name in text.replace("both", "base,masker").split(",")]
    if len(set(names)) < len(names) or not set(names) <= set(SIDES):
        raise DataError(f"expected --sides as a comma list of {', '.join(SIDES)}, or both, each once, got {text!r}")
    if masker is None and any("masker" in name for name in names):
        raise DataError(f"expected --masker with --sides {text}, got none")
    return tuple(names)


def _geneval(
    file: Path | None,
    limit: int | None,
    sources: Mapping[str, str | None],
    *,
    bundled: bool,
    generate: bool,
    score: bool,
    where: Any,
    **options: Any,
) -> Benchmark:
    from ..evaluation import GenEval
    from ..evaluation.detectors import Detector, JudgeDetector
    from ..evaluation.geneval import read_metadata
    from ..evaluation.mask2former import CLIP, MASK2FORMER, Mask2FormerDetector
    from ..shapes.scenes import held_out_prompts

    _refuse(sources, ("vqa",), "geneval")
    if file is not None:
        metadata = list(read_metadata(file))[:limit]
    elif bundled:
        metadata = [prompt.metadata() for prompt in held_out_prompts(limit or _BUNDLED_PROMPTS)]
    elif generate:
        raise DataError("expected --prompts-file with GenEval's evaluation_metadata.jsonl; only 'shapes' has its own")
    else:
        metadata = []
    source = sources["detector"] or ("judge" if bundled else MASK2FORMER)
    detector: Detector | None = None
    if score and source == "judge":
        _refuse(sources, ("clip",), "the judge")
        detector = JudgeDetector()
    elif score:
        detector = Mask2FormerDetector.from_pretrained(source, clip=sources["clip"] or CLIP, device=where)
    return GenEval(metadata, detector, **options)


def _t2i_compbench(
    file: Path | None,
    limit: int | None,
    sources: Mapping[str, str | None],
    *,
    bundled: bool,
    generate: bool,
    score: bool,
    where: Any,
    **options: Any,
) -> Benchmark:
    from ..evaluation import T2ICompBench
    from ..evaluation.blip_vqa import BLIP_VQA, BlipVqa
    from ..evaluation.t2i_compbench import read_prompts, spacy_phrases

    _refuse(sources, ("detector", "clip"), "t2i-compbench")
    if file is None and generate:
        raise DataError("expected --prompts-file with T2I-CompBench's color_val.txt, or a folder of such files")
    prompts = {} if file is None else {name: of_one[:limit] for name, of_one in read_prompts(file).items()}
    if not score:
        return T2ICompBench(prompts, **options)
    phrases = spacy_phrases()
    return T2ICompBench(prompts, BlipVqa.from_pretrained(sources["vqa"] or BLIP_VQA, device=where), phrases, **options)


def _refuse(sources: Mapping[str, str | None], names: tuple[str, ...], what: str) -> None:
    if given := [f"--{name}" for name in names if sources[name]]:
        raise DataError(f"expected no {', '.join(given)} with {what}")


def _score(benchmark: Benchmark, pictures: Path, output: Path) -> Scores:
    from ..evaluation import Scores

    found = benchmark.score(pictures, output)
    return Scores.of({"pictures": found}, overall=benchmark.overall, digits=benchmark.digits)


def _save(scores: Scores, record: dict[str, Any], output: Path) -> None:
    import torch

    from ..files import make_folder, save_text

    make_folder(output)
    versions = {"maskunet": __version__, "torch": torch.__version__}
    record |= {"scores": scores.to_dict(), "versions": versions}
    save_text(json.dumps(record, indent=1) + "\n", output / "summary.json")
    save_text(scores.to_markdown() + "\n", output / "summary.md")
    typer.echo(scores.to_markdown())
