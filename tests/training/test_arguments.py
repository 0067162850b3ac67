"""What `train` accepts: methods, maskers and their sources, data sets and rewards by name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

import maskunet as mu
from maskunet import zoo
from maskunet.data import CachedLatents
from maskunet.errors import CheckpointError, DataError, SettingError, TargetError
from maskunet.rewards import FunctionReward
from maskunet.training.arguments import as_datasets, as_method
from maskunet.training.mask_method import MaskMethod
from maskunet.zoo.dataset import encode_world

CONFIG = mu.TrainConfig(
    max_train_steps=1,
    train_batch_size=2,
    gradient_accumulation_steps=1,
    learning_rate=1e-3,
    lr_warmup_steps=0,
    validation_samples=2,
)


@pytest.fixture(scope="module")
def shapes() -> StableDiffusionPipeline:
    return zoo.load("shapes")


@pytest.fixture
def dataset() -> CachedLatents:
    mean = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return CachedLatents(mean, torch.full_like(mean, 0.1), tuple("abcdef"))


def redness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images[:, 0].mean((1, 2))


def test_a_masker_by_name_trains_on_a_data_set_by_name(
    shapes: StableDiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maskunet.training.dataset.TRAIN_SAMPLES", 4)
    run = mu.train(shapes, "shapes-masker", "shapes-art", CONFIG, tmp_path, progress=False)
    start = mu.load("shapes-masker", shapes)
    assert type(run.masker) is type(start)
    assert run.masker.settings == start.settings
    assert not all(torch.equal(v, start.state_dict()[k]) for k, v in run.masker.state_dict().items())
    assert run.card["dataset"] == "shapes-art"
    assert "held-out" in run.card["recipe"]["Gain in loss over the base model"]


def test_sources_and_objects_train_the_same(
    pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path
) -> None:
    masker = mu.LowRankMasker.for_unet(pipe.unet, mu.LowRankMaskerConfig(rank=2), seed=0)
    folder = masker.save_pretrained(tmp_path / "masker")
    methods: dict[str, Any] = {
        "path": folder,
        "text": os.fspath(folder),
        "method": MaskMethod(mu.load(folder, pipe)),
        "masker": masker,
    }
    states = [
        mu.train(pipe, method, dataset, CONFIG, tmp_path / name, progress=False).masker.state_dict()
        for name, method in methods.items()
    ]
    for state in states[1:]:
        assert all(torch.equal(v, states[0][k]) for k, v in state.items())


def test_a_target_density_reaches_the_method(pipe: StableDiffusionPipeline) -> None:
    masker = mu.LowRankMasker.for_unet(pipe.unet, seed=0)
    method = as_method(masker, pipe, mu.TrainConfig(target_density=0.9, gumbel=False))
    assert method.settings["density"]
    assert not method.settings["gumbel"]


def test_validation_of_its_own_leaves_the_data_set_whole(
    shapes: StableDiffusionPipeline, dataset: CachedLatents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maskunet.training.dataset.TRAIN_SAMPLES", 3)
    train, held_out = as_datasets("shapes", None, shapes, CONFIG, False)
    expected = encode_world(shapes, "shapes", train_samples=3, held_out_samples=2)
    assert held_out is not None
    assert (train.captions, held_out.captions) == (expected[0].captions, expected[1].captions)
    assert as_datasets("shapes", dataset, shapes, CONFIG, False)[1] is dataset
    assert as_datasets(dataset, None, shapes, CONFIG, False) == (dataset, None)


@pytest.mark.parametrize("reward", [redness, FunctionReward(redness)], ids=["function", "reward"])
def test_rewards_as_functions_and_objects(
    pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path, reward: Any
) -> None:
    options = {"reward_num_inference_steps": 2, "validation_rewards": 2, "reward_guidance_scale": 3.0}
    config = mu.TrainConfig(**vars(CONFIG) | options | {"objective": "reward"})
    masker = mu.LowRankMasker.for_unet(pipe.unet, mu.LowRankMaskerConfig(initial_logit=0.3), seed=0)
    last = mu.train(pipe, masker, dataset, config, tmp_path, reward=reward, progress=False).stats[-1]
    assert 0 < last["reward"] < 1
    assert last["reward_gain"] == pytest.approx(0, abs=1e-6)  # every mask still keeps every weight


def test_a_reward_by_name(shapes: StableDiffusionPipeline, tmp_path: Path) -> None:
    data, _ = encode_world(shapes, "shapes", train_samples=2, held_out_samples=1)
    options = {"reward_num_inference_steps": 1, "validation_rewards": 0, "validation_samples": 0}
    config = mu.TrainConfig(**vars(CONFIG) | options | {"objective": "reward"})
    mu.train(shapes, "shapes-masker", data, config, tmp_path, reward="shapes-matching:2", progress=False)
    assert '"reward": "2 shapes-matching"' in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pipe": 3}, "expected a Stable Diffusion pipeline.*got int"),
        ({"method": 3}, "expected a method.*got int"),
        ({"method": None}, "expected a method.*got NoneType"),
        ({"dataset": [1, 2]}, "expected a data set.*got list"),
        ({"dataset": CachedLatents(torch.zeros(0, 4, 8, 8), torch.zeros(0, 4, 8, 8), ())}, "an empty data set"),
        ({"validation": "shapes"}, "expected validation to be CachedLatents or None, got str"),
        ({"config": {"max_train_steps": 1}}, "expected config to be a TrainConfig, got dict"),
        ({"reward": 3}, "expected a reward.*got int"),
        ({"reward": redness}, "expected objective 'reward' with a reward, got 'diffusion'"),
        ({"config": mu.TrainConfig(objective="reward")}, "expected a reward for objective 'reward', got None"),
    ],
)
def test_arguments_of_wrong_types_are_one_line(
    pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    masker = mu.LowRankMasker.for_unet(pipe.unet, seed=0)
    arguments = {"pipe": pipe, "method": masker, "dataset": dataset, "config": CONFIG} | changes
    with pytest.raises(SettingError, match=message) as caught:
        mu.train(**arguments, output_dir=tmp_path / "run", progress=False)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_sources_that_do_not_exist_are_one_line(
    pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path
) -> None:
    masker = mu.LowRankMasker.for_unet(pipe.unet, seed=0)
    with pytest.raises(CheckpointError, match="masker's folder or a hub id"):
        mu.train(pipe, tmp_path / "gone", dataset, CONFIG, tmp_path / "run", progress=False)
    with pytest.raises(DataError, match="existing folder or file"):
        mu.train(pipe, masker, tmp_path / "gone", CONFIG, tmp_path / "run", progress=False)
    with pytest.raises(TargetError):
        mu.train(pipe, "shapes-masker", dataset, CONFIG, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
