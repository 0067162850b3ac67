"""Attach a masker to a pipeline or a U-Net, in place and reversibly. The only file with hooks.

Three kinds of hooks work together. A pre-forward hook on the U-Net starts a call and notes its timestep. A pre-forward
hook on each block that has masked layers asks the masker for that block's masks. On each masked layer a diffusers
`ModelHook` replaces the layer's computation by the masked one, so nothing is computed twice. Weights and state dicts
are never touched, and `detach` leaves no trace.

The masker stays outside the U-Net's modules, so it is neither saved with it nor offloaded with it; it follows the
features to whatever device they arrive on.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook
from torch import Tensor, nn

from .errors import TargetError
from .maskers import BlockInput, Draw, LayerMask, Masker
from .relaxation import derive_seed
from .targets import LayerSpec, check_fits, maskable_layers, unet_of
from .trace import Trace

_NAME = "maskunet"
_ATTRIBUTE = "_maskunet_attachment"


class Attachment:
    """A masker on a U-Net. Made by `attach`; holds the hooks and the masks of the call under way."""

    def __init__(self, unet: nn.Module, masker: Masker, seed: int | None, noise: Mapping[str, Tensor] | None) -> None:
        self.unet = unet
        self.masker = masker
        self.enabled = True
        self.trace: Trace | None = None
        self.timestep: Any = None
        self.noise = noise
        self.reseed(seed)
        self._masks: dict[str, tuple[LayerMask, Draw, int]] = {}
        self._handles: list[Any] = []
        self._layers: list[nn.Module] = []

    def reseed(self, seed: int | None) -> None:
        """Set the seed of the Gumbel noise. In training mode each call then takes the next noise of that seed."""
        self.seed = seed
        self.calls = 0

    def draw(self) -> Draw:
        """Return how masks are drawn during the call under way."""
        if self.noise is not None:
            return Draw(self.masker.tau, noise=self.noise)
        if self.masker.training:
            # Every call of a training run draws afresh, and every sample for itself.
            return Draw(self.masker.tau, derive_seed(self.seed, "train", self.calls), per_sample=True)
        if self.seed is None:
            return Draw(self.masker.tau)
        # At inference noise depends on the timestep and not on the batch, so a picture repeats in any batch.
        return Draw(self.masker.tau, derive_seed(self.seed, _number(self.timestep)))

    def install(self) -> None:
        """Register every hook."""
        layers = maskable_layers(self.unet)
        self._handles.append(self.unet.register_forward_pre_hook(self._start_call, with_kwargs=True))
        for block in self.masker.network.blocks:
            module = self.unet.get_submodule(block.name)
            names = list(inspect.signature(type(module).forward).parameters)[1:]
            hook = _BlockHook(self, block.name, names, [(n, module) for n, module in _attentions(module)])
            self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
            for layer in block.layers:
                target = layers[layer.name]
                with _inside_accelerate(target):
                    HookRegistry.check_if_exists_or_initialize(target).register_hook(_LayerHook(self, layer), _NAME)
                self._layers.append(target)

    def remove(self) -> None:
        """Remove every hook and leave the modules as they were."""
        for handle in self._handles:
            handle.remove()
        for module in self._layers:
            with _inside_accelerate(module):
                registry: Any = module._diffusers_hook
                registry.remove_hook(_NAME, recurse=False)
                if not registry.hooks:
                    del module._diffusers_hook
                bound = module.__dict__.get("forward")
                if getattr(bound, "__func__", None) is type(module).forward:
                    del module.forward
        self._handles, self._layers, self._masks = [], [], {}

    def _start_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self.enabled:
            return
        self.timestep = kwargs.get("timestep", args[1] if len(args) > 1 else None)
        if self.masker.training:  # counted only where it matters: a counter would make compiled graphs stale
            self.calls += 1
        if self.trace is not None:
            self.trace.begin(self.timestep)

    def start_block(self, block: str, inputs: BlockInput) -> None:
        """Ask the masker for a block's masks."""
        device = inputs.hidden_states.device
        if _device_of(self.masker) not in (None, device):
            self.masker.to(device)
        draw, batch = self.draw(), inputs.hidden_states.shape[0]
        for name, mask in self.masker.block_masks(block, inputs).items():
            self._masks[name] = (mask, draw, batch)

    def run(self, layer: LayerSpec, module: nn.Module, x: Tensor) -> Tensor:
        """Compute a masked layer."""
        form, draw, batch = self._masks[layer.name]
        mask = form.mask(layer, draw, batch)
        if self.trace is not None:
            self.trace.add(layer.name, form.logits(), mask, len(layer.shape))
        return form.apply(layer, module, x, mask)


class _BlockHook:
    """Pre-forward hook of a block: takes what the masker needs from the block's arguments."""

    def __init__(
        self, attachment: Attachment, block: str, parameters: list[str], attentions: list[tuple[str, nn.Module]]
    ) -> None:
        self.attachment, self.block, self.parameters, self.attentions = attachment, block, parameters, attentions

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self.attachment.enabled:
            return
        for name, attention in self.attentions:
            _refuse_fused(f"{self.block}.{name}", attention)
        given = dict(zip(self.parameters, args, strict=False)) | kwargs
        skips = given.get("res_hidden_states_tuple")
        inputs = BlockInput(
            given["hidden_states"], skips[-1] if skips else None, given["temb"], self.attachment.timestep
        )
        self.attachment.start_block(self.block, inputs)


