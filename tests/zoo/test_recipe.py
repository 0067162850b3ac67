"""The recipe at a small size: every stage runs, resumes, and writes folders that the standard loaders read."""

from __future__ import annotations

import json
import random
from dataclasses import replace
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
from maskunet.zoo.recipe.matching import SceneContents, shape_tokens
from maskunet.zoo.recipe.pipeline import Recipe, train_shapes
from maskunet.zoo.recipe.scene_groups import (
    GROUP,
    SharedCaptions,
    blend_with_near_miss,
    distort,
    draw_scene_groups,
    shift_hue,
)
from maskunet.zoo.recipe.stage import StageConfig, run_stage
from maskunet.zoo.recipe.tokenizer import MAX_LENGTH, build_tokenizer, world_words


def test_words_of_captions_are_one_token_each() -> None:
    tokenizer = build_tokenizer()
    assert tokenizer.eos_token_id == len(tokenizer) - 1
    for word in world_words():
        assert len(tokenizer(word).input_ids) == 3
    for i in range(300):
        caption = training_scene(i).caption
        ids = tokenizer(caption).input_ids
        assert len(ids) == len(caption.split()) + 2 <= MAX_LENGTH
    assert len(tokenizer("zebra!").input_ids) > 3


def test_wrong_captions_differ_and_use_known_words() -> None:
    words = set(world_words())
    for i in range(500):
        caption = training_scene(i).caption
        wrong = wrong_caption(caption, random.Random(i))
        assert wrong != caption
        assert set(wrong.split()) <= words


