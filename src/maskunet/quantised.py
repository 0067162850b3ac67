"""Quantised layers: which of them masks can act on, and their weights as numbers that a mask multiplies.

Weight-only formats are dequantised at each call, as their own forward does. Formats that quantise the inputs too are
refused: masked layers would compute something other than the base.
"""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_COMPUTED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_REMEDY = "load the U-Net without quantisation, as GGUF, or with 4-bit bitsandbytes weights"
#: Attributes of torchao's tensors that are set where the inputs are quantised or rescaled too.
_INPUT_ATTRIBUTES = ("act_quant_kwargs", "activation_quantization", "act_pre_scale", "act_scale", "input_quant_func")


def _class_of(module: nn.Module, package: str, names: tuple[str, ...]) -> type | None:
    """The class of a module that has one of these names in a package, without an import of the package."""
    for kind in type(module).__mro__:
        if kind.__name__ in names and kind.__module__.split(".")[0] == package:
            return kind
    return None


def _gguf(module: nn.Module) -> type | None:
    return _class_of(module, "diffusers", ("GGUFLinear",))


def _four_bit(module: nn.Module) -> type | None:
    return _class_of(module, "bitsandbytes", ("Linear4bit",))


def _is_plain(weight: Tensor) -> bool:
    """Whether a weight is no tensor with a number format of its own."""
    kind = type(weight)
    return kind is nn.Parameter or (kind.__module__.split(".")[0] != "torchao" and not hasattr(weight, "quant_type"))


def is_quantised(module: nn.Module) -> bool:
    """Return whether the numbers of a layer's weight differ from what its `weight` stores.

    Args:
        module: a Linear or Conv2d.
    """
    if type(module) in (nn.Linear, nn.Conv2d):
        return not _is_plain(module.weight)  # type: ignore[arg-type]
    return _gguf(module) is not None or _four_bit(module) is not None


def refusal(module: nn.Module) -> str | None:
    """Return why masks cannot act on a layer, with what to do; None where they can, or where it is no such layer.

    Args:
        module: any module.
    """
    kind = type(module)
    if kind in (nn.Linear, nn.Conv2d):
        return _weight_refusal(module)
    if _class_of(module, "bitsandbytes", ("Linear8bitLt",)):
        return f"8-bit bitsandbytes weights, whose layers quantise their inputs too; {_REMEDY}"
    if _gguf(module) or _four_bit(module):
        return None
    if isinstance(module, nn.Linear | nn.Conv2d) and not kind.__module__.startswith(("torch.", "peft.")):
        return f"weights of {kind.__module__}.{kind.__name__}, which masks cannot read; {_REMEDY}"
    return None


def _weight_refusal(module: nn.Module) -> str | None:
    weight: Any = module.weight
    name = type(weight).__name__
    if not _is_plain(weight):
        if type(weight).__module__.split(".")[0] != "torchao" or not hasattr(type(weight), "dequantize"):
            return f"a weight of the format {name}, which masks cannot read; {_REMEDY}"
        if any(getattr(weight, attribute, None) is not None for attribute in _INPUT_ATTRIBUTES):
            return (
                f"torchao's {name}, whose layers quantise their inputs too; quantise weights alone "
                f"(Int8WeightOnlyConfig), or {_REMEDY}"
            )
        if type(weight).dequantize is Tensor.dequantize:
            return f"torchao's {name}, which has no dequantize(); {_REMEDY}"
        return None
    if weight.dtype in _COMPUTED or _is_cast_before_use(module):
        return None
    stored = str(weight.dtype).removeprefix("torch.")
    return (
        f"weights in {stored}, in which layers do not compute; load them in bfloat16, and store them in {stored} with "
        "unet.enable_layerwise_casting(storage_dtype, compute_dtype)"
    )


def _is_cast_before_use(module: nn.Module) -> bool:
    """Whether diffusers casts the weight to a dtype that computes just before the layer's own forward."""
    return "layerwise_casting" in getattr(getattr(module, "_diffusers_hook", None), "hooks", {})


