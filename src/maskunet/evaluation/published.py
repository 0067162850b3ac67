"""How published evaluations generate: the benchmarks' own settings and the COCO protocols; imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import SettingError
from ..settings import MAX_GUIDANCE_SCALE, Settings, integer, number


@dataclass(frozen=True)
class BenchmarkDefaults:
    """How a benchmark's own script generates.

    Args:
        images_per_prompt: images per prompt.
        num_inference_steps: denoising steps.
        guidance_scale: strength of classifier-free guidance.
    """

    images_per_prompt: int
    num_inference_steps: int
    guidance_scale: float


BENCHMARKS = {"geneval": BenchmarkDefaults(4, 50, 9.0), "t2i-compbench": BenchmarkDefaults(10, 30, 7.5)}
#: Sides of a benchmark by name: the base model, a masker, masks searched by reward alone or on top of the masker's, and
#: SynGen without and with the masker.
BENCHMARK_SIDES = ("base", "masker", "search", "search+masker", "syngen", "syngen+masker")
#: Held-out prompts of the shapes world that replace GenEval's 553: the same number for each of the six tasks.
BUNDLED_PROMPTS = 552


#: Feature spaces as `--features` takes them, for messages.
FEATURE_NAMES = "clip:SOURCE, cmmd, dinov2:SOURCE, inception or shapes"
#: The CLIP of published CMMD figures.
CMMD_CLIP = "openai/clip-vit-large-patch14-336"


@dataclass(frozen=True)
class CocoProtocol:
    """An evaluation protocol on COCO.

    Args:
        annotations: usual name of the annotation file.
        count: number of captions, each of another image.
        resolution: pixels per side of both sets.
    """

    annotations: str
    count: int
    resolution: int


#: FID-30k on val2014 (images resized to 256 pixels, against all of val2014), and FID-5k on val2017.
COCO_PROTOCOLS = {
    "coco2014-30k": CocoProtocol("captions_val2014.json", 30_000, 256),
    "coco2017-5k": CocoProtocol("captions_val2017.json", 5_000, 256),
}


@dataclass(frozen=True)
class GenerationSettings(Settings):
    """Settings of `evaluate` and `measure_images` that are numbers, checked.

    Args:
        images_per_prompt: images per prompt; the benchmark's number if None.
        num_inference_steps: denoising steps; the benchmark's number if None.
        guidance_scale: strength of classifier-free guidance; the benchmark's if None.
        seed: seed of the noise.
        batch_size: prompts per call.
        search_batch_size: prompts per search.
        limit: use the first N prompts; all if None.
        guidance_rescale: share of the guided output that is rescaled to the conditional one's deviation, in [0, 1].

    Raises:
        SettingError: a setting is out of range.
    """

    images_per_prompt: int | None = integer(None, at_least=1, optional=True)
    num_inference_steps: int | None = integer(None, at_least=1, at_most=1000, optional=True)
    guidance_scale: float | None = number(None, at_least=0, at_most=MAX_GUIDANCE_SCALE, optional=True)
    seed: int = integer(0, at_least=0, at_most=2**63 - 1)
    batch_size: int = integer(8, at_least=1)
    search_batch_size: int = integer(1, at_least=1)
    limit: int | None = integer(None, at_least=1, optional=True)
    guidance_rescale: float = number(0.0, at_least=0, at_most=1)


def read_sides(sides: str | Sequence[str] | None, has_masker: bool) -> tuple[str, ...]:
    """Return the sides by name.

    Args:
        sides: names of `BENCHMARK_SIDES`, in a sequence or between commas; "both" stands for base and masker. Base and
            masker if None, or base alone without a masker.
        has_masker: whether there is a masker.

    Raises:
        SettingError: an unknown side, one twice, or masks without a masker.
    """
    listed = ("both" if has_masker else "base",) if sides is None else sides
    text = listed if isinstance(listed, str) else ",".join(map(str, listed))
    names = [name.strip() for name in text.replace("both", "base,masker").split(",")]
    if len(set(names)) < len(names) or not set(names) <= set(BENCHMARK_SIDES):
        raise SettingError(f"expected sides among {', '.join(BENCHMARK_SIDES)}, or both, each once, got {text!r}")
    if not has_masker and any("masker" in name for name in names):
        raise SettingError(f"expected a masker for the sides {text}, got none; give masker or attach one (--masker)")
    return tuple(names)
