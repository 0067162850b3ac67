"""Which images an analysis generates, and the names of layers."""

from __future__ import annotations

import pytest
from diffusers import StableDiffusionPipeline

from maskunet.analysis import AnalysisSettings
from maskunet.analysis.context import build_context, evenly_spaced
from maskunet.analysis.layer_names import block_name, projection_name, short_name


def test_prompts_repeat_with_other_noise(pipe: StableDiffusionPipeline) -> None:
    context = build_context(pipe, AnalysisSettings(("a", "b"), seed=5, count=3, batch_size=2), 9, lambda *_: None)
    assert context.prompts == ["a", "b", "a"]
    assert context.seeds == [5, 6, 7]
    assert context.batches() == [[0, 1], [2]]
    assert context.tasks == [[0, 1, 2]]
    assert context.with_seed(8).seeds == [8, 9, 10]


def test_evenly_spaced_numbers() -> None:
    assert evenly_spaced(25, 4) == [0, 8, 16, 24]
    assert evenly_spaced(2, 4) == [0, 1]


@pytest.mark.parametrize(
    ("layer", "projection", "block", "short"),
    [
        (
            "up_blocks.1.attentions.0.transformer_blocks.2.attn2.to_out.0",
            "out",
            "up_blocks.1",
            "up 1, 0.2 cross out",
        ),
        ("mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "q", "mid_block", "mid, 0.0 self q"),
        ("up_blocks.0.resnets.0.conv1", "conv", "up_blocks.0", "up_blocks.0.resnets.0.conv1"),
    ],
)
def test_names_of_layers(layer: str, projection: str, block: str, short: str) -> None:
    assert (projection_name(layer), block_name(layer), short_name(layer)) == (projection, block, short)
