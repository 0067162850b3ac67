"""Analyses on a tiny network against what is known of its masks."""

from __future__ import annotations

import csv
import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

import maskunet as mu
from maskunet.analysis import NAMES, AnalysisSettings, analyze, emergence
from maskunet.analysis.context import choose_subject, chosen
from maskunet.analysis.embedding import principal_axes
from maskunet.analysis.emergence import halfway, settled
from maskunet.analysis.layer_names import projection_of, short_name
from maskunet.analysis.overlap import Overlaps
from maskunet.attaching.attachment import attachment_of
from maskunet.errors import DataError, TargetError
from maskunet.maskers import FixedMasks, MaskSchedule, RandomMasks
from maskunet.targets import describe, maskable_layers

PROMPTS = ("a b", "c d")
SETTINGS = AnalysisSettings(PROMPTS, num_inference_steps=3, count=4, batch_size=2)


def values(rows: list[dict[str, Any]], measure: str, **keys: Any) -> list[float]:
    return [
        r["value"] for r in rows if r["measure"] == measure and all(r.get(key) == value for key, value in keys.items())
    ]


def generator(pipe: StableDiffusionPipeline) -> mu.MaskGenerator:
    """A masker whose masks depend on timestep and sample."""
    masker = mu.MaskGenerator.for_unet(pipe.unet, mu.MaskGeneratorConfig(initial_logit=-0.2), seed=0)
    with torch.no_grad():
        for i, parameter in enumerate(masker.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
            parameter.add_(0.3 * noise)
    return masker.eval()


def schedule(pipe: StableDiffusionPipeline, samples: int = 2) -> MaskSchedule:
    """What a search leaves behind: other bits at each of three timesteps and for each sample, those of v the same."""
    network = describe(pipe)
    found = MaskSchedule(network, [667.0, 334.0, 1.0], samples)
    for i in range(3):
        for k, layer in enumerate(network.layers):
            number = k if projection_of(layer.name) == "v" else 100 * i + k
            draw = torch.Generator().manual_seed(number)
            found.set(i, {layer.name: torch.rand(samples, *layer.shape, generator=draw) < 0.8})
    return found


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_density_is_that_of_the_masks(pipe: StableDiffusionPipeline, guidance_scale: float) -> None:
    masks = schedule(pipe)
    mu.attach(pipe, masks)
    settings = AnalysisSettings(PROMPTS, 3, guidance_scale, count=4, batch_size=1)  # raised to the two sets
    found = analyze("density", pipe, settings)
    times = sorted({r["timestep"] for r in found.rows if r["timestep"] != "mean"}, reverse=True)
    expected = [float(1 - masks.density()[masks.nearest(t)].mean()) for t in times]
    measured = [values(found.rows, "mask ratio by all", timestep=t)[0] for t in times]
    assert measured == pytest.approx(expected, abs=1e-5)
    assert found.settings["n"] == 4
    assert found.settings["masker"] == "MaskSchedule"


def test_density_of_the_conditional_half_of_a_generator(pipe: StableDiffusionPipeline) -> None:
    mu.attach(pipe, generator(pipe))
    found = analyze("density", pipe, AnalysisSettings(PROMPTS, 2, 4.0, count=2, batch_size=1))
    again = analyze("density", pipe, AnalysisSettings(PROMPTS, 2, 4.0, count=2, batch_size=2))
    assert [r["value"] for r in found.rows] == pytest.approx([r["value"] for r in again.rows], abs=1e-3)
    with mu.record(pipe) as trace:
        latents = [torch.Generator().manual_seed(i) for i in range(2)]
        pipe(list(PROMPTS), num_inference_steps=2, guidance_scale=4.0, generator=latents, output_type="latent")
    mask = trace.calls[0].masks
    kept = sum(m[2:].float().mean() * m[0].numel() for m in mask.values()) / sum(m[0].numel() for m in mask.values())
    time = trace.timesteps[0]
    assert values(again.rows, "mask ratio by all", timestep=time) == pytest.approx([float(1 - kept)], abs=1e-5)


def test_density_over_training_and_on_xl(sdxl_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    mu.attach(sdxl_pipe, RandomMasks.for_unet(sdxl_pipe.unet, density=0.75))
    stats = tmp_path / "stats.jsonl"
    stats.write_text('{"step": 1, "loss": 1}\n{"step": 2, "density": 0.9}\n\n{"step": 4, "density": 0.8}\n')
    found = analyze("density", sdxl_pipe, AnalysisSettings(PROMPTS, 2, run=tmp_path))
    assert values(found.rows, "mask ratio over training") == pytest.approx([0.1, 0.2])
    assert "10.00 % at step 2 to 20.00 % at step 4" in found.answer
    assert values(found.rows, "mask ratio by all", timestep="mean") == pytest.approx([0.25], abs=0.02)
    for text, said in (('{"step": 1}', "has none"), ("no json", "could not read")):
        stats.write_text(text)
        with pytest.raises(DataError, match=said):
            analyze("density", sdxl_pipe, AnalysisSettings(PROMPTS, 2, run=stats))


def test_overlaps_are_those_of_sets() -> None:
    off = torch.rand(3, 2, 50, generator=torch.Generator().manual_seed(0)) < 0.4
    found = Overlaps(3, 2)
    found.add(off[:, :, :30])
    found.add(off[:, :, 30:])
    for i, j in combinations(range(3), 2):
        a, b = (set(off[t, 1].nonzero().flatten().tolist()) for t in (i, j))
        assert float(found.between_timesteps()[1, i, j]) == pytest.approx(len(a & b) / len(a | b))
    a, b = (set(off[2, n].nonzero().flatten().tolist()) for n in range(2))
    assert float(found.between_samples()[2, 0, 1]) == pytest.approx(len(a & b) / len(a | b))
    assert found.by_chance()[0] == pytest.approx(0.4 / 1.6, abs=0.06)


def test_masks_sees_that_v_stays(pipe: StableDiffusionPipeline) -> None:
    mu.attach(pipe, schedule(pipe))
    found = analyze("masks", pipe, SETTINGS)
    for name, stays in (("v", True), ("q", False)):
        overlap = values(found.rows, "overlap between timesteps", projection=name)[0]
        assert overlap == 1 if stays else overlap == pytest.approx(1 / 9, abs=0.03)
    assert "v stays more than the others" in found.answer
    assert found.settings["n"] == 4
    with pytest.raises(DataError, match="name of a masked layer"):
        analyze("masks", pipe, AnalysisSettings(PROMPTS, layer="conv_in"))


def test_weights_sees_which_are_switched_off(pipe: StableDiffusionPipeline) -> None:
    network, modules = describe(pipe), maskable_layers(pipe.unet)
    masks = {}
    for layer in network.layers:
        size = modules[layer.name].weight.abs()
        masks[layer.name] = size < size.flatten().kthvalue(size.numel() // 2 + 1).values
    mu.attach(pipe, FixedMasks(masks))
    found = analyze("weights", pipe, SETTINGS)
    by_tenth = [values(found.rows, "mask ratio by magnitude", timestep="mean", tenth=k)[0] for k in range(1, 11)]
    assert by_tenth == pytest.approx([0.0] * 5 + [1.0] * 5, abs=0.02)
    assert "more often than small ones" in found.answer


def test_nothing_to_see_is_said(pipe: StableDiffusionPipeline) -> None:
    mu.attach(pipe, RandomMasks.for_unet(pipe.unet, density=1.0))
    assert "keep every weight" in analyze("density", pipe, SETTINGS).answer
    assert "nothing to compare" in analyze("masks", pipe, SETTINGS).answer
    assert "No weight" in analyze("weights", pipe, SETTINGS).answer
    assert "nothing for sure" in analyze("emergence", pipe, SETTINGS).answer


def test_steps_until_a_picture_comes() -> None:
    distances = torch.tensor([[1.0, 1.0], [0.4, 0.4], [0.6, 0.3], [0.0, 0.0]])
    assert halfway(distances).tolist() == [4, 2]
    right = torch.tensor([[False, True, False], [True, True, False], [True, True, False]])
    assert settled(right)[:2].tolist() == [2, 1]
    assert settled(right)[2].isnan()


def test_axes_are_those_of_greatest_variance() -> None:
    points = torch.randn(400, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 9.0, 1.0, 4.0, 1.0])
    axes, share = principal_axes(points)
    assert axes.abs().argmax(0).tolist() == [1, 3]
    assert axes.gather(0, axes.abs().argmax(0, keepdim=True)).min() > 0.9
    assert share == pytest.approx(97 / 100, abs=0.01)


def test_small_things() -> None:
    assert chosen(25, 4) == [0, 8, 16, 24]
    assert chosen(2, 4) == [0, 1]
    name = "up_blocks.1.attentions.0.transformer_blocks.2.attn2.to_out.0"
    assert (projection_of(name), short_name(name)) == ("out", "up 1, 0.2 cross out")
    assert short_name("mid_block.attentions.0.transformer_blocks.0.attn1.to_q") == "mid, 0.0 self q"
    assert (projection_of("up_blocks.0.resnets.0.conv1"), short_name("x.conv1")) == ("conv", "x.conv1")


def test_random_puts_back_what_was_attached(pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    before = mu.attach(pipe, generator(pipe))
    shares: list[float] = []
    settings = AnalysisSettings(PROMPTS, 2, rates=(0.1, 0.5), mask_seeds=2)
    found = analyze("random", pipe, settings, progress=lambda share, word: shares.append(share))
    assert attachment_of(pipe) is before
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert "left out" in found.answer
    low, high = values(found.rows, "change of a picture")
    assert 0 < low < high
    removed = sum(values(found.rows, "weights, removed at step 1"))
    assert removed / sum(values(found.rows, "weights, all")) == pytest.approx(0.5, abs=0.03)
    assert not values(found.rows, "FID minus base")
    assert found.settings["masker"] == "random masks"
    found.save(tmp_path)


def test_a_search_result_of_one_prompt(pipe: StableDiffusionPipeline) -> None:
    mu.attach(pipe, schedule(pipe, 1))
    settings = AnalysisSettings(("a b",), num_inference_steps=3, mask_seeds=1, rates=(0.2,))
    for name in ("random", "density", "masks", "weights", "emergence"):
        found = analyze(name, pipe, settings)
        assert found.settings["n"] == 1
        assert "nan" not in found.answer
        found.draw()


def test_examples_are_the_pictures_of_their_prompts(pipe: StableDiffusionPipeline) -> None:
    mu.attach(pipe, RandomMasks.for_unet(pipe.unet, density=0.5))
    settings = AnalysisSettings(("a", "b", "c"), num_inference_steps=2, batch_size=1)
    course, _ = emergence._course(choose_subject(pipe, settings, 1, lambda share, word: None), "masked", (0, 1))
    assert course.shown.shape[1] == 2
    assert course.final.shape[0] == 3
    last = (course.final[:2] * 255).round()
    assert (course.shown[-1].float() - last).abs().mean() < (course.shown[-1].flip(0).float() - last).abs().mean()


def test_files_hold_what_was_measured(pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    before = mu.attach(pipe, schedule(pipe))
    for name in ("density", "masks", "weights", "emergence"):
        found = analyze(name, pipe, SETTINGS)
        written = found.save(tmp_path)
        assert [p.name for p in written] == [f"{name}.{kind}" for kind in ("png", "svg", "csv", "json")]
        record = json.loads((tmp_path / f"{name}.json").read_text())
        assert record["answer"] == found.answer
        assert record["settings"]["n"] == 4
        assert record["settings"]["machine"]["cores"] >= 1
        with (tmp_path / f"{name}.csv").open() as file:
            table = list(csv.DictReader(file))
        assert len(table) == len(found.rows) == len(record["rows"])
        assert {"measure", "value", "low", "high", "unit"} <= set(table[0])
        assert "nan" not in (tmp_path / f"{name}.csv").read_text().lower()
    assert attachment_of(pipe) is before
    assert before.trace is None
    assert not list(tmp_path.glob("*.part"))
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="folder that can be written"):
        found.save(tmp_path / "file")


def test_bad_input_is_said(pipe: StableDiffusionPipeline) -> None:
    assert set(NAMES) == {"random", "density", "masks", "weights", "emergence", "samples"}
    with pytest.raises(DataError, match="expected an analysis"):
        analyze("mask", pipe, SETTINGS)
    with pytest.raises(TargetError, match="none is"):
        analyze("density", pipe, SETTINGS)
    mu.attach(pipe, schedule(pipe))
    with mu.disabled(pipe), pytest.raises(TargetError, match="switched off"):
        analyze("masks", pipe, SETTINGS)
    with pytest.raises(DataError, match="only the bundled model has its own"):
        analyze("density", pipe)
    with pytest.raises(TargetError, match="multiple of 2 prompts"):
        analyze("density", pipe, AnalysisSettings(PROMPTS, 2, count=3))
    with pytest.raises(DataError, match="--reference"):
        analyze("samples", pipe, SETTINGS)
    with pytest.raises(DataError, match="at least 3 pictures"):
        analyze("samples", pipe, AnalysisSettings(PROMPTS))
    for wrong in ({"rates": (1.0,)}, {"rates": ()}, {"count": 0}, {"prompts": ()}, {"prompts": ("a", " ")}):
        with pytest.raises(DataError, match="expected"):
            AnalysisSettings(**wrong)  # type: ignore[arg-type]