def test_images_that_show_another_scenes_caption_are_found() -> None:
    scenes = draw_scene_groups(60, 1)
    assert len(scenes) == 60 * GROUP
    is_shown = SharedCaptions(scenes)(torch.arange(len(scenes)))
    assert not is_shown.diagonal().any()
    pairs = {(i, j) for i, j in is_shown.nonzero().tolist()}
    assert pairs
    # No near miss counts as right.
    assert all(i // GROUP != j // GROUP for i, j in pairs)
    for i, j in pairs:
        assert sorted(o.shape for o in scenes[i].objects) == sorted(o.shape for o in scenes[j].objects)
    by_caption: dict[str, list[int]] = {}
    for index, scene in enumerate(scenes):
        by_caption.setdefault(scene.caption, []).append(index)
    assert all((i, j) in pairs for same in by_caption.values() for i in same for j in same if i != j)


def test_blends_lie_between_a_scene_and_its_near_miss() -> None:
    scene, miss = torch.rand(2, 40, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    blends = blend_with_near_miss(torch.stack([scene, miss], 1), torch.Generator().manual_seed(0))
    torch.testing.assert_close((blends - scene).abs() + (blends - miss).abs(), (scene - miss).abs())
    shares = ((blends - miss) / (scene - miss)).mean(1)
    is_even = (shares - 0.5).abs().amax((1, 2)) < 1e-3
    assert 5 < is_even.sum() < 30
    assert (shares[~is_even].amax((1, 2)) - shares[~is_even].amin((1, 2)) > 0.3).all()


def test_off_hue_images_keep_their_grey_and_turn_by_15_to_30_degrees() -> None:
    images = torch.rand(20, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    shifted = shift_hue(images, torch.Generator().manual_seed(1))
    torch.testing.assert_close(shifted.mean(1), images.mean(1))
    chroma, turned = (x - x.mean(1, keepdim=True) for x in (images, shifted))
    degrees = torch.rad2deg(torch.cosine_similarity(chroma, turned, dim=1).clamp(-1, 1).acos())
    assert degrees.min() > 14.9
    assert degrees.max() < 30.1
    torch.testing.assert_close(degrees, degrees[:, :1, :1].expand_as(degrees), atol=0.1, rtol=0)


def test_distorted_images_move_pixels_and_keep_colours() -> None:
    ramp = torch.linspace(0, 1, 64).expand(8, 3, 64, 64)
    distorted = distort(ramp, torch.Generator().manual_seed(0))
    moved = 63 * (distorted - ramp).abs()  # pixels along the ramp
    assert (moved.amax((1, 2, 3)) > 1.5).all()
    assert moved.max() < 16
    torch.testing.assert_close(distorted[:, 0], distorted[:, 1])


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
    uninterrupted = _toy(tmp_path / "a", config)
    with pytest.raises(KeyboardInterrupt):
        _toy(tmp_path / "b", config, stop_at=77)
    resumed = _toy(tmp_path / "b", config)
    assert torch.equal(uninterrupted["line"].weight, resumed["line"].weight)
    torch.testing.assert_close(uninterrupted["line"].weight, torch.ones(1, 3), atol=0.05, rtol=0)


def test_stage_takes_another_length_only_before_its_decay(tmp_path: Path) -> None:
    config = StageConfig(100, 8, 0.05, warmup=5, decay=0.5, save_every_s=0)
    with pytest.raises(KeyboardInterrupt):
        _toy(tmp_path, config, stop_at=20)
    with pytest.raises(KeyboardInterrupt):
        _toy(tmp_path, StageConfig(60, 8, 0.05, warmup=5, decay=0.5, save_every_s=0), stop_at=35)
    with pytest.raises(CheckpointError, match="other settings"):
        _toy(tmp_path, config)


#: A few steps per stage on as few groups as a batch has.
RECIPE = replace(Recipe().shortened(0.0005), denoiser_pool=64, clip_pool=100, reward_groups=30, referee_groups=30)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo")
    train_shapes(folder / "out", folder / "work", RECIPE, progress=False)
    return folder


def test_recipe_writes_a_standard_pipeline(trained: Path) -> None:
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
def test_recipe_writes_standard_clips(trained: Path, name: str, width: int) -> None:
    clip = CLIPModel.from_pretrained(trained / "out" / name)
    features = clip.get_image_features(pixel_values=torch.zeros(2, 3, 64, 64)).pooler_output
    assert features.shape == (2, width)
    config = json.loads((trained / "out" / name / "preprocessor_config.json").read_text())
    assert config["image_mean"] == [0.5, 0.5, 0.5]


def test_recipe_writes_a_matcher(trained: Path) -> None:
    reward = mu.rewards.load("shapes-matching", trained / "out" / "shapes-matching")
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    values = reward(images, ["a red circle", "two stars"])
    assert (values <= 0).all()
    values.sum().backward()
    assert images.grad is not None
    assert (images.grad != 0).any()


def test_contents_of_scenes_and_tokens_of_shapes() -> None:
    scenes = [training_scene(i, 5) for i in range(60)]
    counts, positions, colours = SceneContents.from_scenes(scenes)
    tokenizer = build_tokenizer()
    shape_of_token = shape_tokens(tokenizer)
    for n, scene in enumerate(scenes):
        assert int(counts[n].sum()) == len(scene.objects)
        named = {int(i) for i in shape_of_token[tokenizer(scene.caption)["input_ids"]]} - {-1}
        assert named == {SHAPES.index(requirement["class"]) for requirement in scene.include}
        for o in scene.objects:
            k = SHAPES.index(o.shape)
            if counts[n, k] == 1:
                assert positions[n, k].tolist() == pytest.approx([o.x / 32 - 1, o.y / 32 - 1], abs=1e-5)
                assert colours[n, k] == COLOURS.index(o.colour)
            else:
                assert colours[n, k] == -100


def test_recipe_is_small_and_finished_stages_are_not_trained_again(trained: Path) -> None:
    stored = [t for path in (trained / "out").rglob("*.safetensors") for t in load_file(path).values()]
    assert sum(2 * t.numel() for t in stored) <= 33e6  # in half precision; the text encoder is stored in single
    weights = trained / "out" / "shapes" / "unet" / "diffusion_pytorch_model.safetensors"
    logs = {path: path.read_text() for path in (trained / "work").glob("*.jsonl")}
    (trained / "out" / "shapes-reward" / "README.md").write_text("model card")
    first = weights.read_bytes()
    train_shapes(trained / "out", trained / "work", RECIPE, progress=False)
    assert weights.read_bytes() == first
    assert {path: path.read_text() for path in (trained / "work").glob("*.jsonl")} == logs
    assert len(logs) == 9
    assert (trained / "out" / "shapes-reward" / "README.md").read_text() == "model card"


def test_recipe_replaces_no_other_folder(tmp_path: Path) -> None:
    (tmp_path / "out" / "shapes").mkdir(parents=True)
    (tmp_path / "out" / "shapes" / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match=r"expected .*shapes to be free or an earlier model's folder"):
        train_shapes(tmp_path / "out", tmp_path / "work", progress=False)
    assert (tmp_path / "out" / "shapes" / "thesis.tex").exists()
