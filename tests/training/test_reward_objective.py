"""The reward as a training objective: it rises, its gradient is DRaFT's, and a run resumes bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import maskunet as mu
from maskunet.data import CachedLatents
from maskunet.errors import DataError
from maskunet.rewards import FunctionReward
from maskunet.training import TrainConfig, build_method, trainer
from maskunet.training.reward_objective import RewardObjective

SHARED: dict[str, Any] = {
    "max_train_steps": 4,
    "train_batch_size": 4,
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


def redness(pictures: Tensor, prompts: Sequence[str]) -> Tensor:
    return pictures[:, 0].mean((1, 2)) - pictures[:, 2].mean((1, 2))


REWARD = FunctionReward(redness)


@pytest.fixture
def data() -> CachedLatents:
    mean = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return CachedLatents(mean, torch.full_like(mean, 0.1), tuple(f"{c} b" for c in "abcdefgh"))


def trained(pipe: Any, data: CachedLatents, folder: Path, method: str = "mask", **changes: Any) -> Any:
    config = TrainConfig(**{**SHARED, **changes})
    chosen = build_method(method, pipe, MASK, gumbel=config.gumbel, rank=4)
    return mu.train(pipe, chosen, data, config, folder, reward=REWARD, progress=False)


@pytest.mark.parametrize("method", ["mask", "lora"])
@pytest.mark.parametrize("draft", [None, 2])
def test_the_reward_of_held_out_captions_rises(
    pipe: Any, data: CachedLatents, tmp_path: Path, method: str, draft: int | None
) -> None:
    run = trained(pipe, data, tmp_path, method, draft_steps=draft, max_train_steps=12, diffusion_weight=0.0)
    last = run.stats[-1]
    assert last["reward_gain"] > 0
    assert {"reward", "reward_gain_ci95", "loss"} <= set(last)


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
    found = []
    with torch.no_grad():
        for sign in (1, -1):
            weight += sign * 1e-2 * direction
            found.append(float(objective(["a b"], (5,)).sum()))
            weight -= sign * 1e-2 * direction
    assert (found[0] - found[1]) / 2e-2 == pytest.approx(expected, rel=0.05)
    method.remove(pipe)


def test_stopped_and_resumed_equals_uninterrupted(pipe: Any, data: CachedLatents, tmp_path: Path) -> None:
    whole = trained(pipe, data, tmp_path / "whole")
    trained(pipe, data, tmp_path / "part")
    for name in ("checkpoint-000004", "stats.jsonl"):
        path = tmp_path / "part" / name
        if path.is_dir():
            (path / "state.pt").unlink()
            path.rmdir()
        else:
            path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    again = trained(pipe, data, tmp_path / "part")
    first, second = whole.masker.state_dict(), again.masker.state_dict()
    assert all(torch.equal(v, second[k]) for k, v in first.items())
    assert whole.stats == again.stats


def test_a_loss_of_no_weight_is_not_computed(
    pipe: Any, data: CachedLatents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing else changes: weights and figures are those of a run that computes it, bit for bit."""
    calls, errors, forward = [], trainer.diffusion_errors, trainer._Objective.forward

    def counted(*args: Any, **options: Any) -> Tensor:
        calls.append(len(args))
        return errors(*args, **options)

    def computes(self: Any, batch: Any) -> Any:
        unet, scheduler, _, _ = self._call
        found = errors(unet, scheduler, batch.latents, batch.embeds, batch.noise, batch.timesteps, **batch.conditions)
        return found, *forward(self, batch)[1:]

    monkeypatch.setattr(trainer, "diffusion_errors", counted)
    without = trained(pipe, data, tmp_path / "without", diffusion_weight=0.0)
    assert not calls
    trained(pipe, data, tmp_path / "density", diffusion_weight=0.0, target_density=0.9, max_train_steps=1)
    assert len(calls) == 1  # its regulariser is of that call
    monkeypatch.setattr(trainer._Objective, "forward", computes)
    with_it = trained(pipe, data, tmp_path / "with", diffusion_weight=0.0)
    first, second = without.masker.state_dict(), with_it.masker.state_dict()
    assert all(torch.equal(v, second[k]) for k, v in first.items())
    assert without.stats == with_it.stats
    assert without.stats[0]["loss"] == pytest.approx(-10 * without.stats[0]["reward"])


def test_half_precision(pipe: Any, data: CachedLatents, tmp_path: Path) -> None:
    run = trained(pipe, data, tmp_path / "bf16", mixed_precision="bf16")
    assert all(v.isfinite().all() for v in run.masker.state_dict().values())


def test_sdxl(sdxl_pipe: Any, data: CachedLatents, tmp_path: Path) -> None:
    assert trained(sdxl_pipe, data, tmp_path).stats[-1]["reward_gain_ci95"] >= 0


def test_errors(pipe: Any, data: CachedLatents, tmp_path: Path) -> None:
    chosen = build_method("mask", pipe, MASK)
    with pytest.raises(DataError, match="reward"):
        mu.train(pipe, chosen, data, TrainConfig(**SHARED), tmp_path, progress=False)
    with pytest.raises(DataError, match="reward"):
        mu.train(pipe, chosen, data, TrainConfig(), tmp_path, reward=REWARD, progress=False)
    for wrong in ({"objective": "rewards"}, {"draft_steps": 9}, {"refl_start": 1.0}):
        with pytest.raises(DataError):
            TrainConfig(**{**SHARED, **wrong})
