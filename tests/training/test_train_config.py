"""Settings of training: every bad value of every field is one line, and every schedule can be built."""

from __future__ import annotations

import math
from dataclasses import MISSING, fields
from typing import Any

import pytest
import torch
from diffusers.optimization import SchedulerType
from torch import nn

from maskunet.errors import SettingError
from maskunet.training import TrainConfig
from maskunet.training.optimizer import build_optimizer, build_schedule

INTEGERS_FROM_1 = (
    "max_train_steps",
    "train_batch_size",
    "gradient_accumulation_steps",
    "reward_batch_size",
    "reward_num_inference_steps",
    "draft_steps",
    "validation_batch_size",
    "validation_steps",
    "validation_num_inference_steps",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "logging_steps",
)
INTEGERS_FROM_0 = ("lr_warmup_steps", "validation_rewards", "validation_samples", "seed")
POSITIVE = ("learning_rate", "adam_epsilon", "max_grad_norm", "snr_gamma", "tau_end")
NOT_NEGATIVE = (
    "adam_weight_decay",
    "noise_offset",
    "density_weight",
    "diffusion_weight",
    "reward_weight",
    "reward_guidance_scale",
    "validation_guidance_scale",
)
BELOW_1 = ("adam_beta1", "adam_beta2", "ema_decay", "refl_start")
FLAGS = ("gradient_checkpointing", "allow_tf32", "use_8bit_adam", "use_ema", "cache_prompt_embeds", "gumbel")
BAD: dict[str, tuple[Any, ...]] = (
    dict.fromkeys(INTEGERS_FROM_1, (0, -1, 1.5, True, "2"))
    | dict.fromkeys(INTEGERS_FROM_0, (-1, 0.5, True, "2"))
    | dict.fromkeys(POSITIVE, (0, -1, math.inf, "1"))
    | dict.fromkeys(NOT_NEGATIVE, (-1, math.inf, True, "1"))
    | dict.fromkeys(BELOW_1, (-0.1, 1, 2, "0.5"))
    | dict.fromkeys(("caption_dropout", "guidance_rescale", "target_density"), (-0.1, 1.1, math.inf, "0.5"))
    | dict.fromkeys(FLAGS, (1, "yes", None))
    | {
        "mixed_precision": ("fp8", None, 16),
        "lr_scheduler": ("nope", "piecewise_constant", None),
        "objective": ("rewards", None),
        "guidance_scale": (1.0, 0.5, -1, math.inf, "3"),
        "negative_prompt": (None, 3),
        "validation_prompts": ("a circle", (1,), None),
        "resume_from_checkpoint": (3, True),
        "report_to": (3, ["wandb"]),
    }
)
BAD["max_train_steps"] += (None,)


def test_every_field_has_a_bad_value() -> None:
    assert {field.name for field in fields(TrainConfig)} == BAD.keys()


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_bad_value_is_one_line(name: str, value: Any) -> None:
    with pytest.raises(SettingError, match=f"^expected {name} to be .*, got ") as caught:
        TrainConfig(**{name: value})
    assert repr(value) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", BAD)
def test_no_field_may_be_nan(name: str) -> None:
    with pytest.raises(SettingError, match=f"^expected {name} to be .*, got nan$"):
        TrainConfig(**{name: math.nan})


def test_settings_that_contradict_each_other_are_one_line() -> None:
    with pytest.raises(SettingError, match=r"draft_steps <= reward_num_inference_steps \(15\), got 16"):
        TrainConfig(draft_steps=16)
    with pytest.raises(SettingError, match=r"learning_rate > 1e-07 with lr_scheduler 'polynomial'.*got 1e-08"):
        TrainConfig(lr_scheduler="polynomial", learning_rate=1e-8)


def schedulers() -> list[str]:
    """Names of diffusers' schedules that the config accepts."""
    names = []
    for kind in SchedulerType:
        try:
            names.append(TrainConfig(lr_scheduler=kind.value).lr_scheduler)
        except SettingError:
            continue
    return names


def test_only_the_schedule_that_needs_rules_is_missing() -> None:
    assert {kind.value for kind in SchedulerType} - set(schedulers()) == {"piecewise_constant"}


@pytest.mark.parametrize("warmup", [0, 3, 8, 20])
@pytest.mark.parametrize("name", schedulers())
def test_every_schedule_runs_to_the_end(name: str, warmup: int) -> None:
    config = TrainConfig(lr_scheduler=name, lr_warmup_steps=warmup, max_train_steps=8)
    optimizer = build_optimizer([nn.Parameter(torch.zeros(2))], 1e-3, config)
    schedule = build_schedule(optimizer, config)
    rates = []
    for _ in range(config.max_train_steps):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert max(rates) <= 1e-3
    assert sum(rates) > 0
    if name != "constant" and warmup:
        assert rates[:warmup] == pytest.approx([1e-3 * step / warmup for step in range(8)][:warmup])


def test_the_default_of_every_field_is_checked() -> None:
    assert all(field.default is not MISSING for field in fields(TrainConfig))
    assert TrainConfig() == TrainConfig(**{field.name: field.default for field in fields(TrainConfig)})