class _LayerHook(ModelHook):
    """Replaces a layer's computation by the masked one."""

    def __init__(self, attachment: Attachment, layer: LayerSpec) -> None:
        super().__init__()
        self.attachment, self.layer = attachment, layer

    def new_forward(self, module: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not self.attachment.enabled:
            return self.fn_ref.original_forward(x, *args, **kwargs)  # type: ignore[no-any-return]
        return self.attachment.run(self.layer, module, x)


@contextlib.contextmanager
def _inside_accelerate(module: nn.Module) -> Iterator[None]:
    """Work on the forward that accelerate's offload wraps, where it does.

    That one runs when the weights are in place, and changing it leaves accelerate's own wrapping whole.
    """
    if not (hasattr(module, "_hf_hook") and hasattr(module, "_old_forward")):
        yield
        return
    outer = module.forward
    module.forward = module._old_forward  # type: ignore[assignment]
    try:
        yield
    finally:
        module._old_forward = module.forward  # type: ignore[assignment]
        module.forward = outer


def _attentions(block: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in block.named_modules() if hasattr(module, "to_q")]


def _refuse_fused(name: str, attention: nn.Module) -> None:
    if getattr(attention, "fused_projections", False):
        raise TargetError(
            f"expected separate to_q, to_k and to_v, {name} has fused projections, which masks cannot reach. "
            "Call unfuse_qkv_projections() first."
        )
    for part in ("to_q", "to_k", "to_v"):
        if getattr(getattr(attention, part, None), "merged", False):
            raise TargetError(
                f"expected a LoRA beside the weights, {name}.{part} has one fused into them, so a mask would hit both. "
                "Call unfuse_lora() first."
            )


def _device_of(masker: Masker) -> torch.device | None:
    tensors: list[Tensor] = [*masker.parameters(), *masker.buffers()]
    return tensors[0].device if tensors else None


def _number(timestep: Any) -> float | None:
    if isinstance(timestep, Tensor):
        return float(timestep.reshape(-1)[0])
    return None if timestep is None else float(timestep)


def _compiled(model: Any, unet: nn.Module) -> bool:
    outer = getattr(model, "unet", model)
    return outer is not unet or getattr(unet, "_compiled_call_impl", None) is not None


def attachment_of(model: Any) -> Attachment | None:
    """Return what is attached to a pipeline or a U-Net, or None."""
    return unet_of(model).__dict__.get(_ATTRIBUTE)


def attach(
    model: Any, masker: Masker, *, seed: int | None = None, noise: Mapping[str, Tensor] | None = None
) -> Attachment:
    """Attach a masker to a pipeline or a U-Net, in place; what was attached before is replaced.

    Masks are deterministic by default. With a `seed` they are drawn with Gumbel noise from it: the same seed, prompt
    and scheduler give the same picture. A masker in training mode always draws, anew at every call.

    Args:
        model: a Stable Diffusion pipeline (1.x, 2.x, XL) or its U-Net.
        masker: any masker that was made for this U-Net.
        seed: seed of Gumbel noise at inference, or of training; None draws no noise at inference.
        noise: Gumbel noise by layer name, (B, *weight.shape), to use instead of drawn noise.

    Returns:
        The attachment; it needs no attention.

    Raises:
        TargetError: no U-Net; the masker was made for another one; its projections or a LoRA are fused.
    """
    unet = unet_of(model)
    check_fits(unet, masker.network)
    for block in masker.network.blocks:
        for name, attention in _attentions(unet.get_submodule(block.name)):
            _refuse_fused(f"{block.name}.{name}", attention)
    detach(model)
    attachment = Attachment(unet, masker, seed, noise)
    attachment.install()
    unet.__dict__[_ATTRIBUTE] = attachment
    if _compiled(model, unet):
        torch.compiler.reset()  # graphs compiled before know nothing of the hooks
    return attachment


def detach(model: Any) -> None:
    """Remove the attached masker, if any; the model is then as if none had ever been attached."""
    unet = unet_of(model)
    attachment = unet.__dict__.pop(_ATTRIBUTE, None)
    if attachment is not None:
        attachment.remove()
        if _compiled(model, unet):
            torch.compiler.reset()


@contextlib.contextmanager
def disabled(model: Any) -> Iterator[None]:
    """Run the base model inside the context: masks are off, exactly as if detached. Contexts can be nested."""
    attachment = attachment_of(model)
    if attachment is None:
        yield
        return
    before, attachment.enabled = attachment.enabled, False
    try:
        yield
    finally:
        attachment.enabled = before


@contextlib.contextmanager
def record(model: Any, *, keep: str = "all", limit_gb: float = 4.0) -> Iterator[Trace]:
    """Record logits, masks and density by layer and call of the U-Net inside the context.

    Args:
        model: a pipeline or a U-Net with a masker attached.
        keep: "all" calls' tensors, those of the "last" call, or only "density".
        limit_gb: room for the tensors; calls past it keep densities only, with a warning.

    Yields:
        A `Trace`: `trace.logits[layer]` and `trace.masks[layer]` (B, *weight.shape) of the latest call,
        `trace.calls[k]` for each call, `trace.density[layer]` a value for each call.

    Raises:
        TargetError: nothing is attached.
    """
    attachment = attachment_of(model)
    if attachment is None:
        raise TargetError("expected a model with a masker attached, nothing is; call maskunet.attach first")
    before, attachment.trace = attachment.trace, Trace(keep, limit_gb)
    try:
        yield attachment.trace
    finally:
        attachment.trace = before
