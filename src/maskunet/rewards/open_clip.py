"""CLIP checkpoints in open_clip's key layout, read into transformers' `CLIPModel`.

    visual.conv1, class_embedding, positional_embedding, ln_pre     vision_model.embeddings.*, pre_layrnorm
    visual.transformer.resblocks.N / transformer.resblocks.N        {vision,text}_model.encoder.layers.N
        attn.in_proj_{weight,bias}: q, k, v stacked                     self_attn.{q,k,v}_proj
        attn.out_proj, ln_1, ln_2, mlp.c_fc, mlp.c_proj                 self_attn.out_proj, layer_norm1, 2, mlp.fc1, fc2
    visual.proj (width, D), text_projection (width, D)              visual_projection, text_projection, transposed
    token_embedding, positional_embedding, ln_final                 text_model.embeddings.*, final_layer_norm

The shapes determine everything but the number of heads, the activation and the norms' epsilon.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import CLIPConfig

from ..errors import CheckpointError

logger = logging.getLogger(__name__)

_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)")
_IN_BLOCK = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_OUTSIDE = {
    "logit_scale": "logit_scale",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
_TRANSPOSED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
# transformers' names of open_clip's settings.
_NAMES = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "context_length": "max_position_embeddings",
}
_KNOWN = {
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "layer_norm_eps"),
    *("image_size", "patch_size", "vocab_size", "max_position_embeddings"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
}


def is_open_clip(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether a state dict has open_clip's keys.

    Args:
        tensors: the state dict.
    """
    return "visual.conv1.weight" in tensors


def read_open_clip(
    config: Mapping[str, Any] | None, tensors: Mapping[str, Tensor], name: str
) -> tuple[CLIPConfig, dict[str, Tensor]]:
    """Translate an open_clip checkpoint into the config and the state dict of a `CLIPModel`.

    Args:
        config: settings that the tensors' shapes do not determine: {"vision": {...}, "text": {...}} with transformers'
            names, or open_clip's own ("vision_cfg", "text_cfg"; `heads`, `head_width`, `quick_gelu`). If None: heads of 64
            channels, 80 in a 1280-wide image tower (ViT-H/14), and exact GELU.
        tensors: the state dict.
        name: name of the reward, for errors.

    Raises:
        CheckpointError: keys are missing or unknown, or config and shapes disagree.

    Reference: https://github.com/mlfoundations/open_clip, `model.py` and `transformer.py`.
    """
    return _config(dict(config or {}), tensors, name), _state_dict(tensors, name)


def _state_dict(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for key, value in tensors.items():
        match = _BLOCK.fullmatch(key)
        if key in _OUTSIDE:
            renamed[_OUTSIDE[key]] = value
        elif key in _TRANSPOSED:
            renamed[_TRANSPOSED[key]] = value.T.contiguous()
        elif match is not None:
            tower = "vision_model" if match[1] else "text_model"
            renamed |= _in_block(f"{tower}.encoder.layers.{match[2]}.", match[3], value, name, key)
        elif key.startswith("visual."):
            raise CheckpointError(f"expected open_clip's plain vision transformer in {name}, got the key {key!r}")
        else:
            logger.info("%s: the tensor %r of the checkpoint is not used", name, key)
    return renamed


def _in_block(prefix: str, part: str, value: Tensor, name: str, key: str) -> dict[str, Tensor]:
    module, _, kind = part.rpartition(".")
    if part in ("attn.in_proj_weight", "attn.in_proj_bias"):
        kind = part.removeprefix("attn.in_proj_")
        return {
            f"{prefix}self_attn.{p}_proj.{kind}": v.contiguous() for p, v in zip("qkv", value.chunk(3), strict=True)
        }
    if module not in _IN_BLOCK:
        raise CheckpointError(f"expected open_clip's plain transformer block in {name}, got the key {key!r}")
    return {f"{prefix}{_IN_BLOCK[module]}.{kind}": value}


def _config(config: dict[str, Any], tensors: Mapping[str, Tensor], name: str) -> CLIPConfig:
    try:
        side, patch = tensors["visual.positional_embedding"].shape[0], tensors["visual.conv1.weight"].shape[-1]
        vision = _tower(tensors, "visual.transformer") | {
            "patch_size": patch,
            "image_size": patch * math.isqrt(side - 1),
        }
        text = _tower(tensors, "transformer") | {
            "vocab_size": tensors["token_embedding.weight"].shape[0],
            "max_position_embeddings": tensors["positional_embedding"].shape[0],
        }
        width = tensors["text_projection"].shape[1]
    except KeyError as error:
        raise CheckpointError(f"expected open_clip's keys in the checkpoint of {name}, {error} is missing") from error
    # Its tokenizers end with the two special tokens.
    text |= {"bos_token_id": text["vocab_size"] - 2, "eos_token_id": text["vocab_size"] - 1}
    shared = {"hidden_act": "quick_gelu" if config.get("quick_gelu") else "gelu", "layer_norm_eps": 1e-5}
    towers = []
    for shapes, settings in ((vision, _tower_settings(config, "vision")), (text, _tower_settings(config, "text"))):
        wrong = [key for key in shapes.keys() & settings.keys() & _SHAPES if shapes[key] != settings[key]]
        if wrong:
            raise CheckpointError(
                f"expected a config of {name} that agrees with the checkpoint's shapes, got {wrong[0]} "
                f"{settings[wrong[0]]} with tensors for {shapes[wrong[0]]}"
            )
        tower = shared | shapes | settings
        heads = tower.setdefault(
            "num_attention_heads", tower["hidden_size"] // (80 if tower["hidden_size"] == 1280 else 64)
        )
        if heads < 1 or tower["hidden_size"] % heads:
            raise CheckpointError(
                f"expected a number of attention heads of {name} that divides its width {tower['hidden_size']}, got "
                f"{heads}; set num_attention_heads in the config"
            )
        # Gradient checkpointing needs training mode, where dropout would make the reward random.
        towers.append(tower | {"attention_dropout": 0.0, "projection_dim": width})
    return CLIPConfig(vision_config=towers[0], text_config=towers[1], projection_dim=width)


_SHAPES = {
    *("hidden_size", "intermediate_size", "num_hidden_layers", "image_size", "patch_size", "vocab_size"),
    "max_position_embeddings",
}


def _tower(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    hidden, width = tensors[f"{prefix}.resblocks.0.mlp.c_fc.weight"].shape
    layers = {int(m[1]) for key in tensors if (m := re.match(rf"{re.escape(prefix)}\.resblocks\.(\d+)\.", key))}
    return {"hidden_size": width, "intermediate_size": hidden, "num_hidden_layers": len(layers)}


def _tower_settings(config: Mapping[str, Any], tower: str) -> dict[str, Any]:
    section: Mapping[str, Any] = next(
        (config[key] for key in (tower, f"{tower}_config", f"{tower}_cfg") if key in config), {}
    )
    settings = {_NAMES.get(key, key): value for key, value in section.items()}
    if "head_width" in settings and "hidden_size" in settings:
        settings.setdefault("num_attention_heads", settings["hidden_size"] // settings["head_width"])
    return {key: value for key, value in settings.items() if key in _KNOWN and value is not None}
