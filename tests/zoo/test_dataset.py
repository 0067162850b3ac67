"""The bundled data sets: scenes by name, encoded by the pipeline's autoencoder."""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionPipeline

from maskunet.data import encode_posterior
from maskunet.errors import DataError
from maskunet.shapes.drawing import draw
from maskunet.shapes.scenes import training_scene
from maskunet.zoo.dataset import HELD_OUT_SEED, TRAIN_SEED, encode_scenes, encode_world, scenes_of


def test_bundled_worlds_by_name() -> None:
    scenes, style = scenes_of("shapes-art", 3, seed=5)
    assert style == "art"
    assert scenes == [training_scene(i, 5) for i in range(3)]
    with pytest.raises(DataError, match="shapes, shapes-art"):
        scenes_of("laion", 3, 0)


def test_scenes_are_drawn_and_encoded_in_their_style(pipe: StableDiffusionPipeline) -> None:
    scenes = [training_scene(i) for i in range(3)]
    data = encode_scenes(pipe, scenes, "art")
    mean, std = encode_posterior(pipe.vae, draw(scenes, "art"))
    assert torch.equal(data.mean, mean)
    assert torch.equal(data.std, std)
    assert data.captions == tuple(scene.caption for scene in scenes)
    assert data.source == "shapes-art"
    with pytest.raises(DataError, match="0 scenes"):
        encode_scenes(pipe, [])


def test_a_world_has_samples_to_train_on_and_others_held_out(pipe: StableDiffusionPipeline) -> None:
    train, held_out = encode_world(pipe, "shapes", train_samples=4, held_out_samples=3)
    assert train.captions == tuple(training_scene(i, TRAIN_SEED).caption for i in range(4))
    assert held_out.captions == tuple(training_scene(i, HELD_OUT_SEED).caption for i in range(3))
