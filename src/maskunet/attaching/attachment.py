"""Attach a masker to a pipeline or a U-Net, in place and reversibly.

Three kinds of hooks work together. A pre-forward hook on the U-Net starts a call and notes its timestep. A pre-forward
hook on each block that has masked layers asks the masker for that block's masks. On each masked layer the computation is
replaced by the masked one, so nothing is computed twice. Weights and state dicts are never touched, and `detach` leaves
no trace.

The masker stays outside the U-Net's modules, so it is neither saved with it nor offloaded with it; it follows the
features to whatever device they arrive on.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SettingError, TargetError
from ..maskers import BlockInput, Draw, LayerMask, Masker, load
from ..relaxation import derive_seed, keep_probability
from ..targets import LayerSpec, check_fits, maskable_layers, unet_of
from .batch_layout import check_batch
from .block_hook import BlockHook, refuse_fused
from .replacement import Context, Replacement
from .trace import Trace

_ATTRIBUTE = "_maskunet_attachment"


class Attachment:
    """A masker on a U-Net. Made by `attach`; holds the hooks and the masks of the call under way."""

    def __init__(self, unet: nn.Module, masker: Masker, seed: int | None, noise: Mapping[str, Tensor] | None) -> None:
        self.unet = unet
        self.masker = masker
        self.enabled = True
        self.constant = False  # no gradient flows through what the masks depend on
        self.trace: Trace | None = None
        self.timestep: Any = None
        self.noise = noise
        self.pipe: weakref.ref[Any] | None = None
        #: Mean P(keep) by layer of the latest call, with its gradient; a dict to fill, or None to leave it out.
        self.keep_probabilities: dict[str, Tensor] | None = None
        self.reseed(seed)
        self._masks: dict[str, tuple[LayerMask, Draw, int]] = {}
        self._handles: list[Any] = []

    def reseed(self, seed: int | tuple[int, ...] | None) -> None:
        """Set the seed of the Gumbel noise, for the batch or one for each sample.

        In training mode each call then takes the next noise of that seed.
        """
        if seed is not None and self.masker.deterministic:
            raise TargetError(f"expected no seed, {type(self.masker).__name__} holds masks that are not drawn")
        self.seed = seed
        self.calls = 0

    def draw(self, batch: int) -> Draw:
        """Return how masks are drawn during the call under way, for a batch of so many rows."""
        if self.noise is not None:
            return Draw(self.masker.tau, noise=self.noise)
        if self.masker.training:
            if self.seed is None:  # the caller's `torch.manual_seed` decides
                self.seed = int(torch.randint(2**62, ()))
            # Every call of a training run draws afresh, and every sample for itself.
            seeds = self.seed if isinstance(self.seed, tuple) else tuple((self.seed, i) for i in range(batch))
            return Draw(self.masker.tau, tuple(derive_seed(s, "train", self.calls) for s in seeds))
        if self.seed is None:
            return Draw(self.masker.tau)
        # At inference noise depends on the timestep and not on the batch, so a picture repeats in any batch.
        timestep = self.timestep
        if isinstance(timestep, Tensor) and timestep.numel() > 1:
            return Draw(self.masker.tau, tuple(derive_seed(self.seed, float(t)) for t in timestep))
        return Draw(self.masker.tau, derive_seed(self.seed, None if timestep is None else float(timestep)))

    def install(self) -> None:
        """Put every hook in place."""
        layers = maskable_layers(self.unet)
        self._handles.append(self.unet.register_forward_pre_hook(self._start_call, with_kwargs=True))
        for block in self.masker.network.blocks:
            hook = BlockHook(self.unet, block, self)
            self._handles.append(hook.module.register_forward_pre_hook(hook, with_kwargs=True))
            self._handles.append(hook)
            for layer in block.layers:
                self._handles.append(Replacement(layers[layer.name], self._replacement(layer, layers[layer.name])))

    def remove(self) -> None:
        """Remove every hook and leave the modules as they were."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._masks = [], {}

    def _replacement(self, layer: LayerSpec, module: nn.Module) -> Callable[[Any], Any]:
        def make(original: Callable[..., Any]) -> Callable[..., Any]:
            def forward(x: Tensor, *args: Any, **kwargs: Any) -> Any:
                return self.run(layer, module, x) if self.enabled else original(x, *args, **kwargs)

            return forward

        return make

    def _start_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._masks = {}  # a dict of its own for each call, which gradient checkpointing may come back to
        if not self.enabled:
            return
        self.timestep = kwargs.get("timestep", args[1] if len(args) > 1 else None)
        if self.masker.sample_counts:
            check_batch(self.masker, kwargs["sample"] if "sample" in kwargs else args[0], self.pipe)
        if self.masker.training:  # counted only where it matters: a counter would make compiled graphs stale
            self.calls += 1
        if self.trace is not None:
            self.trace.begin(self.timestep)

    def start_block(self, block: str, inputs: BlockInput) -> None:
        """Ask the masker for a block's masks."""
        device = inputs.hidden_states.device
        if _device_of(self.masker) not in (None, device):
            self.masker.to(device)
        batch = inputs.hidden_states.shape[0]
        draw = self.draw(batch)
        with torch.no_grad() if self.constant else contextlib.nullcontext():
            masks = self.masker.block_masks(block, inputs)
        for name, mask in masks.items():
            self._masks[name] = (mask, draw, batch)
            if self.keep_probabilities is not None and (logits := mask.logits()) is not None:
                self.keep_probabilities[name] = keep_probability(logits).mean()

    def run(self, layer: LayerSpec, module: nn.Module, x: Tensor) -> Tensor:
        """Compute a masked layer."""
        form, draw, batch = self._masks[layer.name]
        if self.trace is None:
            return form.run(layer, module, x, draw, batch)
        mask = form.mask(layer, draw, batch)
        self.trace.add(layer.name, form.logits(), mask, len(layer.shape))
        return form.apply(layer, module, x, mask)

    def capture(self) -> Context:
        """Return a context that goes back to the state of the call under way, without recording it again."""
        then = (self._masks, self.enabled, None)

        @contextlib.contextmanager
        def back() -> Iterator[None]:
            now = (self._masks, self.enabled, self.trace)
            self._masks, self.enabled, trace = then
            # While the call itself is under way the context changes nothing.
            self.trace = now[2] if now[0] is then[0] and not _in_backward() else trace
            try:
                yield
            finally:
                self._masks, self.enabled, self.trace = now

        return back


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


