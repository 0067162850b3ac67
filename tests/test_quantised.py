"""Quantised layers: masked as if their weights were plain numbers, or refused in one line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

import maskunet as mu
from maskunet.errors import DataError, TargetError
from maskunet.maskers import FixedMasks, LowRankMasker, MaskSchedule, RandomMasks
from maskunet.quantised import dense_weight, is_maskable, is_quantised, weight_shape
from maskunet.targets import describe
from maskunet.training.full_method import FullMethod

Unet = UNet2DConditionModel
#: Layers whose widths are multiples of 32, the smallest block of the formats.
LAYERS = r"up_blocks\.1\.attentions\.\d\..*attn1\.(to_q|to_k|to_v|to_out\.0)"
pytestmark = pytest.mark.filterwarnings("ignore")  # of the formats' own packages


class Int8Tensor(torch.Tensor):
    """A weight-only tensor as torchao's: whole numbers with a scale per row, and a product of its own."""

    scale: Tensor
    act_quant_kwargs: Any = None

    @staticmethod
    def __new__(cls, data: Tensor) -> Int8Tensor:
        scale = data.abs().amax(1, keepdim=True) / 127
        self = torch.Tensor._make_subclass(cls, torch.round(data / scale))
        self.scale = scale
        return self

    def dequantize(self) -> Tensor:
        return self.as_subclass(torch.Tensor) * self.scale

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is F.linear:
            x, weight, bias = args
            product = F.linear(x, weight.as_subclass(torch.Tensor)) * weight.scale.T
            return product if bias is None else product + bias
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))


Int8Tensor.__module__ = "torchao.quantization"


class GGUFLinear(nn.Linear):
    """A layer as diffusers' GGUF: bytes that its own function turns into numbers at each call."""

    compute_dtype = torch.float32

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, dequantize_gguf_tensor(self.weight).to(self.compute_dtype), self.bias)


GGUFLinear.__module__ = "diffusers.quantizers.gguf.utils"


def dequantize_gguf_tensor(tensor: Tensor) -> Tensor:
    return tensor[:, :-1].float() / 50 - 1


class QuantState:
    """Shape of a packed weight."""

    def __init__(self, shape: torch.Size) -> None:
        self.shape = shape


class Linear4bit(nn.Linear):
    """A layer as bitsandbytes' 4-bit one: a packed column of bytes, computed in the dtype of the first inputs."""

    compute_dtype: torch.dtype | None = None
    compute_type_is_set = False

    def forward(self, x: Tensor) -> Tensor:
        self.compute_dtype, self.compute_type_is_set = x.dtype, True
        weight: Any = self.weight
        return F.linear(x, dequantize_4bit(weight.data, weight.quant_state).to(x.dtype), self.bias)


Linear4bit.__module__ = "bitsandbytes.nn.modules"


def dequantize_4bit(data: Tensor, state: QuantState) -> Tensor:
    return torch.cat([data >> 4, data & 15], 1).float().reshape(state.shape) / 8 - 1


class Linear8bitLt(nn.Linear):
    """A layer as bitsandbytes' 8-bit one, which quantises its inputs too."""


Linear8bitLt.__module__ = "bitsandbytes.nn.modules"


def replace(unet: Unet, make: Callable[[nn.Linear], nn.Linear]) -> None:
    """Replace the layers of `LAYERS`."""
    for layer in describe(unet, LAYERS).layers:
        parent, _, name = layer.name.rpartition(".")
        setattr(unet.get_submodule(parent), name, make(unet.get_submodule(layer.name)).requires_grad_(False))  # type: ignore[arg-type]


def like(layer: nn.Linear, kind: type[nn.Linear], weight: Tensor) -> nn.Linear:
    new = kind(layer.in_features, layer.out_features, bias=layer.bias is not None)
    new.weight = nn.Parameter(weight, requires_grad=False)
    new.bias = layer.bias
    return new


def fake_torchao(layer: nn.Linear) -> nn.Linear:
    layer._parameters["weight"] = Int8Tensor(layer.weight.data)  # type: ignore[assignment]
    return layer


def fake_gguf(layer: nn.Linear) -> nn.Linear:
    numbers = (layer.weight.clamp(-1, 1) * 50 + 50).round().to(torch.uint8)
    return like(layer, GGUFLinear, F.pad(numbers, (0, 1)))


def fake_four_bit(layer: nn.Linear) -> nn.Linear:
    numbers = (layer.weight * 8 + 8).round().clamp(0, 15).to(torch.uint8).reshape(-1, 2)
    new = like(layer, Linear4bit, numbers[:, :1] * 16 + numbers[:, 1:])
    new.weight.quant_state = QuantState(layer.weight.shape)  # type: ignore[attr-defined]
    return new


