"""Targets: which layers of a U-Net are masked.

Names are those of `unet.named_modules()` without the `.base_layer` of PEFT and the `._orig_mod` of `torch.compile`, so a
layer has the same name before and after a LoRA is added, and inside compiled parts.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from .errors import TargetError
from .network import BlockSpec, LayerSpec, Network
from .quantised import is_maskable, refusal, weight_shape
from .settings import Targets

_ATTENTION = r"(to_q|to_k|to_v|to_out\.0)"
_CONVOLUTION = r"(resnets|upsamplers|downsamplers)\.\d+\.conv\w*"
_OTHER = r"proj_in|proj_out|ff\.net\.(0\.proj|2)|time_emb_proj"
#: Named sets of targets, as regular expressions over layer names.
PRESETS = {
    "decoder-attention": rf"up_blocks\..+\.{_ATTENTION}",
    "decoder-attention-conv": rf"up_blocks\..+\.({_ATTENTION}|{_CONVOLUTION})",
    "all": rf"((down_blocks|up_blocks)\.\d+|mid_block)\.(.+\.)?({_ATTENTION}|{_CONVOLUTION})",
    "every-layer": rf"((down_blocks|up_blocks)\.\d+|mid_block)\.(.+\.)?({_ATTENTION}|{_CONVOLUTION}|{_OTHER})",
}
#: Layers of video U-Nets that mix frames: their rows are positions and not samples, so masks per row would hit wrong rows.
_TEMPORAL = re.compile(r"\.(motion_modules|temp_attentions|temp_convs|temporal_\w+)\.")
_BLOCK = re.compile(r"((?:down_blocks|up_blocks)\.\d+|mid_block)\.")
#: What PEFT and `torch.compile` add to the names of the modules that they wrap.
_WRAPPERS = re.compile(r"\.(base_layer|_orig_mod)(?=\.|$)")


def unet_of(model: Any) -> nn.Module:
    """Return the U-Net of a model, unwrapped from `torch.compile` and DDP.

    Args:
        model: a pipeline or a U-Net.

    Raises:
        TargetError: there is no U-Net, or it is a `DataParallel`.
    """
    unet = getattr(model, "unet", None)
    unet = model if unet is None else unet
    unet = getattr(unet, "_orig_mod", unet)
    if isinstance(unet, nn.DataParallel):
        raise TargetError(
            "expected a U-Net on one device, got a DataParallel, whose replicas share no masks; attach to its .module and "
            "run one process per GPU (torchrun)"
        )
    if isinstance(unet, nn.parallel.DistributedDataParallel):
        unet = unet.module
    if not isinstance(unet, nn.Module) or not hasattr(unet, "up_blocks"):
        raise TargetError(
            f"expected a Stable Diffusion pipeline or its U-Net (a module with up_blocks), got {type(model).__name__}. "
            "Pass the pipeline that diffusers loaded, or pipe.unet."
        )
    return unet


def maskable_layers(unet: nn.Module) -> dict[str, nn.Module]:
    """Return the Linear and Conv2d layers inside a U-Net's blocks by name.

    Args:
        unet: the U-Net.
    """
    return {name: module for name, module in _layers(unet).items() if is_maskable(module)}


def _layers(unet: nn.Module) -> dict[str, nn.Module]:
    """The modules inside a U-Net's blocks by name, unwrapped, without those of LoRAs and those that mix frames."""
    return {
        _clean(name): module  # a wrapped module comes after its wrapper
        for name, module in unet.named_modules()
        if _BLOCK.match(name) and not re.search(r"\.lora_\w", name) and not _TEMPORAL.search(f"{name}.")
    }


def _clean(name: str) -> str:
    return _WRAPPERS.sub("", name)


def submodule(unet: nn.Module, name: str) -> nn.Module:
    """Return a module of a U-Net, unwrapped from `torch.compile`.

    Args:
        unet: the U-Net.
        name: its name, without the parts that wrappers add.
    """
    module = unet.get_submodule(name)
    return getattr(module, "_orig_mod", module)


def resolve(unet: nn.Module, targets: Targets) -> list[str]:
    """Return the names of the layers that targets select, in the network's order.

    Args:
        unet: the U-Net.
        targets: a preset ("decoder-attention", "decoder-attention-conv", "all": both in every block,
            "every-layer": every Linear and convolution of the blocks), a regular expression that must match
            whole names, or a list of suffixes, like PEFT's `target_modules`. Layers that mix the frames of a video are
            never chosen.

    Raises:
        TargetError: nothing matches, a suffix matches nothing, or a match cannot be masked; near misses are listed.
    """
    layers = maskable_layers(unet)
    modules = [_clean(n) for n, _ in unet.named_modules() if n and ".lora_" not in n]
    names = [name for name in dict.fromkeys(modules) if not _TEMPORAL.search(f"{name}.")]
    if isinstance(targets, str):
        try:
            pattern = re.compile(PRESETS.get(targets, targets))
        except re.error as error:
            raise TargetError(
                f"expected a preset ({', '.join(PRESETS)}), a regular expression or a list of suffixes as targets, got "
                f"{targets!r}, which is not a regular expression ({error})"
            ) from error
        selected = [name for name in names if pattern.fullmatch(name)]
        if not selected:
            raise _no_match(targets, layers)
    else:
        suffixes = list(targets)
        if not suffixes:
            raise TargetError("expected at least one suffix as targets, got an empty list")
        for suffix in suffixes:
            if not any(_has_suffix(name, suffix) for name in names):
                raise _no_match(suffix, layers)
        selected = [name for name in names if any(_has_suffix(name, suffix) for suffix in suffixes)]
    unmaskable = [name for name in selected if name not in layers]
    if unmaskable:
        by_name = {_clean(name): module for name, module in unet.named_modules()}
        _refuse_quantised(by_name, unmaskable)
        shown = ", ".join(f"{n} ({type(by_name.get(n)).__name__})" for n in unmaskable[:5])
        examples = [n for n in selected if n in layers][:3] or _near_misses(unmaskable[0], layers)
        raise TargetError(
            f"targets match {len(unmaskable)} module(s) that cannot be masked: {shown}. Only Linear and Conv2d layers "
            f"inside down_blocks, mid_block and up_blocks can, such as {', '.join(examples)}."
        )
    return selected


