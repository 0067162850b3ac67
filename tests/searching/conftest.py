"""Tiny pipelines of both styles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection


def _text(width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=64,
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        projection_dim=32,
    )


@pytest.fixture
def make_pipe(pipe: StableDiffusionPipeline, make_unet: Callable[[str], Any]) -> Callable[[str], Any]:
    """Build a tiny pipeline, "sd1" or "sdxl"."""

    def make(style: str) -> Any:
        if style == "sd1":
            return pipe
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            first, second = CLIPTextModel(_text(8)).eval(), CLIPTextModelWithProjection(_text(16)).eval()
        made = StableDiffusionXLPipeline(
            vae=pipe.vae,
            text_encoder=first,
            text_encoder_2=second,
            tokenizer=pipe.tokenizer,
            tokenizer_2=pipe.tokenizer,
            unet=make_unet("sdxl"),
            scheduler=DDIMScheduler(clip_sample=False),
            add_watermarker=False,
        )
        made.set_progress_bar_config(disable=True)
        return made

    return make