def real_torchao(layer: nn.Linear) -> nn.Linear:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(layer, Int8WeightOnlyConfig(version=2))
    return layer


def real_gguf(layer: nn.Linear) -> nn.Linear:
    import gguf
    from diffusers.quantizers.gguf import utils

    kind = gguf.GGMLQuantizationType.Q8_0
    weight = torch.from_numpy(gguf.quants.quantize(layer.weight.numpy(), kind))
    new = utils.GGUFLinear(layer.in_features, layer.out_features, layer.bias is not None, compute_dtype=torch.float32)
    new.weight, new.bias = utils.GGUFParameter(weight, quant_type=kind), layer.bias
    return new


def real_four_bit(layer: nn.Linear) -> nn.Linear:
    from bitsandbytes.nn import Linear4bit, Params4bit

    new = Linear4bit(layer.in_features, layer.out_features, layer.bias is not None, quant_type="nf4")
    new.weight = Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4", module=new)
    new.bias = layer.bias
    return new.to("cpu")  # quantises


#: Layers by format: how one is made, the package of the real one, and how far the two products may differ by rounding.
FORMATS: dict[str, tuple[Callable[[nn.Linear], nn.Linear], str, float]] = {
    "like torchao": (fake_torchao, "", 1e-5),
    "like GGUF": (fake_gguf, "", 0),
    "like 4-bit": (fake_four_bit, "", 0),
    "torchao": (real_torchao, "torchao", 1e-5),
    "GGUF": (real_gguf, "gguf", 0),
    "4-bit": (real_four_bit, "bitsandbytes", 2e-2),  # its kernels for some CPUs compute in bfloat16
}


@pytest.fixture(params=list(FORMATS))
def quantised(request: pytest.FixtureRequest, sd1: Unet, monkeypatch: pytest.MonkeyPatch) -> tuple[Unet, float]:
    make, package, tolerance = FORMATS[request.param]
    if package:
        pytest.importorskip(package)
    elif request.param == "like GGUF":
        module = ModuleType(GGUFLinear.__module__)
        module.dequantize_gguf_tensor = dequantize_gguf_tensor  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
    elif request.param == "like 4-bit":
        module = ModuleType("bitsandbytes.functional")
        module.dequantize_4bit = dequantize_4bit  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "bitsandbytes", ModuleType("bitsandbytes"))
        monkeypatch.setitem(sys.modules, module.__name__, module)
    replace(sd1, make)
    return sd1, tolerance


