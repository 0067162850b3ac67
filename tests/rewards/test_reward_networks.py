"""The rewards on networks: from pictures and prompts, in any precision, with their gradients."""

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


def gradient(reward: Reward, pictures: Tensor) -> Tensor:
    given = pictures.clone().requires_grad_()
    reward(given, PROMPTS).sum().backward()
    assert given.grad is not None
    return given.grad


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_per_picture_and_differentiable(make: Callable[..., Reward], kind: str, pictures: Tensor) -> None:
    reward = make(kind)
    assert reward.name == kind
    together = reward(pictures, PROMPTS)
    alone = torch.cat([reward(pictures[i : i + 1], PROMPTS[i]) for i in range(3)])
    assert torch.allclose(together, alone, atol=1e-5)
    grad = gradient(reward, pictures)
    assert torch.isfinite(grad).all()
    assert (grad.abs().amax((1, 2, 3)) > 0).all()
    # A small step along the gradient raises the reward by its squared length.
    step = 1e-2 / float(grad.norm())
    higher = (
        reward((pictures.clamp(0.1, 0.9) + step * grad), PROMPTS).sum()
        - reward(pictures.clamp(0.1, 0.9), PROMPTS).sum()
    )
    assert float(higher) > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close(make: Callable[..., Reward], kind: str, dtype: torch.dtype, pictures: Tensor) -> None:
    full, half = make(kind), make(kind, dtype=dtype)
    assert half.models[0].dtype == dtype
    ours, theirs = half(pictures, PROMPTS), full(pictures, PROMPTS)
    assert ours.dtype == torch.float32
    scale = getattr(full, "scale", 1.0)
    assert torch.allclose(ours, theirs, atol=0.03 * scale)
    again = full.to(dtype=dtype)(pictures, PROMPTS)
    assert torch.allclose(again, ours, atol=1e-3 * scale)
    assert torch.isfinite(gradient(half, pictures)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_keeps_less_and_gives_the_same(
    make: Callable[..., Reward], kind: str, pictures: Tensor
) -> None:
    def saved(reward: Reward) -> tuple[int, Tensor]:
        kept = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal kept
            kept += tensor.numel()
            return tensor

        given = pictures.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            total = reward(given, PROMPTS).sum()
        count = kept
        total.backward()
        assert given.grad is not None
        return count, given.grad

    plain, checkpointed = make(kind), make(kind).enable_gradient_checkpointing()
    (kept, grad), (kept_less, same) = saved(plain), saved(checkpointed)
    assert torch.allclose(grad, same, atol=1e-7)
    assert kept_less < 0.7 * kept
    assert not checkpointed(pictures, PROMPTS).requires_grad


@pytest.mark.parametrize("kind", ["hpsv2", "pick-score", "clip-score"])
def test_features_of_prompts_are_computed_once(
    make: Callable[..., Reward], kind: str, pictures: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    reward: Any = make(kind)
    seen: list[int] = []
    encode = reward.text_features
    monkeypatch.setattr(reward, "text_features", lambda ids, mask=None: (seen.append(len(ids)), encode(ids, mask))[1])
    with torch.inference_mode():
        first = reward(pictures, PROMPTS)
    assert seen == [2]  # the same prompt twice is one
    gradient(reward, pictures)  # what inference mode left is fit for a graph
    assert seen == [2]
    reward(pictures, ["c", "b", "b"])
    assert seen == [2, 1]
    reward.to(dtype=torch.bfloat16)(pictures, PROMPTS)
    assert seen == [2, 1, 2]
    assert torch.allclose(reward.to(dtype=torch.float32)(pictures, PROMPTS), first, atol=0.05 * reward.scale)


def test_pick_score_is_scaled_and_clip_score_is_not(make: Callable[..., Reward], pictures: Tensor) -> None:
    pick, clip = make("pick-score"), make("clip-score", preprocess="shared")
    model: Any = pick.models[0]
    shared = make("pick-score", preprocess="shared")
    assert torch.allclose(
        shared(pictures, PROMPTS), float(model.logit_scale.exp()) * clip(pictures, PROMPTS), rtol=1e-4
    )


def test_clip_scores_as_transformers_does(make: Callable[..., Reward], pictures: Tensor) -> None:
    reward: Any = make("pick-score")
    ids, mask = reward.tokenize(PROMPTS)
    pixels = reward.preprocess(pictures)
    theirs = reward.model(input_ids=ids, attention_mask=mask, pixel_values=pixels).logits_per_image.diagonal()
    assert torch.allclose(reward.score_tokens(pixels, ids, mask), theirs, atol=1e-4)
    assert torch.allclose(reward(pictures, PROMPTS), theirs, atol=1e-4)


@pytest.mark.parametrize("kind", ["image-reward", "hpsv2", "pick-score", "aesthetic"])
def test_the_shared_crop_differs_from_padding_only(make: Callable[..., Reward], kind: str, pictures: Tensor) -> None:
    soft = 0.25 + 0.5 * pictures  # which does not overshoot
    original, shared = make(kind), make(kind, preprocess="shared")
    square, wide = soft[..., :40], torch.cat([soft, 1 - soft], 3)
    scale = getattr(original, "scale", 1.0)
    assert torch.allclose(original(square, PROMPTS), shared(square, PROMPTS), atol=1e-5 * scale)
    same = torch.allclose(original(wide, PROMPTS), shared(wide, PROMPTS), atol=1e-5 * scale)
    assert same == (kind != "hpsv2")


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_is_close(make: Callable[..., Reward], kind: str, pictures: Tensor) -> None:
    reward = make(kind)
    with torch.autocast("cpu", torch.bfloat16):
        inside = reward(pictures, PROMPTS)
    assert inside.dtype == torch.float32
    assert torch.allclose(inside, reward(pictures, PROMPTS), atol=0.03 * getattr(reward, "scale", 1.0))


@pytest.mark.parametrize("kind", ["image-reward", "hpsv2", "clip-score"])
def test_a_cut_prompt_is_said_once(
    make: Callable[..., Reward], kind: str, pictures: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    reward: Any = make(kind)
    kept = reward.tokenize.limit - 2
    prompt = " ".join("a" * kept) + " b c"
    with caplog.at_level(logging.WARNING, logger="maskunet"):
        reward(pictures, " ".join("a" * kept))
        assert not caplog.records
        reward(pictures, prompt)
        reward(pictures, prompt)
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert f"reward {kind!r} reads at most {kept + 2} tokens" in message
    assert message.endswith("it does not see 'b c'")


def test_a_reward_without_tokenizer_says_so(recording: Read, pictures: Tensor) -> None:
    it = recording("image_reward_tiny")
    with pytest.raises(RewardError, match=r"'image-reward'.*pass tokenizer="):
        ImageReward.from_original(it.config, it.checkpoint)(pictures, "a")
