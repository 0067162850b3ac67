"""The weights that a merge writes, and the models whose weights it must not write."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from ..attaching.block_hook import refuse_fused
from ..errors import TargetError
from ..network import Network
from ..sampling.offload import has_group_offload
from ..targets import check_fits, maskable_layers

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def writable_weights(unet: nn.Module, network: Network) -> dict[str, Tensor]:
    """Return the weights of masked layers by layer name, to be written in place.

    Args:
        unet: the U-Net.
        network: its masked layers.

    Raises:
        TargetError: a weight is not in memory, quantised, shared, of an odd dtype, or has something fused into it.
    """
    check_fits(unet, network)
    for block in network.blocks:
        refuse_fused(unet, block)
    if any(map(has_group_offload, unet.modules())):
        raise TargetError(
            "expected a U-Net without diffusers' group offload, which keeps copies of the weights; merge or unmerge "
            "before enable_group_offload"
        )
    owners = Counter(p.data_ptr() for m in unet.modules() for p in m._parameters.values() if p is not None)
    modules = maskable_layers(unet)
    weights: dict[str, Tensor] = {}
    for layer in network.layers:
        weight: Any = modules[layer.name].weight
        if getattr(unet.get_submodule(layer.name), "lora_magnitude_vector", None):
            raise TargetError(
                f"expected no DoRA on {layer.name}, whose magnitudes follow the weight; merge or unmerge without it"
            )
        # Quantised weights are tensors of a subclass.
        if type(weight.data) is not Tensor or weight.dtype not in _DTYPES:
            raise TargetError(
                f"expected weights in float16, bfloat16, float32 or float64, {layer.name} has {weight.dtype} "
                f"({type(weight.data).__name__}); load the model without quantisation or layerwise casting"
            )
        if weight.is_meta:
            raise TargetError(
                f"expected weights in memory, those of {layer.name} are on the meta device; merge or unmerge before "
                "enable_sequential_cpu_offload"
            )
        if owners[weight.data_ptr()] > 1:
            raise TargetError(
                f"expected weights of its own in {layer.name}, it shares them with another layer, which would be masked too"
            )
        weights[layer.name] = weight.detach()
    return weights
