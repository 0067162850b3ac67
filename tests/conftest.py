"""Tiny networks in the real architectures, with seeded random weights."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from hypothesis import settings
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from english import train_english
from maskunet.cli import main as cli
from tiny_pipelines import SD1, SDXL, seeded, text_config, vae
from tiny_tokenizer import make_tokenizer

pytest_plugins = ["published_formats"]

torch.set_num_threads(1)
settings.register_profile("maskunet", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("maskunet")

CONFIGS: dict[str, dict[str, Any]] = {
    "sd1": SD1,
    "sd2": SD1 | {"attention_head_dim": (2, 4, 4), "use_linear_projection": True},
    "sdxl": SDXL,
}
Unet = UNet2DConditionModel


@pytest.fixture(scope="session")
def _unets() -> dict[str, Unet]:
    return {name: seeded(lambda config=config: Unet(**config)) for name, config in CONFIGS.items()}


@pytest.fixture
def make_unet(_unets: dict[str, Unet]) -> Callable[[str], Unet]:
    """Build a frozen tiny U-Net of a style: "sd1", "sd2" or "sdxl"."""
    return lambda style: copy.deepcopy(_unets[style])


@pytest.fixture
def sd1(make_unet: Callable[[str], Unet]) -> Unet:
    return make_unet("sd1")


@pytest.fixture(params=list(CONFIGS))
def any_unet(request: pytest.FixtureRequest, make_unet: Callable[[str], Unet]) -> Unet:
    return make_unet(request.param)


@pytest.fixture
def inputs() -> Callable[..., dict[str, Any]]:
    """Make the arguments of a call of a tiny U-Net for a batch of samples."""

    def make(unet: Unet, batch: int = 2, *, seed: int = 0, timestep: int = 500) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(batch, *shape, generator=generator)

        given: dict[str, Any] = {"sample": normal(4, 8, 8), "encoder_hidden_states": normal(5, 24)}
        if unet.config["addition_embed_type"] == "text_time":
            time_ids = torch.tensor([[8.0, 8.0, 0.0, 0.0, 8.0, 8.0]]).repeat(batch, 1)
            given["added_cond_kwargs"] = {"text_embeds": normal(32), "time_ids": time_ids}
        return given | {"timestep": torch.tensor(timestep)}

    return make


@pytest.fixture
def predict(inputs: Callable[..., dict[str, Any]]) -> Callable[..., Tensor]:
    """Call a tiny U-Net without gradients on seeded inputs."""

    @torch.no_grad()
    def call(model: Any, **options: Any) -> Tensor:
        return model(**inputs(getattr(model, "_orig_mod", model), **options)).sample

    return call


@pytest.fixture(scope="session")
def _components(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {
        "vae": vae(),
        "text_encoder": seeded(lambda: CLIPTextModel(text_config(24))),
        "tokenizer": make_tokenizer(tmp_path_factory.mktemp("tokenizer")),
    }


@pytest.fixture
def pipe(_components: dict[str, Any], sd1: Unet) -> StableDiffusionPipeline:
    """A whole tiny pipeline; only its U-Net is the test's own."""
    pipe = StableDiffusionPipeline(
        **_components,
        unet=sd1,
        scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def sd2_pipe(pipe: StableDiffusionPipeline, make_unet: Callable[[str], Unet]) -> StableDiffusionPipeline:
    """A tiny pipeline of the 2.x style, which predicts the velocity."""
    pipe.unet = make_unet("sd2")
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, prediction_type="v_prediction")
    return pipe


@pytest.fixture
def sdxl_pipe(_components: dict[str, Any], make_unet: Callable[[str], Unet]) -> StableDiffusionXLPipeline:
    """A tiny pipeline of the XL style: two text encoders, whose widths add up to the U-Net's."""
    pipe = StableDiffusionXLPipeline(
        vae=_components["vae"],
        text_encoder=seeded(lambda: CLIPTextModel(text_config(8))),
        text_encoder_2=seeded(lambda: CLIPTextModelWithProjection(text_config(16))),
        tokenizer=_components["tokenizer"],
        tokenizer_2=_components["tokenizer"],
        unet=make_unet("sdxl"),
        scheduler=EulerDiscreteScheduler(),
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def draw_latents() -> Callable[..., Tensor]:
    """Generate latents from a pipeline: two steps under guidance, a seed for each prompt."""

    def generate(pipe: StableDiffusionPipeline, prompts: list[str], seeds: list[int], guidance: float = 4.0) -> Tensor:
        return pipe(
            prompts,
            height=16,
            width=16,
            num_inference_steps=2,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="latent",
        ).images

    return generate


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in process: words to exit code, output and errors."""

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("maskunet.allocator.keep_freed_memory", lambda: True)

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["maskunet", *map(str, words)])
        capsys.readouterr()  # what fixtures wrote
        code: object = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
        out = capsys.readouterr()
        return int(code or 0), out.out, out.err  # type: ignore[call-overload]

    return call


@pytest.fixture(scope="session")
def english(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small spaCy model; see `english.py`."""
    return train_english(tmp_path_factory.mktemp("english") / "model")
