"""The recipe in little: every stage runs, resumes, and leaves folders that the standard loaders read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPModel

import maskunet as mu
from maskunet.errors import CheckpointError
from maskunet.shapes.scenes import training_scene
from maskunet.shapes.vocabulary import COLOURS, SHAPES
from maskunet.zoo.recipe.clip import wrong_caption
from maskunet.zoo.recipe.matching import Contents, shape_tokens
from maskunet.zoo.recipe.pipeline import Recipe, train_shapes
from maskunet.zoo.recipe.scene_groups import GROUP, Matches, grouped_scenes
from maskunet.zoo.recipe.stage import StageConfig, run_stage
from maskunet.zoo.recipe.tokenizer import MAX_LENGTH, build_tokenizer, world_words


def test_tokenizer_spells_the_world_in_one_token_a_word() -> None:
    tokenizer = build_tokenizer()
    assert tokenizer.eos_token_id == len(tokenizer) - 1
    for word in world_words():
        assert len(tokenizer(word).input_ids) == 3
    for i in range(300):
        caption = training_scene(i).caption
        ids = tokenizer(caption).input_ids
        assert len(ids) == len(caption.split()) + 2 <= MAX_LENGTH
    assert len(tokenizer("zebra!").input_ids) > 3


def test_swapped_captions_say_something_else_in_known_words() -> None:
    import random

    words = set(world_words())
    for i in range(500):
        caption = training_scene(i).caption
        wrong = wrong_caption(caption, random.Random(i))
        assert wrong != caption
        assert set(wrong.split()) <= words


def test_captions_that_a_picture_shows_as_well_are_known() -> None:
    scenes = grouped_scenes(60, 1)
    assert len(scenes) == 60 * GROUP
    found = Matches(scenes)(torch.arange(len(scenes)))
    assert not found.diagonal().any()
    pairs = {(i, j) for i, j in found.nonzero().tolist()}
    assert pairs
    # No near miss is called right.
    assert all(i // GROUP != j // GROUP for i, j in pairs)
    for i, j in pairs:
        assert sorted(o.shape for o in scenes[i].objects) == sorted(o.shape for o in scenes[j].objects)
    said = {}
    for index, scene in enumerate(scenes):
        said.setdefault(scene.caption, []).append(index)
    assert all((i, j) in pairs for same in said.values() for i in same for j in same if i != j)


def _toy(folder: Path, config: StageConfig, stop_at: int | None = None) -> nn.ModuleDict:
    torch.manual_seed(0)
    modules = nn.ModuleDict({"line": nn.Linear(3, 1)})
    steps = 0

    def loss(generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        nonlocal steps
        steps += 1
        if steps == stop_at:
            raise KeyboardInterrupt
        x = torch.randn(config.batch_size, 3, generator=generator)
        return (modules["line"](x) - x.sum(1, keepdim=True)).square().mean(), {}

    return run_stage("toy", modules, loss, config, folder, progress=False)


def test_stage_resumes_bit_for_bit_and_learns(tmp_path: Path) -> None:
    config = StageConfig(120, 8, 0.05, warmup=5, decay=0.5, save_every_s=0)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = _toy(tmp_path / "a", config)
    with pytest.raises(KeyboardInterrupt):
        _toy(tmp_path / "b", config, stop_at=77)
    resumed = _toy(tmp_path / "b", config)
    assert torch.equal(whole["line"].weight, resumed["line"].weight)
    torch.testing.assert_close(whole["line"].weight, torch.ones(1, 3), atol=0.05, rtol=0)


def test_stage_takes_another_length_only_before_its_decay(tmp_path: Path) -> None:
    config = StageConfig(100, 8, 0.05, warmup=5, decay=0.5, save_every_s=0)
    with pytest.raises(KeyboardInterrupt):
        _toy(tmp_path, config, stop_at=20)
    with pytest.raises(KeyboardInterrupt):
        _toy(tmp_path, StageConfig(60, 8, 0.05, warmup=5, decay=0.5, save_every_s=0), stop_at=35)
    with pytest.raises(CheckpointError, match="other settings"):
        _toy(tmp_path, config)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo")
    recipe = Recipe().shortened(0.0005)
    train_shapes(folder / "out", folder / "work", recipe, progress=False)
    return folder


def test_recipe_leaves_a_standard_pipeline(trained: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(trained / "out" / "shapes")
    pipe.set_progress_bar_config(disable=True)
    image = pipe("a red circle", num_inference_steps=2).images[0]
    assert image.size == (64, 64)
    assert {p.dtype for part in (pipe.unet, pipe.vae, pipe.text_encoder) for p in part.parameters()} == {torch.float32}
    stored = {path.parent.name: load_file(path) for path in (trained / "out" / "shapes").rglob("*.safetensors")}
    assert {name: {t.dtype for t in tensors.values()} for name, tensors in stored.items()} == {
        "unet": {torch.float16},
        "vae": {torch.float16},
        "text_encoder": {torch.float32},
    }
    assert pipe.vae.config.scaling_factor != 0.18215


@pytest.mark.parametrize(("name", "width"), [("shapes-clip", 128), ("shapes-reward", 128), ("shapes-referee", 64)])
def test_recipe_leaves_standard_clips(trained: Path, name: str, width: int) -> None:
    clip = CLIPModel.from_pretrained(trained / "out" / name)
    out = clip.get_image_features(pixel_values=torch.zeros(2, 3, 64, 64)).pooler_output
    assert out.shape == (2, width)
    config = json.loads((trained / "out" / name / "preprocessor_config.json").read_text())
    assert config["image_mean"] == [0.5, 0.5, 0.5]


def test_recipe_leaves_a_matcher(trained: Path) -> None:
    reward = mu.rewards.load("shapes-matching", trained / "out" / "shapes-matching")
    pictures = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = reward(pictures, ["a red circle", "two stars"])
    assert found.shape == (2,)
    assert (found <= 0).all()
    found.sum().backward()
    assert pictures.grad is not None
    assert (pictures.grad != 0).any()


def test_contents_of_pictures_and_names_of_shapes() -> None:
    scenes = [training_scene(i, 5) for i in range(60)]
    counts, places, colours = Contents.of(scenes)
    tokenizer = build_tokenizer()
    names = shape_tokens(tokenizer)
    for n, scene in enumerate(scenes):
        assert int(counts[n].sum()) == len(scene.objects)
        said = {int(i) for i in names[tokenizer(scene.caption)["input_ids"]]} - {-1}
        assert said == {SHAPES.index(need["class"]) for need in scene.include}
        for one in scene.objects:
            k = SHAPES.index(one.shape)
            if counts[n, k] == 1:
                assert places[n, k].tolist() == pytest.approx([one.x / 32 - 1, one.y / 32 - 1], abs=1e-5)
                assert colours[n, k] == COLOURS.index(one.colour)
            else:
                assert colours[n, k] == -100


def test_recipe_is_small_and_finished_stages_are_kept(trained: Path) -> None:
    stored = [t for path in (trained / "out").rglob("*.safetensors") for t in load_file(path).values()]
    assert sum(2 * t.numel() for t in stored) <= 33e6  # in half precision; the text encoder is stored in single
    before = (trained / "out" / "shapes" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    train_shapes(trained / "out", trained / "work", Recipe().shortened(0.0005), progress=False)
    after = (trained / "out" / "shapes" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert before == after
