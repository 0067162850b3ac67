"""The page of `maskunet demo`."""

from __future__ import annotations

import torch

from maskunet.cli.demo_page import demo_page
from maskunet.evaluation import Comparison
from maskunet.shapes.scenes import held_out_prompts


def test_page_is_self_contained_and_escaped() -> None:
    right = torch.zeros(1, 6, dtype=torch.bool)
    right[0, 0] = True
    verdicts = torch.stack([right, ~right])
    reasons = [[[None if ok else "wrong" for ok in run] for run in side.tolist()] for side in verdicts]
    comparison = Comparison(held_out_prompts(6), 1, verdicts, reasons, torch.zeros(2, 0))
    images = {"base": torch.rand(6, 3, 64, 64), "masked": torch.rand(6, 3, 64, 64)}
    density = {"all <b>": [(1.0, 0.5), (2.0, 0.6)]}
    text = demo_page(comparison, images, density, title="a < b", summary=["one & two"])
    assert text.count("data:image/png;base64,") == 12
    assert "://" not in text  # "http" alone occurs in the base64 of some images
    assert "a &lt; b" in text
    assert "one &amp; two" in text
    assert "all &lt;b&gt;" in text
    assert text.count('class="right"') == 6
    assert text.count('class="wrong"') == 6