def _refuse_quantised(modules: Mapping[str, nn.Module], names: Iterable[str]) -> None:
    """Refuse layers that are not maskable for their weights' number format."""
    for name in names:
        if name in modules and (reason := refusal(modules[name])) is not None:
            raise TargetError(f"expected weights that masks can multiply, {name} has {reason}")


def _has_suffix(name: str, suffix: str) -> bool:
    return name == suffix or name.endswith("." + suffix)


def _near_misses(target: str, layers: Iterable[str]) -> list[str]:
    names = list(layers)
    suffixes = {".".join(n.split(".")[-k:]) for n in names for k in (1, 2, 3)}
    matches = difflib.get_close_matches(target, [*PRESETS, *sorted(suffixes), *names], n=4, cutoff=0.4)
    return matches or names[:3]


def _no_match(target: str, layers: Iterable[str]) -> TargetError:
    near = ", ".join(_near_misses(target, layers)) or "none: the U-Net has no maskable layer"
    return TargetError(
        f"targets {target!r} match no layer. Near misses: {near}. Presets: {', '.join(PRESETS)}. A string is a regular "
        "expression that must match whole names; a list holds suffixes."
    )


def describe(model: Any, targets: Targets = "decoder-attention") -> Network:
    """Describe the blocks and layers of a U-Net that targets select.

    Args:
        model: a pipeline or a U-Net.
        targets: which layers; see `resolve`.

    Raises:
        TargetError: there is no U-Net, or the targets match nothing or something that cannot be masked.
    """
    unet = unet_of(model)
    layers = maskable_layers(unet)
    by_block: dict[str, list[LayerSpec]] = {}
    for name in resolve(unet, targets):
        by_block.setdefault(block_of(name), []).append(LayerSpec(name, weight_shape(layers[name])))
    blocks = []
    for block, specs in by_block.items():
        resnet: Any = submodule(unet, block).resnets[0]  # type: ignore[index,union-attr]
        resnet = getattr(resnet, "spatial_res_block", resnet)  # Stable Video Diffusion's
        conv = getattr(resnet.conv1, "base_layer", resnet.conv1)
        temb = getattr(resnet.time_emb_proj, "base_layer", resnet.time_emb_proj)
        blocks.append(BlockSpec(block, conv.in_channels, conv.out_channels, temb.in_features, tuple(specs)))
    return Network(tuple(blocks))


def block_of(name: str) -> str:
    """Return the name of a layer's block.

    Args:
        name: dotted name of the layer.

    Raises:
        TargetError: the layer lies outside the U-Net's blocks.
    """
    match = _BLOCK.match(name)
    if match is None:
        raise TargetError(f"expected a layer inside down_blocks, mid_block or up_blocks, got {name!r}")
    return match[1]


def check_fits(unet: nn.Module, network: Network) -> None:
    """Refuse a network description of another U-Net.

    Args:
        unet: the U-Net.
        network: what a masker was built for.

    Raises:
        TargetError: layers or blocks differ, or masks cannot multiply their weights; the first ones are named.
    """
    layers = maskable_layers(unet)
    _refuse_quantised(_layers(unet), (layer.name for layer in network.layers))
    differences = []
    for layer in network.layers:
        module = layers.get(layer.name)
        if module is None:
            differences.append(f"{layer.name} is not in this U-Net")
        elif (shape := weight_shape(module)) != layer.shape:
            differences.append(f"{layer.name} expected {layer.shape}, got {shape}")
    if not differences:
        actual = {b.name: _channels(b) for b in describe(unet, [x.name for x in network.layers]).blocks}
        for block in network.blocks:
            expected = _channels(block)
            if any(expected) and expected != actual[block.name]:  # masks that are given know no channels
                differences.append(f"{block.name} expected channels {expected}, got {actual[block.name]}")
    if differences:
        omitted = f" (and {len(differences) - 5} more)" if len(differences) > 5 else ""
        raise TargetError(f"the masker was made for another network: {'; '.join(differences[:5])}{omitted}")


def _channels(block: BlockSpec) -> tuple[int, int, int]:
    return block.in_channels, block.out_channels, block.temb_channels