def _device_of(masker: Masker) -> torch.device | None:
    return next((t.device for t in (*masker.parameters(), *masker.buffers())), None)


def _compiled(model: Any, unet: nn.Module) -> bool:
    return getattr(model, "unet", model) is not unet or getattr(unet, "_compiled_call_impl", None) is not None


def attachment_of(model: Any) -> Attachment | None:
    """Return what is attached to a pipeline or a U-Net, or None."""
    return unet_of(model).__dict__.get(_ATTRIBUTE)


def attach(
    model: Any, masker: Masker | str | os.PathLike[str], *, seed: int | None = None, noise: Mapping[str, Tensor] | None = None
) -> Attachment:
    """Attach a masker to a pipeline or a U-Net, in place; what was attached before is replaced.

    Masks are deterministic by default. With a `seed` they are drawn with Gumbel noise from it: the same seed, prompt
    and scheduler give the same picture. A masker in training mode always draws, anew at every call.

    Args:
        model: a Stable Diffusion pipeline (1.x, 2.x, XL) or its U-Net.
        masker: any masker that was made for this U-Net, or where one is: its folder, a hub id, or a bundled name.
        seed: seed of Gumbel noise at inference, or of training; None draws no noise at inference.
        noise: Gumbel noise by layer name, (B, *weight.shape), to use instead of drawn noise.

    Returns:
        The attachment; it needs no attention.

    Raises:
        TargetError: no U-Net; the masker was made for another one; its projections or a LoRA are fused.
        CheckpointError: a masker's files are missing or unreadable.
        SettingError: `masker` is something else.
    """
    unet = unet_of(model)
    if isinstance(masker, str | os.PathLike):
        masker = load(masker, model)
    if not isinstance(masker, Masker):
        raise SettingError(
            f"expected a masker, its folder, a hub id or a bundled name to attach, got {type(masker).__name__}; build one "
            "with maskunet.LowRankMasker.for_unet(pipe.unet)"
        )
    check_fits(unet, masker.network)
    for block in masker.network.blocks:
        refuse_fused(unet, block)
    detach(model)
    attachment = Attachment(unet, masker, seed, noise)
    attachment.pipe = None if model is unet else weakref.ref(model)
    attachment.install()
    unet.__dict__[_ATTRIBUTE] = attachment
    if _compiled(model, unet):
        torch.compiler.reset()  # graphs compiled before know nothing of the hooks
    return attachment


def detach(model: Any) -> None:
    """Remove the attached masker, if any; the model is then as if none had ever been attached."""
    unet = unet_of(model)
    if (attachment := unet.__dict__.pop(_ATTRIBUTE, None)) is not None:
        attachment.remove()
        if _compiled(model, unet):
            torch.compiler.reset()


def reattach(model: Any, attachment: Attachment | None) -> None:
    """Put back what `attachment_of` gave before something else was attached; None detaches."""
    if attachment_of(model) is attachment:
        return
    detach(model)
    if attachment is not None:
        attachment.install()
        unet_of(model).__dict__[_ATTRIBUTE] = attachment


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
