"""What the original modules of ImageReward and HPSv2 give, recorded on random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from maskunet.errors import CheckpointError
from maskunet.rewards import ClipScore, HPSv2, ImageReward
from maskunet.rewards.image_reward import Blip, _config, _state_dict
from maskunet.rewards.open_clip import read_open_clip

Read = Callable[[str], Any]
TOLERANCE = 1e-5


def difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs.reshape(ours.shape)).abs().max())


def test_image_reward_scores_as_recorded(recording: Read) -> None:
    it = recording("image_reward_tiny")
    reward = ImageReward.from_original(it.config, it.checkpoint)
    ours = reward.score_tokens(**it.inputs)
    assert ours.shape == (3,)
    assert difference(ours, it.outputs["reward"]) < TOLERANCE


def test_image_reward_padding_is_not_read(recording: Read) -> None:
    it = recording("image_reward_tiny")
    reward = ImageReward.from_original(it.config, it.checkpoint)
    ids, mask = it.inputs["input_ids"].clone(), it.inputs["attention_mask"]
    ids[mask == 0] = 17
    assert difference(reward.score_tokens(it.inputs["pixel_values"], ids, mask), it.outputs["reward"]) < TOLERANCE
    unmasked = reward.score_tokens(it.inputs["pixel_values"], ids)
    assert difference(unmasked, it.outputs["reward"]) > TOLERANCE


def test_hpsv2_scores_and_features_as_recorded(recording: Read) -> None:
    it = recording("hpsv2_tiny")
    reward = HPSv2.from_original(it.config, {"state_dict": it.checkpoint})
    pixels, ids = it.inputs["pixel_values"], it.inputs["input_ids"]
    assert difference(reward.image_features(pixels), it.outputs["image_features"]) < TOLERANCE
    assert difference(reward.text_features(ids), it.outputs["text_features"]) < TOLERANCE
    assert difference(reward.score_tokens(pixels, ids), it.outputs["score"]) < TOLERANCE
    padding_masked = reward.score_tokens(pixels, ids, (ids != 0).long())
    assert difference(padding_masked, it.outputs["score"]) < TOLERANCE


def test_hpsv2_reads_open_clip_configs_and_wrapped_keys(recording: Read) -> None:
    it = recording("hpsv2_tiny")
    config = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 28, "layers": 2, "width": 80, "head_width": 20, "patch_size": 14},
        "text_cfg": {"context_length": 16, "vocab_size": 100, "width": 48, "heads": 4, "layers": 2},
    }
    wrapped = {f"module.{key}": value for key, value in it.checkpoint.items()} | {
        "module.attn_mask": torch.zeros(16, 16)
    }
    reward = HPSv2.from_original(config, wrapped)
    assert difference(reward.score_tokens(**it.inputs), it.outputs["score"]) < TOLERANCE


def test_clip_score_reads_open_clip_too(recording: Read) -> None:
    it = recording("hpsv2_tiny")
    reward = ClipScore.from_original(it.config, it.checkpoint)
    assert difference(reward.score_tokens(**it.inputs), it.outputs["score"]) < TOLERANCE


def test_image_reward_takes_med_config_and_unused_tensors(recording: Read) -> None:
    it = recording("image_reward_tiny")
    text = it.config["text"] | {"encoder_width": 768, "add_cross_attention": True, "hidden_dropout_prob": 0.1}
    extra = {"blip.vision_proj.weight": torch.zeros(8, 48), "blip.text_encoder.pooler.dense.bias": torch.zeros(32)}
    reward = ImageReward.from_original({"vision": it.config["vision"], "text": text}, it.checkpoint | extra)
    reward.enable_gradient_checkpointing()  # training mode, so dropout would show
    assert difference(reward.score_tokens(**it.inputs), it.outputs["reward"]) < TOLERANCE


@pytest.mark.parametrize("name", ["image_reward_tiny", "hpsv2_tiny"])
def test_incomplete_and_misfit_checkpoints_are_refused(recording: Read, name: str) -> None:
    it = recording(name)
    kind = {"image_reward_tiny": ImageReward, "hpsv2_tiny": HPSv2}[name]
    for key in list(it.checkpoint)[:: len(it.checkpoint) // 6]:
        if not key.endswith("position_ids"):
            with pytest.raises(CheckpointError):
                kind.from_original(it.config, {k: v for k, v in it.checkpoint.items() if k != key})
    with pytest.raises(CheckpointError, match=r"agrees .* shapes, got hidden_size 99"):
        kind.from_original(it.config | {"vision": {"hidden_size": 99}}, it.checkpoint)
    with pytest.raises(CheckpointError):
        kind.from_original(it.config, {"weight": torch.zeros(3)})
    with pytest.raises(CheckpointError, match="expected a state dict"):
        kind.from_original(it.config, {})


@pytest.mark.parametrize("name", ["image_reward_tiny", "hpsv2_tiny"])
def test_half_precision_files_are_read_into_float32(recording: Read, name: str) -> None:
    it = recording(name)
    kind: Any = {"image_reward_tiny": ImageReward, "hpsv2_tiny": HPSv2}[name]
    stored = {key: value.half() if value.is_floating_point() else value for key, value in it.checkpoint.items()}
    reward = kind.from_original(it.config, stored)
    assert all(p.dtype == torch.float32 for m in (*reward.models, *reward.heads) for p in m.parameters())
    expected = next(it.outputs[key] for key in ("reward", "score") if key in it.outputs)
    assert difference(reward.score_tokens(**it.inputs), expected) < 1e-2


def test_hpsv2_refuses_layers_it_would_have_to_skip(recording: Read) -> None:
    it = recording("hpsv2_tiny")
    for key in ("visual.attn_pool.query", "transformer.resblocks.0.ls_1.gamma"):
        with pytest.raises(CheckpointError, match="plain"):
            HPSv2.from_original(it.config, it.checkpoint | {key: torch.zeros(4)})


def public_open_clip() -> dict[str, Tensor]:
    """Names and shapes of ViT-H/14 in open_clip, without values."""
    shapes: dict[str, tuple[int, ...]] = {
        "logit_scale": (),
        "positional_embedding": (77, 1024),
        "text_projection": (1024, 1024),
        "token_embedding.weight": (49408, 1024),
        "visual.class_embedding": (1280,),
        "visual.conv1.weight": (1280, 3, 14, 14),
        "visual.positional_embedding": (257, 1280),
        "visual.proj": (1280, 1024),
    }
    norms = [("ln_final", 1024), ("visual.ln_pre", 1280), ("visual.ln_post", 1280)]
    for prefix, width, count in (("transformer", 1024, 24), ("visual.transformer", 1280, 32)):
        for index in range(count):
            block = f"{prefix}.resblocks.{index}"
            norms += [(f"{block}.ln_1", width), (f"{block}.ln_2", width)]
            for name, out, into in (
                ("attn.in_proj_", 3 * width, width),
                ("attn.out_proj.", width, width),
                ("mlp.c_fc.", 4 * width, width),
                ("mlp.c_proj.", width, 4 * width),
            ):
                shapes |= {f"{block}.{name}weight": (out, into), f"{block}.{name}bias": (out,)}
    shapes |= {f"{name}.{kind}": (width,) for name, width in norms for kind in ("weight", "bias")}
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def test_the_public_hpsv2_fills_vit_h_14() -> None:
    config, tensors = read_open_clip(None, public_open_clip(), "hpsv2")
    assert config.vision_config.num_attention_heads == config.text_config.num_attention_heads == 16
    assert (config.vision_config.image_size, config.vision_config.patch_size) == (224, 14)
    assert config.text_config.hidden_act == "gelu"
    assert (config.text_config.bos_token_id, config.text_config.eos_token_id) == (49406, 49407)
    with torch.device("meta"):
        model = CLIPModel(CLIPConfig.from_dict(config.to_dict()))
    assert {k: v.shape for k, v in tensors.items()} == {k: v.shape for k, v in model.state_dict().items()}


def public_image_reward() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Names and shapes of ImageReward's two towers, without values."""
    visual: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, 1024),
        "pos_embed": (1, 197, 1024),
        "patch_embed.proj.weight": (1024, 3, 16, 16),
        "patch_embed.proj.bias": (1024,),
        "norm.weight": (1024,),
        "norm.bias": (1024,),
    }
    for index in range(24):
        for name, *shape in (
            ("norm1", 1024),
            ("norm2", 1024),
            ("attn.qkv", 3072, 1024),
            ("attn.proj", 1024, 1024),
            ("mlp.fc1", 4096, 1024),
            ("mlp.fc2", 1024, 4096),
        ):
            visual |= {f"blocks.{index}.{name}.weight": tuple(shape), f"blocks.{index}.{name}.bias": (shape[0],)}
    text: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (30524, 768),
        "embeddings.position_embeddings.weight": (512, 768),
        "embeddings.position_ids": (1, 512),
        "embeddings.LayerNorm.weight": (768,),
        "embeddings.LayerNorm.bias": (768,),
    }
    for index in range(12):
        for name, *shape in (
            *((f"{a}.self.query", 768, 768) for a in ("attention", "crossattention")),
            *((f"attention.self.{part}", 768, 768) for part in ("key", "value")),
            *((f"crossattention.self.{part}", 768, 1024) for part in ("key", "value")),
            *((f"{a}.output.dense", 768, 768) for a in ("attention", "crossattention")),
            *((f"{a}.output.LayerNorm", 768) for a in ("attention", "crossattention")),
            ("intermediate.dense", 3072, 768),
            ("output.dense", 768, 3072),
            ("output.LayerNorm", 768),
        ):
            layer = f"encoder.layer.{index}.{name}"
            text |= {f"{layer}.weight": tuple(shape), f"{layer}.bias": (shape[0],)}
    towers = ({k: torch.empty(s, device="meta") for k, s in shapes.items()} for shapes in (visual, text))
    return next(towers), next(towers)


def test_the_public_image_reward_fills_blip_large() -> None:
    visual, text = public_image_reward()
    config, tensors = _config({}, visual, text), _state_dict(visual, text)
    assert (config.vision_config.num_attention_heads, config.text_config.num_attention_heads) == (16, 12)
    assert (config.vision_config.image_size, config.vision_config.layer_norm_eps) == (224, 1e-6)
    with torch.device("meta"):
        model = Blip(config)
    assert {k: v.shape for k, v in tensors.items()} == {k: v.shape for k, v in model.state_dict().items()}
