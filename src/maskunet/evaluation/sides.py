"""The sides of a benchmark: base model, masker, SynGen, and a search that finds masks for every image by reward."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from ..attaching import disabled
from ..rewards.base import Reward
from ..sampling.generation import Side, pipeline_side
from ..sampling.supported_pipelines import check_steps
from ..searching import SearchConfig, search
from ..syngen import shapes_phrases, syngen_side
from ..syngen.guide import SCALE
from .bundled import is_bundled, model_name

#: Settings of a search that do not change its images: seeds come with the prompts.
_UNUSED = ("seed",)


def search_side(pipe: Any, reward: Reward, config: SearchConfig, *, masks: bool = False) -> Side:
    """Return the side that searches masks for prompts and seeds and generates the images under them.

    An image starts from the noise that `pipeline_side` draws for its seed; with drafts that noise is the first candidate.

    Args:
        pipe: a Stable Diffusion pipeline.
        reward: the reward to optimise.
        config: settings of the search; its `seed` is not used.
        masks: search on top of the attached masks, if any; without them if false.
    """

    def run(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        with contextlib.nullcontext() if masks else disabled(pipe):
            return search(pipe, list(prompts), reward, config, seeds=seeds, progress=False).tensor

    return run


def search_settings(config: SearchConfig) -> dict[str, Any]:
    """Return the settings that a search's images depend on, as JSON values.

    Args:
        config: settings of the search.
    """
    values: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    # Records of earlier versions lack a setting that came later, so its default is not written.
    unused = _UNUSED if config.guidance_rescale else (*_UNUSED, "guidance_rescale")
    return {name: value for name, value in values.items() if name not in unused}


@dataclass(frozen=True)
class BenchmarkSides:
    """Sides of a benchmark with what their images depend on.

    Args:
        sides: sides by name.
        settings: settings of each side, as JSON values.
        batch_sizes: images per call of each side.
    """

    sides: Mapping[str, Side]
    settings: Mapping[str, Mapping[str, Any]]
    batch_sizes: Mapping[str, int]


def build_sides(
    pipe: Any,
    names: Sequence[str],
    *,
    num_inference_steps: int,
    guidance_scale: float,
    guidance_rescale: float = 0.0,
    masked_guidance_scale: float | None = None,
    masker: str | None,
    reward: Reward | None,
    reward_sources: Sequence[str] | None,
    search_config: SearchConfig,
    batch_size: int,
    search_batch_size: int,
    settings: Mapping[str, Any],
) -> BenchmarkSides:
    """Build the sides of a benchmark by name.

    Args:
        pipe: a Stable Diffusion pipeline, with the masker attached if a side needs it.
        names: names of `BENCHMARK_SIDES`.
        num_inference_steps: denoising steps of every side.
        guidance_scale: strength of classifier-free guidance of every side.
        masked_guidance_scale: the same of the sides with masks; `guidance_scale` if None.
        guidance_rescale: share of the guided output that every side rescales, in [0, 1].
        masker: name of the masker in the records.
        reward: the reward that searches optimise.
        reward_sources: descriptions that the reward was loaded from, for the records.
        search_config: settings of searches.
        batch_size: prompts per call.
        search_batch_size: prompts per search.
        settings: further values of every record.

    Raises:
        SettingError: the scheduler cannot take that number of steps.
        DataError: SynGen needs spaCy or its model, or the attention processors are not plain.
    """
    check_steps(pipe.scheduler, num_inference_steps)
    masked_guidance = guidance_scale if masked_guidance_scale is None else masked_guidance_scale

    def generation(masks: bool) -> dict[str, Any]:
        scale = masked_guidance if masks else guidance_scale
        options = {"num_inference_steps": num_inference_steps, "guidance_scale": scale}
        return options | ({"guidance_rescale": guidance_rescale} if guidance_rescale else {})

    def plain(masks: bool) -> tuple[Side, dict[str, Any], int]:
        return pipeline_side(pipe, masks=masks, **generation(masks)), {}, batch_size

    def searched(masks: bool) -> tuple[Side, dict[str, Any], int]:
        assert reward is not None
        config = replace(search_config, **{"guidance_rescale": 0.0} | generation(masks))
        record = {"search": search_settings(config), "dtype": str(pipe.unet.dtype), "rewards": reward.name}
        record |= {} if reward_sources is None else {"reward_sources": list(reward_sources)}
        return search_side(pipe, reward, config, masks=masks), record, search_batch_size

    def by_syngen(masks: bool) -> tuple[Side, dict[str, Any], int]:
        phrases = shapes_phrases if is_bundled(pipe) else None
        record = {"syngen": {"scale": SCALE, "phrases": "spacy" if phrases is None else "shapes"}}
        return syngen_side(pipe, masks=masks, phrases=phrases, **generation(masks)), record, batch_size

    builders: dict[str, Callable[[bool], tuple[Side, dict[str, Any], int]]] = {
        "base": plain,
        "masker": plain,
        "search": searched,
        "syngen": by_syngen,
    }
    sides, records, batch_sizes = {}, {}, {}
    for name in names:
        masks = "masker" in name
        side, record, size = builders[name.removesuffix("+masker")](masks)
        sides[name], batch_sizes[name] = side, size
        shared = {"model": model_name(pipe), "scheduler": type(pipe.scheduler).__name__} | generation(masks)
        records[name] = shared | dict(settings) | {"masker": masker if masks else None} | record
    return BenchmarkSides(sides, records, batch_sizes)
