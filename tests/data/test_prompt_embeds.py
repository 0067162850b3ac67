"""Prompt embeddings: those of the text encoders, whether cached or not."""

from __future__ import annotations

import torch
from diffusers import StableDiffusionPipeline

from maskunet.data import PromptEmbeds


def test_prompt_embeds_are_the_text_encoders(pipe: StableDiffusionPipeline) -> None:
    ids = pipe.tokenizer(["a red circle"], padding="max_length", truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        expected = pipe.text_encoder(ids).last_hidden_state
    embeds, pooled = PromptEmbeds(pipe)(["a red circle"])
    torch.testing.assert_close(embeds, expected)
    assert pooled is None
    cached, _ = PromptEmbeds(pipe, ["a red circle", ""])(["a red circle", ""])
    torch.testing.assert_close(cached[:1], expected, atol=2e-3, rtol=2e-3)
