"""Masks, LoRA, full fine-tuning and masks with LoRA in the same trainer."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

import maskunet as mu
from maskunet.attaching import attachment_of
from maskunet.data import CachedLatents
from maskunet.errors import CheckpointError, DataError, SettingError
from maskunet.shapes.scenes import training_scene
from maskunet.training import METHODS, FullMethod, Method, build_method
from maskunet.zoo.dataset import encode_scenes

CONFIG = mu.TrainConfig(
    max_train_steps=6,
    train_batch_size=4,
    gradient_accumulation_steps=1,
    learning_rate=0.01,
    validation_samples=8,
    checkpointing_steps=3,
)
MASK = mu.MaskGeneratorConfig(initial_logit=0.5)


def with_changes(**changes: Any) -> mu.TrainConfig:
    return mu.TrainConfig(**{**vars(CONFIG), **changes})


@pytest.fixture
def dataset(pipe: StableDiffusionPipeline) -> CachedLatents:
    cached = encode_scenes(pipe, [training_scene(i) for i in range(12)])
    return CachedLatents(cached.mean[..., ::4, ::4], cached.std[..., ::4, ::4], cached.captions)


def trained(pipe: Any, method: Method, dataset: CachedLatents, folder: Path, config: mu.TrainConfig = CONFIG) -> Any:
    mu.train(pipe, method, dataset, config, folder, progress=False)
    return torch.load(sorted(folder.glob("checkpoint-*"))[-1] / "state.pt", weights_only=True)["trained"]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


@pytest.mark.parametrize("name", METHODS)
def test_each_method_trains_its_parameters_and_loads_elsewhere(
    pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path, name: str
) -> None:
    start = copy.deepcopy(pipe.unet.state_dict())
    mask = mu.MaskGeneratorConfig(initial_logit=-0.36)  # near the threshold, so that six steps cross it
    result = trained(pipe, build_method(name, pipe, mask, rank=2), dataset, tmp_path)
    after = pipe.unet.state_dict()
    assert attachment_of(pipe) is None
    assert start.keys() == after.keys()
    assert all(torch.equal(v, after[k]) for k, v in start.items()) == (name != "full")
    lora = [k for k in result if "lora" in k]
    assert bool(lora) == ("lora" in name)
    other = copy.deepcopy(pipe)
    if name == "full":
        assert len(result) == len(list(pipe.unet.parameters()))
        loaded = type(pipe.unet).from_pretrained(tmp_path / "unet")
        assert all(torch.equal(v, after[k]) for k, v in loaded.state_dict().items())
    if lora:
        assert all(".up_blocks." in f".{k}" and ".to_" in k for k in lora)
        other.load_lora_weights(tmp_path / "lora")
    if "mask" in name:
        mu.attach(other, mu.load(tmp_path / "masker", other))
    generator = torch.Generator().manual_seed(0)
    options = {"num_inference_steps": 2, "output_type": "latent"}
    images = [p("a red circle", generator=generator.manual_seed(0), **options).images for p in (pipe, other)]
    assert torch.equal(*images) == (name == "full")


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("extras", [{}, {"use_ema": True, "gradient_accumulation_steps": 2, "snr_gamma": 5.0}])
def test_stopped_and_resumed_equals_uninterrupted(
    pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path, name: str, extras: dict[str, Any]
) -> None:
    def build(on: StableDiffusionPipeline) -> Method:
        return build_method(name, on, MASK, rank=2, dropout=0.1)

    pipes = [copy.deepcopy(pipe) for _ in range(3)]
    config = with_changes(**extras)
    uninterrupted = trained(pipes[0], build(pipes[0]), dataset, tmp_path / "uninterrupted", config)
    mu.train(pipes[1], build(pipes[1]), dataset, config, tmp_path / "part", progress=False)
    # As if it had been killed between the checkpoints of step 3 and step 6.
    (tmp_path / "part" / "checkpoint-000006").rename(tmp_path / "part" / "checkpoint-000006.part")
    resumed = trained(pipes[2], build(pipes[2]), dataset, tmp_path / "part", config)
    assert same(uninterrupted, resumed)
    assert (tmp_path / "uninterrupted" / "stats.jsonl").read_text() == (tmp_path / "part" / "stats.jsonl").read_text()
    assert not list(tmp_path.rglob("*.part"))


def test_accumulated_batches_equal_one_large_batch(
    pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path
) -> None:
    parts = ((8, 1), (4, 2))
    runs = [
        trained(
            pipe,
            build_method("mask", pipe, MASK),
            dataset,
            tmp_path / str(size),
            with_changes(train_batch_size=size, gradient_accumulation_steps=n, learning_rate=1e-3),
        )
        for size, n in parts
    ]
    for key, value in runs[0].items():
        torch.testing.assert_close(value, runs[1][key], atol=2e-4, rtol=1e-3)


def test_gradient_checkpointing_and_cached_embeddings_change_nothing(
    pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path
) -> None:
    plain = trained(pipe, build_method("mask", pipe, MASK), dataset, tmp_path / "a")
    checkpointed = trained(
        pipe, build_method("mask", pipe, MASK), dataset, tmp_path / "b", with_changes(gradient_checkpointing=True)
    )
    assert not any(getattr(m, "gradient_checkpointing", False) for m in pipe.unet.modules())
    for key, value in plain.items():
        torch.testing.assert_close(value, checkpointed[key], atol=1e-4, rtol=1e-3)
    cached = with_changes(cache_prompt_embeds=True)
    stats = mu.train(pipe, build_method("mask", pipe, MASK), dataset, cached, tmp_path / "c", progress=False).stats
    reference = json.loads((tmp_path / "a" / "stats.jsonl").read_text().splitlines()[-1])
    assert stats[-1]["loss"] == pytest.approx(reference["loss"], rel=2e-2)


def test_target_density_is_approached(pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path) -> None:
    densities = []
    for target in (0.5, 0.95):
        config = with_changes(
            max_train_steps=40, learning_rate=0.02, target_density=target, density_weight=100.0, logging_steps=1
        )
        masker = mu.MaskGenerator.for_unet(pipe.unet, mu.MaskGeneratorConfig(initial_logit=0.5), seed=0)
        densities.append(mu.train(pipe, masker, dataset, config, tmp_path / str(target), progress=False).stats)
    assert densities[0][-1]["expected_density"] == pytest.approx(0.5, abs=0.08)
    assert densities[1][-1]["expected_density"] == pytest.approx(0.95, abs=0.05)


def test_temperature_is_annealed(pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path) -> None:
    masker = mu.MaskGenerator.for_unet(pipe.unet, MASK, seed=0)
    mu.train(pipe, masker, dataset, with_changes(tau_end=0.25), tmp_path, progress=False)
    assert masker.tau == pytest.approx(0.25)


def test_old_checkpoints_are_deleted(pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path) -> None:
    config = with_changes(checkpointing_steps=1, checkpoints_total_limit=2)
    mu.train(pipe, build_method("mask", pipe, MASK), dataset, config, tmp_path, progress=False)
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-000005", "checkpoint-000006"]


def test_full_disk_leaves_the_last_checkpoint(
    pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = torch.save, 0

    def full(*args: Any, **options: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            Path(args[1]).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real(*args, **options)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match=r"No space left.*checkpoint-000003 is intact"):
        mu.train(pipe, build_method("mask", pipe, MASK), dataset, CONFIG, tmp_path, progress=False)
    assert [p.name for p in tmp_path.glob("checkpoint-*")] == ["checkpoint-000003"]
    monkeypatch.setattr(torch, "save", real)
    resumed = trained(pipe, build_method("mask", pipe, MASK), dataset, tmp_path)
    assert same(resumed, trained(pipe, build_method("mask", pipe, MASK), dataset, tmp_path / "uninterrupted"))


def test_fp16_on_a_cpu_writes_nothing(pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="on a CPU, got 'fp16'"):
        mu.train(
            pipe, build_method("mask", pipe, MASK), dataset, with_changes(mixed_precision="fp16"), tmp_path / "run"
        )
    assert not (tmp_path / "run").exists()


def test_unknown_methods_and_half_precision_are_refused(
    pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path
) -> None:
    with pytest.raises(SettingError, match="mask, lora, full"):
        build_method("dora", pipe)
    for options in ({"rank": 0}, {"rank": 1.5}):
        with pytest.raises(SettingError, match="rank to be an integer >= 1"):
            build_method("lora", pipe, **options)
    for dropout in (-0.1, 1.0, float("nan")):
        with pytest.raises(SettingError, match=r"dropout to be in \[0, 1\)"):
            build_method("full", pipe, dropout=dropout)
    pipe.unet.bfloat16()
    with pytest.raises(DataError, match="float32 for full"):
        mu.train(pipe, FullMethod(), dataset, with_changes(validation_samples=0), tmp_path, progress=False)


def test_bf16_trains_float32_parameters(pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path) -> None:
    for name in ("mask", "lora"):
        results, losses = [], []
        for precision in ("no", "bf16"):
            folder = tmp_path / name / precision
            config = with_changes(mixed_precision=precision, logging_steps=1, lr_warmup_steps=0)
            results.append(trained(pipe, build_method(name, pipe, MASK, rank=2), dataset, folder, config))
            losses.append([json.loads(line)["loss"] for line in (folder / "stats.jsonl").read_text().splitlines()])
        assert all(value.dtype == torch.float32 for value in results[1].values())
        assert not same(*results)
        assert losses[1] == pytest.approx(losses[0], rel=0.02)
        assert losses[1] != losses[0]