def is_maskable(module: nn.Module) -> bool:
    """Return whether masks can act on a module: a Linear or Conv2d whose weight they can read.

    Args:
        module: any module.
    """
    # Exact types: another subclass may compute something other than weight times input.
    is_layer = type(module) in (nn.Linear, nn.Conv2d) or is_quantised(module)
    return is_layer and refusal(module) is None


def weight_shape(module: nn.Module) -> tuple[int, ...]:
    """Return the shape of a layer's weight, (O, I) or (O, I / groups, kh, kw), however it is packed.

    Args:
        module: a maskable layer.
    """
    if isinstance(module, nn.Linear) and is_quantised(module):
        return (module.out_features, module.in_features)
    return tuple(module.weight.shape)  # type: ignore[arg-type]


@torch.no_grad()
def dense_weight(module: nn.Module, dtype: torch.dtype | None = None) -> Tensor:
    """Return a layer's weight as plain numbers; the weight itself where it is not quantised.

    Args:
        module: a maskable layer.
        dtype: dtype of its inputs, which some formats compute in; the format's usual one if None.
    """
    weight: Any = module.weight
    if not is_quantised(module):
        return weight  # type: ignore[no-any-return]
    if (kind := _gguf(module)) is not None:
        compute: Any = module.compute_dtype or torch.float32
        numbers: Tensor = vars(sys.modules[kind.__module__])["dequantize_gguf_tensor"](weight)
        return numbers.to(compute)
    if _four_bit(module) is not None:
        return _dequantise_four_bit(module, dtype)
    return weight.dequantize().detach()  # type: ignore[no-any-return]


def _dequantise_four_bit(module: Any, dtype: torch.dtype | None) -> Tensor:
    weight = module.weight
    state = getattr(weight, "quant_state", None) or module.quant_state
    compute = module.compute_dtype
    # A layer without a compute dtype takes that of its first inputs.
    if not module.compute_type_is_set and dtype in (torch.float32, torch.bfloat16):
        compute = dtype
    compute = compute or dtype or torch.float32
    if state is None:  # not yet moved to a device, which quantises it
        return weight.data.to(compute)  # type: ignore[no-any-return]
    functional: Any = importlib.import_module("bitsandbytes.functional")
    data = weight.data
    if getattr(state, "packing_format_for_cpu", False):
        # The layer repacks its weight for some CPUs. The inverse overwrites the state and leaves the scales transposed.
        scales, state = state.absmax.T.reshape(-1).float(), copy.copy(state)
        state.original_nested = False
        data, state = functional._convert_weight_packed_for_cpu_inverse(data, state)
        state.absmax = scales
    return functional.dequantize_4bit(data, state).to(compute)  # type: ignore[no-any-return]


def run_dequantised(module: nn.Module, x: Tensor, run: Callable[[nn.Module, Tensor], Tensor]) -> Tensor:
    """Compute a quantised layer by a plain one with the same weight.

    Args:
        module: a quantised layer.
        x: its inputs.
        run: computes a plain layer.

    Returns:
        The outputs, in the dtype of the layer's own.
    """
    plain = _plain_layer(module, dense_weight(module, x.dtype))
    if _four_bit(module) is None:
        return run(plain, x)
    return run(plain, x.to(plain.weight.dtype)).to(x.dtype)  # type: ignore[arg-type]


def _plain_layer(module: nn.Module, weight: Tensor) -> nn.Module:
    """A Linear or Conv2d with the attributes of a layer and another weight."""
    kind = nn.Conv2d if isinstance(module, nn.Conv2d) else nn.Linear
    plain = object.__new__(kind)
    bias: Any = module.bias
    vars(plain).update(
        {name: value for name, value in vars(module).items() if name not in ("forward", "_old_forward")}
    )
    plain._parameters = {"weight": weight, "bias": None if bias is None else bias.to(weight.dtype)}  # type: ignore[dict-item]
    return plain