def close(ours: Tensor, reference: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(ours, reference, atol=tolerance, rtol=tolerance)


def draw_masks(unet: Unet, rows: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    return {
        layer.name: (torch.rand((rows, *layer.shape), generator=generator) < 0.6).float()
        for layer in describe(unet, LAYERS).layers
    }


def test_masks_multiply_the_numbers_that_the_weights_stand_for(
    quantised: tuple[Unet, float], make_unet: Callable[[str], Unet], predict: Callable[..., Tensor]
) -> None:
    unet, tolerance = quantised
    assert describe(unet, LAYERS) == describe(make_unet("sd1"), LAYERS)
    base = predict(unet)
    masks = draw_masks(unet, 2)
    mu.attach(unet, FixedMasks({name: torch.ones_like(mask) for name, mask in masks.items()}))
    close(predict(unet), base, tolerance)

    mu.attach(unet, FixedMasks(masks))
    masked = predict(unet)
    plain = make_unet("sd1")
    for row in range(2):
        for name, mask in masks.items():
            layer = unet.get_submodule(name)
            assert is_quantised(layer)
            plain.get_submodule(name).weight.data = dense_weight(layer, torch.float32) * mask[row]
        close(masked[row], predict(plain)[row], 1e-5)
    assert (masked - base).abs().max() > 0.05

    mu.attach(unet, FixedMasks(masks), strength=0.0)
    assert torch.equal(predict(unet), base)
    mu.detach(unet)
    assert torch.equal(predict(unet), base)


@pytest.mark.parametrize("kind", [LowRankMasker, RandomMasks])
def test_every_form_of_mask_reads_quantised_weights(
    quantised: tuple[Unet, float], predict: Callable[..., Tensor], kind: Any
) -> None:
    unet, _ = quantised
    masker = kind.for_unet(unet, targets=LAYERS) if kind is RandomMasks else low_rank(unet)
    mu.attach(unet, masker)
    with mu.record(unet) as trace:
        expected = predict(unet)
    close(predict(unet), expected, 1e-5)
    mu.attach(unet, FixedMasks({name: mask.float() for name, mask in trace.masks.items()}))
    close(predict(unet), expected, 1e-5)


def low_rank(unet: Unet) -> LowRankMasker:
    masker = LowRankMasker.for_unet(unet, mu.LowRankMaskerConfig(targets=LAYERS), seed=3)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in masker.parameters():
            parameter.add_(0.6 * torch.randn(parameter.shape, generator=generator))
    return masker


def test_a_masker_trains_over_quantised_weights(
    quantised: tuple[Unet, float], inputs: Callable[..., dict[str, Any]]
) -> None:
    unet, _ = quantised
    masker = low_rank(unet).train()
    mu.attach(unet, masker, seed=1)
    unet(**inputs(unet)).sample.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in masker.parameters())


def test_masks_move_between_a_quantised_model_and_a_plain_one(
    quantised: tuple[Unet, float], make_unet: Callable[[str], Unet], tmp_path: Any
) -> None:
    unet, _ = quantised
    network = describe(unet, LAYERS)
    schedule = MaskSchedule(network, [1.0], samples=1)
    schedule.set(0, draw_masks(unet, 1))
    schedule.save_pretrained(tmp_path)
    for model in (unet, make_unet("sd1")):
        mu.attach(model, mu.load(tmp_path))


def activations(layer: nn.Linear) -> nn.Linear:
    layer = fake_torchao(layer)
    layer.weight.act_quant_kwargs = {"granularity": "row"}  # type: ignore[attr-defined]
    return layer


def stored(dtype: torch.dtype) -> Callable[[nn.Linear], nn.Linear]:
    def make(layer: nn.Linear) -> nn.Linear:
        layer.weight = nn.Parameter(layer.weight.data.to(dtype), requires_grad=False)
        return layer

    return make


class UnknownLinear(nn.Linear):
    """A quantised layer of another package."""


REFUSED: dict[str, tuple[Callable[[nn.Linear], nn.Linear], str]] = {
    "8-bit": (
        lambda x: like(x, Linear8bitLt, x.weight.data),
        r"has 8-bit bitsandbytes weights, whose layers quantise",
    ),
    "torchao with inputs": (activations, r"has torchao's Int8Tensor, whose layers quantise their inputs too"),
    "int8": (stored(torch.int8), r"has weights in int8, in which layers do not compute; load them in bfloat16"),
    "float8": (stored(torch.float8_e4m3fn), r"has weights in float8_e4m3fn, .* unet\.enable_layerwise_casting"),
    "unknown": (
        lambda x: like(x, UnknownLinear, x.weight.data),
        r"has weights of .*\.UnknownLinear, which masks cannot",
    ),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_other_formats_are_refused_in_one_line(sd1: Unet, name: str, make_unet: Callable[[str], Unet]) -> None:
    make, message = REFUSED[name]
    masker = RandomMasks.for_unet(make_unet("sd1"), targets=LAYERS)
    replace(sd1, make)
    for refused in (
        lambda: mu.attach(sd1, masker),
        lambda: LowRankMasker.for_unet(sd1),
        lambda: describe(sd1, LAYERS),
    ):
        with pytest.raises(
            TargetError, match=r"expected weights that masks can multiply, up_blocks\.1\..*" + message
        ) as e:
            refused()
        assert "\n" not in str(e.value)
    assert "forward" not in sd1.get_submodule(masker.network.layers[0].name).__dict__


def test_full_fine_tuning_refuses_quantised_weights(sd1: Unet) -> None:
    replace(sd1, fake_torchao)
    with pytest.raises(DataError, match=r"plain weights to fine-tune, up_blocks\.1\..*to_q has an Int8Tensor; .*lora"):
        FullMethod().install(SimpleNamespace(unet=sd1), 0)
    assert not any(p.requires_grad for p in sd1.parameters())


def test_real_formats_that_quantise_inputs_are_refused(sd1: Unet) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    layer = nn.Linear(64, 64).bfloat16()
    quantization.quantize_(layer, quantization.Int8DynamicActivationInt8WeightConfig(version=2))
    assert is_quantised(layer)
    assert not is_maskable(layer)


def test_a_real_8_bit_layer_is_refused() -> None:
    modules = pytest.importorskip("bitsandbytes.nn")
    assert not is_maskable(modules.Linear8bitLt(64, 64, has_fp16_weights=False))
    assert weight_shape(modules.Linear4bit(64, 32).to("cpu")) == (32, 64)


def test_float8_that_diffusers_casts_before_use_is_masked(sd1: Unet, predict: Callable[..., Tensor]) -> None:
    sd1.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    base = predict(sd1)
    masks = draw_masks(sd1, 1)
    mu.attach(sd1, FixedMasks({name: torch.ones_like(mask) for name, mask in masks.items()}))
    assert torch.equal(predict(sd1), base)
    mu.attach(sd1, FixedMasks(masks))
    masked = predict(sd1)
    mu.detach(sd1)
    for name, mask in masks.items():
        weight = sd1.get_submodule(name).weight
        weight.data = (weight.data.float() * mask[0]).to(torch.float8_e4m3fn)
    close(masked, predict(sd1), 1e-5)
