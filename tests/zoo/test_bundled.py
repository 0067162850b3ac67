"""The bundled weights load in the standard ways, are small, and draw their prompts."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from transformers import CLIPTokenizer

import maskunet as mu
from maskunet import zoo
from maskunet.errors import CheckpointError
from maskunet.metrics.geneval_rules import check
from maskunet.pretrained import BUNDLED
from maskunet.sampling import generate
from maskunet.shapes.drawing import draw
from maskunet.shapes.judge import judge
from maskunet.shapes.scenes import held_out_prompts, held_out_scenes, training_scene
from maskunet.zoo import defaults
from maskunet.zoo.recipe.autoencoder import psnr
from maskunet.zoo.recipe.clip import wrong_caption


@pytest.fixture(scope="module")
def bundled() -> StableDiffusionPipeline:
    return mu.zoo.load("shapes")


def test_plain_diffusers_loads_the_same_model(bundled: StableDiffusionPipeline) -> None:
    plain = StableDiffusionPipeline.from_pretrained(mu.zoo.path("shapes"))
    plain.set_progress_bar_config(disable=True)
    ours = generate(bundled, ["a red circle"], num_inference_steps=3, progress=False).tensor
    expected = generate(plain, ["a red circle"], num_inference_steps=3, progress=False).tensor
    assert torch.equal(ours, expected)


def test_weights_are_small() -> None:
    files = [p for name in BUNDLED for p in zoo.path(name).rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 37e6
    tensors = [
        t for p in files if p.suffix == ".safetensors" and "masker" not in p.name for t in load_file(p).values()
    ]
    assert sum(2 * t.numel() for t in tensors) <= 33e6  # in half precision; the text encoder is stored in single
    assert {p.suffix for p in files} <= {".json", ".safetensors", ".txt", ".md"}


def test_autoencoder_reaches_30_db(bundled: StableDiffusionPipeline) -> None:
    assert psnr(bundled.vae, draw(held_out_scenes(60))) >= 30


def test_single_objects_are_drawn(bundled: StableDiffusionPipeline) -> None:
    prompts = [p for p in held_out_prompts(96) if p.task in ("single_object", "colors")][:24]
    options = {
        "num_inference_steps": 15,
        "guidance_scale": defaults.GUIDANCE_SCALE,
        "batch_size": 24,
        "progress": False,
    }
    images = generate(bundled, [p.prompt for p in prompts], **options).tensor
    right = [check(d, p.metadata()) is None for d, p in zip(judge(images), prompts, strict=True)]
    assert sum(right) >= 18


def test_bundled_masker_masks_and_comes_off(bundled: StableDiffusionPipeline) -> None:
    options = {"num_inference_steps": 3, "progress": False}
    base = generate(bundled, ["a blue star"], **options).tensor
    masker = mu.load(zoo.path("shapes-masker"), bundled)
    mu.attach(bundled, masker)
    try:
        with mu.record(bundled, keep="density") as trace:
            masked = generate(bundled, ["a blue star"], **options).tensor
        assert len(trace.calls) == 3
        densities = [value for values in trace.density.values() for value in values]
        assert 0.5 < min(densities) < 1
        assert not torch.equal(base, masked)
        with mu.disabled(bundled):
            assert torch.equal(base, generate(bundled, ["a blue star"], **options).tensor)
    finally:
        mu.detach(bundled)
    assert torch.equal(base, generate(bundled, ["a blue star"], **options).tensor)


def test_clip_prefers_the_caption_that_is_true() -> None:
    scenes = [training_scene(i, seed=77) for i in range(100)]
    clip, tokenizer = zoo.load_clip(), CLIPTokenizer.from_pretrained(zoo.path("shapes-clip"))

    @torch.inference_mode()
    def text(captions: list[str]) -> torch.Tensor:
        ids = tokenizer(captions, padding="max_length", max_length=24, return_tensors="pt").input_ids
        return torch.nn.functional.normalize(clip.get_text_features(input_ids=ids).pooler_output, dim=-1)

    with torch.inference_mode():
        image = clip.get_image_features(pixel_values=draw(scenes) * 2 - 1).pooler_output
    true = (image * text([s.caption for s in scenes])).sum(1)
    false = (image * text([wrong_caption(s.caption, random.Random(i)) for i, s in enumerate(scenes)])).sum(1)
    assert float((true > false).float().mean()) >= 0.8


def test_defaults_are_read_without_torch() -> None:
    code = "import sys; from maskunet.zoo import defaults; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(CheckpointError, match="shapes-masker"):
        mu.zoo.path("forms")
    with pytest.raises(CheckpointError, match="'shapes'"):
        mu.zoo.load("shapes-masker")
