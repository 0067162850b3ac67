"""Checkpoints in the layout of Stable Diffusion's original code, as A1111 and kohya save them, from diffusers' networks."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
_OUTER = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def _unet_name(name: str, layers: int) -> str:
    module, _, kind = name.rpartition(".")
    if module in _OUTER:
        return f"{_OUTER[module]}.{kind}"
    block = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", name)
    if block is None:
        number, rest = re.match(r"mid_block\.(resnets\.\d|attentions\.0)\.(.*)", name).groups()  # type: ignore[union-attr]
        place = {"resnets.0": 0, "attentions.0": 1, "resnets.1": 2}[number]
        return f"middle_block.{place}.{_resnet(rest)}"
    side, i, part, j, rest = block[1], int(block[2]), block[3], int(block[4]), block[5]
    per_block, outer = layers + 1, "input_blocks" if side == "down" else "output_blocks"
    number = per_block * i + j + (side == "down")
    if part == "downsamplers":
        return f"input_blocks.{per_block * (i + 1)}.0.op.{kind}"
    if part == "upsamplers":  # after the block's last attention, or its last resnet
        return f"output_blocks.{per_block * i + layers}.{{up{i}}}.conv.{kind}"
    return f"{outer}.{number}.{int(part == 'attentions')}.{_resnet(rest)}"


def _resnet(rest: str) -> str:
    module, _, kind = rest.rpartition(".")
    return f"{_RESNET[module]}.{kind}" if module in _RESNET else rest


def original_unet(unet: Any) -> dict[str, Tensor]:
    """Return a U-Net's tensors in the original layout, without a prefix."""
    layers = unet.config.layers_per_block
    places = {f"up{i}": 2 if hasattr(block, "attentions") else 1 for i, block in enumerate(unet.up_blocks)}
    return {_unet_name(name, layers).format(**places): tensor for name, tensor in unet.state_dict().items()}


def original_vae(vae: Any) -> dict[str, Tensor]:
    """Return an autoencoder's tensors in the original layout, without a prefix."""
    blocks, tensors = len(vae.config.block_out_channels), {}
    for name, tensor in vae.state_dict().items():
        new = re.sub(r"encoder\.down_blocks\.(\d)\.resnets\.(\d)", r"encoder.down.\1.block.\2", name)
        new = re.sub(r"encoder\.down_blocks\.(\d)\.downsamplers\.0", r"encoder.down.\1.downsample", new)
        for i in range(blocks):
            new = re.sub(rf"decoder\.up_blocks\.{i}\.resnets\.(\d)", rf"decoder.up.{blocks - 1 - i}.block.\1", new)
            new = new.replace(f"decoder.up_blocks.{i}.upsamplers.0", f"decoder.up.{blocks - 1 - i}.upsample")
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
        if "mid_block.attentions.0." in new:
            module, _, kind = new.split("mid_block.attentions.0.")[1].rpartition(".")
            new = f"{new.split('.')[0]}.mid.attn_1.{_ATTENTION[module]}.{kind}"
            tensor = tensor[..., None, None] if tensor.ndim == 2 else tensor
        tensors[new.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")] = tensor
    return tensors


def original_checkpoint(pipe: Any) -> dict[str, Tensor]:
    """Return the tensors of a pipeline of Stable Diffusion 1.x as one original checkpoint."""
    parts = {
        "model.diffusion_model.": original_unet(pipe.unet),
        "first_stage_model.": original_vae(pipe.vae),
        "cond_stage_model.transformer.text_model.": pipe.text_encoder.state_dict(),
    }
    return {prefix + name: t.contiguous() for prefix, tensors in parts.items() for name, t in tensors.items()}
