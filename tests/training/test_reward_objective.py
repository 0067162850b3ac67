"""The reward as a training objective: it rises, its gradient is DRaFT's, and a run resumes bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import maskunet as mu
from maskunet.data import CachedLatents
from maskunet.errors import DataError
from maskunet.rewards import FunctionReward
from maskunet.training import TrainConfig, build_method
from maskunet.training import objective as module
from maskunet.training.prediction_errors import DiffusionErrors
from maskunet.training.reward_objective import RewardObjective

SHARED: dict[str, Any] = {
    "max_train_steps": 4,
    "train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-2,
    "lr_warmup_steps": 0,
    "lr_scheduler": "constant",
    "objective": "reward",
    "reward_weight": 10.0,
    "reward_batch_size": 2,
    "reward_num_inference_steps": 3,
    "reward_guidance_scale": 3.0,
    "validation_rewards": 4,
    "validation_samples": 4,
    "validation_steps": 4,
    "checkpointing_steps": 2,
    "logging_steps": 1,
}
MASK = mu.MaskGeneratorConfig(initial_logit=-0.35)


def redness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images[:, 0].mean((1, 2)) - images[:, 2].mean((1, 2))


REWARD = FunctionReward(redness)


@pytest.fixture
def data() -> CachedLatents:
    mean = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return CachedLatents(mean, torch.full_like(mean, 0.1), tuple(f"{c} b" for c in "abcdefgh"))


def trained(pipe: Any, data: CachedLatents, folder: Path, method: str = "mask", **changes: Any) -> Any:
    config = TrainConfig(**{**SHARED, **changes})
    built = build_method(method, pipe, MASK, gumbel=config.gumbel, rank=4)
    return mu.train(pipe, built, data, config, folder, reward=REWARD, progress=False)


@pytest.mark.parametrize("method", ["mask", "lora"])
@pytest.mark.parametrize("draft", [None, 2])
def test_the_reward_of_held_out_captions_rises(
    pipe: Any, data: CachedLatents, tmp_path: Path, method: str, draft: int | None
) -> None:
    run = trained(pipe, data, tmp_path, method, draft_steps=draft, max_train_steps=12, diffusion_weight=0.0)
    last = run.stats[-1]
    assert last["reward_gain"] > 0
    assert {"reward", "reward_gain_ci95", "loss"} <= set(last)


def test_a_single_caption_has_no_interval(pipe: Any) -> None:
    rewards = RewardObjective(pipe, REWARD, TrainConfig(**SHARED), build_method("lora", pipe, MASK, rank=2))
    assert rewards.compare(["a b"]).keys() == {"reward", "reward_gain"}
    assert RewardObjective(pipe, REWARD, rewards.config, rewards.method).compare(["a b", "c b"]).keys() == {
        "reward",
        "reward_gain",
        "reward_gain_ci95",
    }


def test_draft_has_the_gradient_of_the_whole_loop(pipe: Any) -> None:
    """With K all steps, the gradient to the masker is that of plain sampling, by finite differences."""
    pipe.unet.requires_grad_(False)
    pipe.vae.requires_grad_(False)
    config = TrainConfig(**{**SHARED, "draft_steps": 3, "gumbel": False})
    method = build_method("lora", pipe, MASK, rank=2)
    unet = method.install(pipe, 0)
    named = {n: p for n, p in unet.named_parameters() if p.requires_grad}
    weight = next(p for n, p in named.items() if "lora_B" in n)
    objective = RewardObjective(pipe, REWARD, config, method)
    objective(["a b"], (5,)).sum().backward()
    direction = weight.grad / weight.grad.norm()
    expected = float(weight.grad.norm())
    rewards = []
    with torch.no_grad():
        for sign in (1, -1):
            weight += sign * 1e-2 * direction
            rewards.append(float(objective(["a b"], (5,)).sum()))
            weight -= sign * 1e-2 * direction
    assert (rewards[0] - rewards[1]) / 2e-2 == pytest.approx(expected, rel=0.05)
    method.remove(pipe)


def test_stopped_and_resumed_equals_uninterrupted(pipe: Any, data: CachedLatents, tmp_path: Path) -> None:
    uninterrupted = trained(pipe, data, tmp_path / "uninterrupted")
    trained(pipe, data, tmp_path / "part")
    for name in ("checkpoint-000004", "stats.jsonl"):
        path = tmp_path / "part" / name
        if path.is_dir():
            (path / "state.pt").unlink()
            path.rmdir()
        else:
            path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    again = trained(pipe, data, tmp_path / "part")
    first, second = uninterrupted.masker.state_dict(), again.masker.state_dict()
    assert all(torch.equal(v, second[k]) for k, v in first.items())
    assert uninterrupted.stats == again.stats


def test_a_loss_of_no_weight_is_not_computed(
    pipe: Any, data: CachedLatents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights and figures are those of a run that computes it, bit for bit."""
    calls, errors, forward = [], DiffusionErrors.__call__, module.Objective.forward

    def counted(self: DiffusionErrors, batch: Any) -> Tensor:
        if torch.is_grad_enabled():  # not in validation
            calls.append(batch)
        return errors(self, batch)

    def computes(self: Any, batch: Any) -> Any:
        prediction_errors, _, _ = self._parts
        return errors(prediction_errors, batch), *forward(self, batch)[1:]

    monkeypatch.setattr(DiffusionErrors, "__call__", counted)
    without = trained(pipe, data, tmp_path / "without", diffusion_weight=0.0)
    assert not calls
    trained(pipe, data, tmp_path / "density", diffusion_weight=0.0, target_density=0.9, max_train_steps=1)
    assert len(calls) == 1  # its regulariser is of that call
    monkeypatch.setattr(module.Objective, "forward", computes)
    with_it = trained(pipe, data, tmp_path / "with", diffusion_weight=0.0)
    first, second = without.masker.state_dict(), with_it.masker.state_dict()
    assert all(torch.equal(v, second[k]) for k, v in first.items())
    assert without.stats == with_it.stats
    assert without.stats[0]["loss"] == pytest.approx(-10 * without.stats[0]["reward"])


def test_bf16_rewards_are_those_of_float32_up_to_rounding(pipe: Any, data: CachedLatents, tmp_path: Path) -> None:
    full = trained(pipe, data, tmp_path / "no", mixed_precision="no", max_train_steps=1)
    half = trained(pipe, data, tmp_path / "bf16", mixed_precision="bf16", max_train_steps=1)
    assert half.stats[0]["reward"] == pytest.approx(full.stats[0]["reward"], abs=0.02)
    assert half.stats[0]["reward"] != full.stats[0]["reward"]


def test_the_reward_of_sdxl_rises(sdxl_pipe: Any, data: CachedLatents, tmp_path: Path) -> None:
    stats = trained(sdxl_pipe, data, tmp_path, "lora", max_train_steps=8, diffusion_weight=0.0).stats
    assert stats[-1]["reward_gain"] > 0


def test_an_autoencoder_that_overflows_is_refused(pipe: Any) -> None:
    vae = SimpleNamespace(dtype=torch.float16, config=SimpleNamespace(force_upcast=True))
    with pytest.raises(DataError, match=r"overflows in float16; call pipe\.vae\.to"):
        RewardObjective(SimpleNamespace(vae=vae), REWARD, TrainConfig(**SHARED), build_method("mask", pipe, MASK))
