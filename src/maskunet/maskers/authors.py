"""Convert the authors' checkpoints to the layout of `MaskGenerator`.

They are two state dicts. `mask_generators.N` holds W1, c1 (`conv_kernel_mask.0`), W2, c2 (`conv_kernel_mask.2`) and
P (`proj_temb`) of up block N as 1 by 1 convolutions. `adapters.N` holds A, a (`conv_in`) and B, b (`conv_out`) of each
layer, with underscores for dots in its name. The generator of the up block without attention is unused and left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from ..errors import CheckpointError
from ..network import BlockSpec, Network
from ..targets import describe, maskable_layers, unet_of
from .base import module_key
from .conditional import layer_key

_ADAPTER = re.compile(r"(\d+)\.(.+)\.(conv_in|conv_out)\.(weight|bias)")
_PARTS = {
    ("conv_in", "weight"): "out_weight",
    ("conv_in", "bias"): "out_bias",
    ("conv_out", "weight"): "in_weight",
    ("conv_out", "bias"): "in_bias",
}
_GENERATOR = {
    "proj_temb.weight": "temb_proj.weight",
    "conv_kernel_mask.0.weight": "hidden.weight",
    "conv_kernel_mask.0.bias": "hidden.bias",
    "conv_kernel_mask.2.weight": "reduced.weight",
    "conv_kernel_mask.2.bias": "reduced.bias",
}


def _without_prefix(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {re.sub(rf"^(module\.)?({name}\.)?", "", key): value for key, value in tensors.items()}


def from_authors_layout(
    model: nn.Module, mask_generators: Mapping[str, Tensor], adapters: Mapping[str, Tensor]
) -> tuple[Network, dict[str, Tensor], int, int]:
    """Convert the authors' two state dicts.

    Args:
        model: the U-Net or its pipeline.
        mask_generators: their state dict of the mask generators.
        adapters: their state dict of the adapters.

    Returns:
        The masked network, and tensors, hidden width and reduction of a `MaskGenerator` for it.

    Raises:
        CheckpointError: keys are missing or unknown, or shapes do not fit the U-Net.
    """
    unet = unet_of(model)
    layers = maskable_layers(unet)
    by_key = {
        f"{index}.{name.removeprefix(f'up_blocks.{index}.').replace('.', '_')}": name
        for name in layers
        for index in re.findall(r"^up_blocks\.(\d+)\.", name)
    }
    generators = _without_prefix(mask_generators, "mask_generators")
    tensors: dict[str, Tensor] = {}
    names: list[str] = []
    for key, value in _without_prefix(adapters, "adapters").items():
        match = _ADAPTER.fullmatch(key)
        name = by_key.get(f"{match[1]}.{match[2]}") if match else None
        if match is None or name is None:
            raise CheckpointError(
                f"expected adapter keys like '1.attentions_0_transformer_blocks_0_attn1_to_q.conv_in.weight' whose layer "
                f"this U-Net has, got {key!r}. Was the checkpoint made for another U-Net?"
            )
        if name not in names:
            names.append(name)
        key = layer_key(name, f"up_blocks.{match[1]}")
        tensors[f"blocks.up_blocks__{match[1]}.layers.{key}.{_PARTS[match[3], match[4]]}"] = (
            value.flatten(1) if value.ndim > 1 else value
        )
    if not names:
        raise CheckpointError("expected adapters of at least one layer, got an empty state dict")
    network = describe(unet, names)
    for block in network.blocks:
        index = block.name.rsplit(".", 1)[1]
        for authors_key, generator_key in _GENERATOR.items():
            key = f"{index}.{authors_key}"
            if key not in generators:
                raise CheckpointError(f"expected {key!r} among the mask generators; it is missing")
            tensors[f"blocks.up_blocks__{index}.{generator_key}"] = (
                generators[key].flatten(1) if generators[key].ndim > 1 else generators[key]
            )
    return (network, tensors, *_sizes(network, tensors))


def _sizes(network: Network, tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """Hidden width and reduction of the generator; every shape is checked against them."""
    first = network.blocks[0]
    prefix = f"blocks.{module_key(first.name)}"
    hidden = tensors[f"{prefix}.hidden.weight"].shape[0]
    key = f"{prefix}.layers.{layer_key(first.layers[0].name, first.name)}.out_weight"
    if key not in tensors or tensors[key].ndim != 2 or not tensors[key].shape[1]:
        raise CheckpointError(
            f"expected conv_in.weight (O, o, 1, 1) of {first.layers[0].name} among the adapters; it is missing or of "
            "another shape"
        )
    reduction = max(1, first.out_channels // tensors[key].shape[1])
    differences: list[str] = []
    for block in network.blocks:
        for name, shape in _expected_shapes(block, hidden, reduction).items():
            actual = tuple(tensors[name].shape) if name in tensors else None
            if actual != shape:
                differences.append(f"{name} expected {shape}, got {actual}")
    if differences:
        omitted = f" (and {len(differences) - 3} more)" if len(differences) > 3 else ""
        raise CheckpointError(
            f"the authors' checkpoint does not fit this U-Net: {'; '.join(differences[:3])}{omitted}"
        )
    return hidden, reduction


def _expected_shapes(block: BlockSpec, hidden: int, reduction: int) -> dict[str, tuple[int, ...]]:
    prefix = f"blocks.{module_key(block.name)}"
    rows, columns = max(1, block.out_channels // reduction), max(1, block.in_channels // reduction)
    shapes: dict[str, tuple[int, ...]] = {
        f"{prefix}.temb_proj.weight": (block.in_channels, block.temb_channels),
        f"{prefix}.hidden.weight": (hidden, block.in_channels),
        f"{prefix}.reduced.weight": (rows * columns, hidden),
    }
    for layer in block.layers:
        key = f"{prefix}.layers.{layer_key(layer.name, block.name)}"
        outputs, inputs = layer.shape[:2]
        shapes |= {f"{key}.out_weight": (outputs, rows), f"{key}.out_bias": (outputs,)}
        shapes |= {f"{key}.in_weight": (inputs, columns), f"{key}.in_bias": (inputs,)}
    return shapes
