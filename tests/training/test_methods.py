"""LoRA, full fine-tuning and masks with LoRA in the same trainer; several processes; a run that is killed."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

import maskunet as mu
from maskunet.attaching import attachment_of
from maskunet.data import CachedLatents
from maskunet.errors import CheckpointError, DataError
from maskunet.shapes.scenes import training_scene
from maskunet.training import METHODS, Method, TrainFull, TrainLora, build_method
from maskunet.zoo.dataset import encode_scenes

CONFIG = mu.TrainConfig(
    max_train_steps=6, train_batch_size=4, learning_rate=0.01, validation_samples=8, checkpointing_steps=3
)
MASK = mu.MaskGeneratorConfig(initial_logit=0.5)
SCRIPT = Path(__file__).with_name("run_script.py")


def changed(**changes: Any) -> mu.TrainConfig:
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
def test_each_method_trains_what_it_says_and_loads_elsewhere(
    pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path, name: str
) -> None:
    before = copy.deepcopy(pipe.unet.state_dict())
    mask = mu.MaskGeneratorConfig(initial_logit=-0.36)  # near the threshold, so that six steps cross it
    result = trained(pipe, build_method(name, pipe, mask, rank=2), dataset, tmp_path)
    after = pipe.unet.state_dict()
    assert attachment_of(pipe) is None
    assert before.keys() == after.keys()
    assert all(torch.equal(v, after[k]) for k, v in before.items()) == (name != "full")
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
    pictures = [p("a red circle", generator=generator.manual_seed(0), **options).images for p in (pipe, other)]
    assert torch.equal(*pictures) == (name == "full")


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("extras", [{}, {"use_ema": True, "gradient_accumulation_steps": 2, "snr_gamma": 5.0}])
def test_stopped_and_resumed_equals_uninterrupted(
    pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path, name: str, extras: dict[str, Any]
) -> None:
    def build(on: StableDiffusionPipeline) -> Method:
        return build_method(name, on, MASK, rank=2, dropout=0.1)

    pipes = [copy.deepcopy(pipe) for _ in range(3)]
    config = changed(**extras)
    whole = trained(pipes[0], build(pipes[0]), dataset, tmp_path / "whole", config)
    mu.train(pipes[1], build(pipes[1]), dataset, config, tmp_path / "part", progress=False)
    # As if it had been killed between the checkpoints of step 3 and step 6.
    (tmp_path / "part" / "checkpoint-000006").rename(tmp_path / "part" / "checkpoint-000006.part")
    resumed = trained(pipes[2], build(pipes[2]), dataset, tmp_path / "part", config)
    assert same(whole, resumed)
    assert (tmp_path / "whole" / "stats.jsonl").read_text() == (tmp_path / "part" / "stats.jsonl").read_text()
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
            changed(train_batch_size=size, gradient_accumulation_steps=n, learning_rate=1e-3),
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
        pipe, build_method("mask", pipe, MASK), dataset, tmp_path / "b", changed(gradient_checkpointing=True)
    )
    assert not any(getattr(m, "gradient_checkpointing", False) for m in pipe.unet.modules())
    for key, value in plain.items():
        torch.testing.assert_close(value, checkpointed[key], atol=1e-4, rtol=1e-3)
    cached = changed(cache_prompt_embeds=True)
    stats = mu.train(pipe, build_method("mask", pipe, MASK), dataset, cached, tmp_path / "c", progress=False).stats
    reference = json.loads((tmp_path / "a" / "stats.jsonl").read_text().splitlines()[-1])
    assert stats[-1]["loss"] == pytest.approx(reference["loss"], rel=2e-2)


def test_target_density_is_approached(pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path) -> None:
    densities = []
    for target in (0.5, 0.95):
        config = changed(
            max_train_steps=40, learning_rate=0.02, target_density=target, density_weight=100.0, logging_steps=1
        )
        masker = mu.MaskGenerator.for_unet(pipe.unet, mu.MaskGeneratorConfig(initial_logit=0.5), seed=0)
        densities.append(mu.train(pipe, masker, dataset, config, tmp_path / str(target), progress=False).stats)
    assert densities[0][-1]["expected_density"] == pytest.approx(0.5, abs=0.08)
    assert densities[1][-1]["expected_density"] == pytest.approx(0.95, abs=0.05)


def test_temperature_is_annealed(pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path) -> None:
    masker = mu.MaskGenerator.for_unet(pipe.unet, MASK, seed=0)
    mu.train(pipe, masker, dataset, changed(tau_end=0.25), tmp_path, progress=False)
    assert masker.tau == pytest.approx(0.25)


def test_old_checkpoints_are_deleted(pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path) -> None:
    config = changed(checkpointing_steps=1, checkpoints_total_limit=2)
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
    assert same(resumed, trained(pipe, build_method("mask", pipe, MASK), dataset, tmp_path / "whole"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_train_steps": 0}, "max_train_steps of at least 1"),
        ({"learning_rate": -1.0}, "learning_rate above 0"),
        ({"caption_dropout": 2.0}, r"caption_dropout in \[0, 1\]"),
        ({"mixed_precision": "fp8"}, "'no', 'fp16' or 'bf16'"),
        ({"mixed_precision": "fp16"}, "on a CPU"),
    ],
)
def test_settings_out_of_range_are_refused(
    pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        mu.train(pipe, build_method("mask", pipe, MASK), dataset, changed(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_unknown_methods_and_half_precision_are_refused(
    pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="mask, lora, full"):
        build_method("dora", pipe)
    pipe.unet.bfloat16()
    with pytest.raises(DataError, match="float32 for full"):
        mu.train(pipe, TrainFull(), dataset, changed(validation_samples=0), tmp_path, progress=False)


def test_bf16_trains_float32_parameters(pipe: StableDiffusionPipeline, dataset: CachedLatents, tmp_path: Path) -> None:
    for method in (build_method("mask", pipe, MASK), TrainLora(rank=2)):
        result = trained(pipe, method, dataset, tmp_path / method.name, changed(mixed_precision="bf16"))
        assert all(v.dtype == torch.float32 and v.isfinite().all() for v in result.values())


def run_script(folder: Path, *, processes: int = 1, **options: Any) -> subprocess.Popen[bytes]:
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    arguments = [f"--{k.replace('_', '-')}={v}" for k, v in options.items()]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen([*launch, str(SCRIPT), str(folder), *arguments], env=environment, stderr=subprocess.PIPE)


def state(folder: Path) -> dict[str, Any]:
    return torch.load(sorted(folder.glob("checkpoint-??????"))[-1] / "state.pt", weights_only=True)


def test_two_processes_equal_one_of_the_same_global_batch(tmp_path: Path) -> None:
    runs = [
        run_script(tmp_path / "one", batch_size=4, steps=6),
        run_script(tmp_path / "two", processes=2, batch_size=2, steps=6),
    ]
    for run in runs:
        _, errors = run.communicate(timeout=240)
        assert run.returncode == 0, errors.decode()[-3000:]
    one, two = state(tmp_path / "one"), state(tmp_path / "two")
    for key, value in one["trained"].items():
        torch.testing.assert_close(value, two["trained"][key], atol=2e-4, rtol=1e-3)
    # 12 samples, 3 steps of 4 an epoch: both runs saw every sample once in each of the two epochs.
    for name in ("one", "two"):
        files = (tmp_path / name).glob("seen-*")
        lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        for epoch in (0, 1):
            indices = [i for line in lines if line["step"] // 3 == epoch for i in line["indices"]]
            assert sorted(indices) == list(range(12))


def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path: Path) -> None:
    whole, killed = run_script(tmp_path / "whole", steps=12), run_script(tmp_path / "killed", steps=12)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed").glob("checkpoint-??????")) and time.monotonic() < deadline:
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert whole.wait(240) == 0
    assert whole.stderr is not None
    whole.stderr.close()
    again = run_script(tmp_path / "killed", steps=12)
    _, errors = again.communicate(timeout=240)
    assert again.returncode == 0, errors.decode()[-3000:]
    a, b = state(tmp_path / "whole"), state(tmp_path / "killed")
    assert same(a["trained"], b["trained"])
    for key in a["optimizer"]["state"]:
        assert all(torch.equal(v, b["optimizer"]["state"][key][k]) for k, v in a["optimizer"]["state"][key].items())
    assert (tmp_path / "whole" / "stats.jsonl").read_text() == (tmp_path / "killed" / "stats.jsonl").read_text()
