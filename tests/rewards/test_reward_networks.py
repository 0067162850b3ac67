"""Rewards on networks: values of images and prompts in any precision, with their gradients."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertTokenizer, CLIPTokenizer

from maskunet.errors import RewardError
from maskunet.rewards import AestheticScore, ClipScore, HPSv2, ImageReward, PickScore, Reward

Read = Callable[[str], Any]
Write = Callable[[Path], None]
PROMPTS = ["a red cat", "b", "a red cat"]
KINDS = ["image-reward", "hpsv2", "pick-score", "clip-score", "aesthetic"]


@pytest.fixture
def make(
    recording: Read, write_bert_tokenizer: Write, write_clip_tokenizer: Write, clip_folder: Path, tmp_path: Path
) -> Callable[..., Reward]:
    """Build any of the rewards small, with tokenizers."""

    def build(kind: str, **options: Any) -> Reward:
        if kind == "image-reward":
            it = recording("image_reward_tiny")
            write_bert_tokenizer(tmp_path)
            tokenizer = BertTokenizer.from_pretrained(str(tmp_path))
            return ImageReward.from_original(it.config, it.checkpoint, tokenizer=tokenizer, **options)
        if kind == "hpsv2":
            it = recording("hpsv2_tiny")
            write_clip_tokenizer(tmp_path)
            tokenizer = CLIPTokenizer.from_pretrained(str(tmp_path))
            return HPSv2.from_original(it.config, it.checkpoint, tokenizer=tokenizer, **options)
        if kind == "aesthetic":
            torch.manual_seed(0)
            head = {"layers.0.weight": torch.randn(8, 16), "layers.0.bias": torch.randn(8)}
            head |= {"layers.2.weight": torch.randn(1, 8), "layers.2.bias": torch.randn(1)}
            torch.save(head, tmp_path / "aesthetic-model.pth")
            return AestheticScore.from_pretrained(tmp_path, clip=clip_folder, **options)
        return {"pick-score": PickScore, "clip-score": ClipScore}[kind].from_pretrained(clip_folder, **options)

    return build


def gradient(reward: Reward, images: Tensor) -> Tensor:
    inputs = images.clone().requires_grad_()
    reward(inputs, PROMPTS).sum().backward()
    assert inputs.grad is not None
    return inputs.grad


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_per_image_and_differentiable(make: Callable[..., Reward], kind: str, images: Tensor) -> None:
    reward = make(kind)
    assert reward.name == kind
    together = reward(images, PROMPTS)
    alone = torch.cat([reward(images[i : i + 1], PROMPTS[i]) for i in range(3)])
    assert torch.allclose(together, alone, atol=1e-5)
    grad = gradient(reward, images)
    assert torch.isfinite(grad).all()
    assert (grad.abs().amax((1, 2, 3)) > 0).all()
    # A small step along the gradient raises the reward by its squared length.
    step = 1e-2 / float(grad.norm())
    higher = (
        reward((images.clamp(0.1, 0.9) + step * grad), PROMPTS).sum() - reward(images.clamp(0.1, 0.9), PROMPTS).sum()
    )
    assert float(higher) > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close(make: Callable[..., Reward], kind: str, dtype: torch.dtype, images: Tensor) -> None:
    full, half = make(kind), make(kind, dtype=dtype)
    assert half.models[0].dtype == dtype
    values, expected = half(images, PROMPTS), full(images, PROMPTS)
    assert values.dtype == torch.float32
    scale = getattr(full, "scale", 1.0)
    assert torch.allclose(values, expected, atol=0.03 * scale)
    again = full.to(dtype=dtype)(images, PROMPTS)
    assert torch.allclose(again, values, atol=1e-3 * scale)
    assert torch.isfinite(gradient(half, images)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_saves_less_and_changes_nothing(
    make: Callable[..., Reward], kind: str, images: Tensor
) -> None:
    def count_saved(reward: Reward) -> tuple[int, Tensor]:
        saved = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal saved
            saved += tensor.numel()
            return tensor

        inputs = images.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            total = reward(inputs, PROMPTS).sum()
        count = saved
        total.backward()
        assert inputs.grad is not None
        return count, inputs.grad

    plain, checkpointed = make(kind), make(kind).enable_gradient_checkpointing()
    (saved, grad), (saved_less, same) = count_saved(plain), count_saved(checkpointed)
    assert torch.allclose(grad, same, atol=1e-7)
    assert saved_less < 0.7 * saved
    assert not checkpointed(images, PROMPTS).requires_grad


@pytest.mark.parametrize("kind", ["hpsv2", "pick-score", "clip-score"])
def test_features_of_prompts_are_computed_once(
    make: Callable[..., Reward], kind: str, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    reward: Any = make(kind)
    counts: list[int] = []
    encode = reward.text_features
    monkeypatch.setattr(
        reward, "text_features", lambda ids, mask=None: (counts.append(len(ids)), encode(ids, mask))[1]
    )
    with torch.inference_mode():
        first = reward(images, PROMPTS)
    assert counts == [2]  # the same prompt twice is one
    gradient(reward, images)  # features from inference mode work in a graph
    assert counts == [2]
    reward(images, ["c", "b", "b"])
    assert counts == [2, 1]
    reward.to(dtype=torch.bfloat16)(images, PROMPTS)
    assert counts == [2, 1, 2]
    assert torch.allclose(reward.to(dtype=torch.float32)(images, PROMPTS), first, atol=0.05 * reward.scale)


def test_pick_score_is_scaled_and_clip_score_is_not(make: Callable[..., Reward], images: Tensor) -> None:
    pick, clip = make("pick-score"), make("clip-score", preprocess="shared")
    model: Any = pick.models[0]
    shared = make("pick-score", preprocess="shared")
    assert torch.allclose(shared(images, PROMPTS), float(model.logit_scale.exp()) * clip(images, PROMPTS), rtol=1e-4)


def test_pick_score_agrees_with_transformers(make: Callable[..., Reward], images: Tensor) -> None:
    reward: Any = make("pick-score")
    ids, mask = reward.tokenize(PROMPTS)
    pixels = reward.preprocess(images)
    expected = reward.model(input_ids=ids, attention_mask=mask, pixel_values=pixels).logits_per_image.diagonal()
    assert torch.allclose(reward.score_tokens(pixels, ids, mask), expected, atol=1e-4)
    assert torch.allclose(reward(images, PROMPTS), expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["image-reward", "hpsv2", "pick-score", "aesthetic"])
def test_the_shared_crop_differs_from_padding_only(make: Callable[..., Reward], kind: str, images: Tensor) -> None:
    soft = 0.25 + 0.5 * images  # resizing does not overshoot [0, 1]
    original, shared = make(kind), make(kind, preprocess="shared")
    square, wide = soft[..., :40], torch.cat([soft, 1 - soft], 3)
    scale = getattr(original, "scale", 1.0)
    assert torch.allclose(original(square, PROMPTS), shared(square, PROMPTS), atol=1e-5 * scale)
    same = torch.allclose(original(wide, PROMPTS), shared(wide, PROMPTS), atol=1e-5 * scale)
    assert same == (kind != "hpsv2")


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_is_close(make: Callable[..., Reward], kind: str, images: Tensor) -> None:
    reward = make(kind)
    with torch.autocast("cpu", torch.bfloat16):
        inside = reward(images, PROMPTS)
    assert inside.dtype == torch.float32
    assert torch.allclose(inside, reward(images, PROMPTS), atol=0.03 * getattr(reward, "scale", 1.0))


@pytest.mark.parametrize("kind", ["image-reward", "hpsv2", "clip-score"])
def test_a_cut_prompt_is_reported_once(
    make: Callable[..., Reward], kind: str, images: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    reward: Any = make(kind)
    room = reward.tokenize.limit - 2
    prompt = " ".join("a" * room) + " b c"
    with caplog.at_level(logging.WARNING, logger="maskunet"):
        reward(images, " ".join("a" * room))
        assert not caplog.records
        reward(images, prompt)
        reward(images, prompt)
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert f"reward {kind!r} reads at most {room + 2} tokens" in message
    assert message.endswith(f"it ignores the end of {prompt!r}: 'b c'")


def test_a_reward_without_tokenizer_says_so(recording: Read, images: Tensor) -> None:
    it = recording("image_reward_tiny")
    with pytest.raises(RewardError, match=r"'image-reward'.*pass tokenizer="):
        ImageReward.from_original(it.config, it.checkpoint)(images, "a")
