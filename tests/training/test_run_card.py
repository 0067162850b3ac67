"""The model card that a run leaves beside its masker, read as the hub reads it."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import StableDiffusionPipeline
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

import maskunet as mu
from maskunet.data import CachedLatents
from maskunet.shapes.scenes import training_scene
from maskunet.training import build_method
from maskunet.zoo.dataset import encode_scenes

CONFIG = mu.TrainConfig(
    max_train_steps=2,
    train_batch_size=2,
    gradient_accumulation_steps=2,
    snr_gamma=5.0,
    gumbel=False,
    validation_samples=4,
    seed=3,
    tau_end=0.5,
)


@pytest.fixture
def dataset(pipe: StableDiffusionPipeline) -> CachedLatents:
    cached = encode_scenes(pipe, [training_scene(i) for i in range(6)], "art")
    return CachedLatents(cached.mean[..., ::4, ::4], cached.std[..., ::4, ::4], cached.captions, None, cached.source)


def go(pipe: Any, dataset: CachedLatents, folder: Path, name: str = "mask", **changes: Any) -> mu.training.Run:
    method = build_method(name, pipe, mu.MaskGeneratorConfig(initial_logit=0.3), gumbel=False, rank=2)
    config = mu.TrainConfig(**{**vars(CONFIG), **changes})
    return mu.train(pipe, method, dataset, config, folder, validation=dataset, progress=False)


def table(card: ModelCard) -> dict[str, str]:
    """The recipe's rows, from the Markdown's own parse."""
    tokens = MarkdownIt().enable("table").parse(card.text)
    cells: list[str] = []
    for opening, inline in itertools.pairwise(tokens):
        if opening.type == "td_open":
            cells.append("".join(part.content for part in inline.children or []))
    return dict(zip(cells[::2], cells[1::2], strict=True))


def test_a_run_leaves_its_recipe(pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path) -> None:
    pipe.register_to_config(_name_or_path="someone/tiny-sd")
    dataset = CachedLatents(*[getattr(dataset, k) for k in ("mean", "std", "captions")], source="someone/images")
    run = go(pipe, dataset, tmp_path)
    card = ModelCard.load(tmp_path / "masker" / "README.md")
    assert card.data.to_dict() == {
        "library_name": "maskunet",
        "pipeline_tag": "text-to-image",
        "base_model": "someone/tiny-sd",
        "base_model_relation": "adapter",
        "datasets": ["someone/images"],
        "tags": ["maskunet", "text-to-image", "diffusers"],
    }
    rows, last = table(card), run.stats[-1]
    gain = rows.pop("Gain in loss over the base model")
    assert gain.startswith(
        f"{last['gain']:.3e} ± {last['gain_ci95']:.1e} (95 % interval) on 4 fixed pairs of held-out"
    )
    assert rows == {
        "Base model": "someone/tiny-sd",
        "Method": "mask (MaskGenerator)",
        "Data set": "someone/images, 6 images",
        "Steps": "2",
        "Batch": "4 (2 per process, 2 accumulated, 1 process)",
        "Learning rate": "0.001, cosine, 50 steps of warm-up",
        "Loss weights": "min-SNR, gamma 5",
        "Caption dropout": "0.1",
        "Masks in training": "by threshold",
        "Initial logit": "0.3",
        "Temperature": "1 to 0.5",
        "Precision": "no (mixed), base model in float32",
        "Seed": "3",
        "Density": f"{last['density']:.4f} of the masked weights kept, by threshold",
        "Versions": f"maskunet {mu.__version__}, torch {torch.__version__}, diffusers {diffusers.__version__}",
    }
    assert 'DiffusionPipeline.from_pretrained("someone/tiny-sd")' in card.text
    assert 'mu.attach(pipe, mu.load("this folder or repository", pipe.unet))' in card.text
    assert "maskunet generate --model" in card.text
    headings = [t for t in MarkdownIt().parse(card.text) if t.type == "heading_open"]
    assert [t.tag for t in headings] == ["h1", "h2", "h2", "h2"]


def test_folders_of_this_machine_are_not_named(
    pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path
) -> None:
    images = tmp_path / "secret" / "odd|name"
    images.mkdir(parents=True)
    pipe.save_pretrained(tmp_path / "secret" / "model")
    local = type(pipe).from_pretrained(tmp_path / "secret" / "model", safety_checker=None)
    parts = [getattr(dataset, k) for k in ("mean", "std", "captions")]
    go(local, CachedLatents(*parts, source=os.fspath(images)), tmp_path / "run")
    text = (tmp_path / "run" / "masker" / "README.md").read_text()
    assert "secret" not in text + (tmp_path / "run" / "masker" / "config.json").read_text()
    card = ModelCard(text)
    assert card.data.base_model is None
    assert card.data.datasets is None
    assert table(card)["Data set"] == "odd|name, 6 images"
    assert table(card)["Base model"] == "model"
    assert 'load_pipeline("model")' in text


def test_masks_with_lora_name_the_lora(pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path) -> None:
    run = go(pipe, dataset, tmp_path, "mask+lora", validation_samples=0, use_ema=True, target_density=0.9)
    rows = table(ModelCard.load(tmp_path / "masker" / "README.md"))
    assert rows["LoRA"] == "rank 2, trained with the masks; use both"
    assert (rows["Target density"], rows["Averaged weights"]) == ("0.9, weight 1", "decay 0.999")
    assert rows["Data set"] == "shapes-art, 6 images"
    assert "Density" not in rows
    assert go(pipe, dataset, tmp_path / "lora", "lora").card == {}
    run.masker.save_pretrained(tmp_path / "again", **run.card)
    assert (tmp_path / "again" / "README.md").read_text() == (tmp_path / "masker" / "README.md").read_text()
