"""The layout of the authors' checkpoints, read into ours.

Theirs are two state dicts: `mask_generators.N` holds W1, c1 (`conv_kernel_mask.0`), W2, c2 (`conv_kernel_mask.2`) and
P (`proj_temb`) of up block N as 1 by 1 convolutions; `adapters.N` holds A, a (`conv_in`) and B, b (`conv_out`) of each
layer, whose name has underscores for dots. The up block without attention has a generator that nothing uses; it is
left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from ..errors import CheckpointError
from ..targets import BlockSpec, Network, describe, maskable_layers, unet_of

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
    """Read the authors' two state dicts.

    Returns:
        The network they mask, the tensors of a `MaskGenerator` for it, its hidden width and its reduction.

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
    named: list[str] = []
    for key, value in _without_prefix(adapters, "adapters").items():
        match = _ADAPTER.fullmatch(key)
        name = by_key.get(f"{match[1]}.{match[2]}") if match else None
        if match is None or name is None:
            raise CheckpointError(
                f"expected adapter keys like '1.attentions_0_transformer_blocks_0_attn1_to_q.conv_in.weight' whose layer "
                f"this U-Net has, got {key!r}. Was the checkpoint made for another U-Net?"
            )
        if name not in named:
            named.append(name)
        layer_key = name.removeprefix(f"up_blocks.{match[1]}.").replace(".", "__")
        tensors[f"blocks.up_blocks__{match[1]}.layers.{layer_key}.{_PARTS[match[3], match[4]]}"] = (
            value.flatten(1) if value.ndim > 1 else value
        )
    if not named:
        raise CheckpointError("expected adapters of at least one layer, got an empty state dict")
    network = describe(unet, named)
    for block in network.blocks:
        index = block.name.rsplit(".", 1)[1]
        for theirs, ours in _GENERATOR.items():
            key = f"{index}.{theirs}"
            if key not in generators:
                raise CheckpointError(f"expected {key!r} among the mask generators; it is missing")
            tensors[f"blocks.up_blocks__{index}.{ours}"] = (
                generators[key].flatten(1) if generators[key].ndim > 1 else generators[key]
            )
    return (network, tensors, *_sizes(network, tensors))


def _sizes(network: Network, tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """Hidden width and reduction of the generator, checked against every shape."""
    first = network.blocks[0]
    prefix = f"blocks.{first.name.replace('.', '__')}"
    hidden = tensors[f"{prefix}.hidden.weight"].shape[0]
    some = first.layers[0].name.removeprefix(first.name + ".").replace(".", "__")
    key = f"{prefix}.layers.{some}.out_weight"
    if key not in tensors or tensors[key].ndim != 2 or not tensors[key].shape[1]:
        raise CheckpointError(
            f"expected conv_in.weight (O, o, 1, 1) of {first.layers[0].name} among the adapters; it is missing or of "
            "another shape"
        )
    reduction = max(1, first.out_channels // tensors[key].shape[1])
    wrong: list[str] = []

    def expect(key: str, *shape: int) -> None:
        found = tuple(tensors[key].shape) if key in tensors else None
        if found != shape:
            wrong.append(f"{key} expected {shape}, got {found}")

    for block in network.blocks:
        _expect_block(block, hidden, reduction, expect)
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise CheckpointError(f"the authors' checkpoint does not fit this U-Net: {'; '.join(wrong[:3])}{more}")
    return hidden, reduction


def _expect_block(block: BlockSpec, hidden: int, reduction: int, expect) -> None:  # type: ignore[no-untyped-def]
    prefix = f"blocks.{block.name.replace('.', '__')}"
    rows, columns = max(1, block.out_channels // reduction), max(1, block.in_channels // reduction)
    expect(f"{prefix}.temb_proj.weight", block.in_channels, block.temb_channels)
    expect(f"{prefix}.hidden.weight", hidden, block.in_channels)
    expect(f"{prefix}.reduced.weight", rows * columns, hidden)
    for layer in block.layers:
        key = f"{prefix}.layers.{layer.name.removeprefix(block.name + '.').replace('.', '__')}"
        outputs, inputs = layer.shape[:2]
        expect(f"{key}.out_weight", outputs, rows)
        expect(f"{key}.out_bias", outputs)
        expect(f"{key}.in_weight", inputs, columns)
        expect(f"{key}.in_bias", inputs)
