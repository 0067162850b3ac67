"""The attachment of a masker to a U-Net: its hooks, and the masks of the current call.

Three kinds of hooks work together. A pre-forward hook on the U-Net starts a call and stores its timestep. A pre-forward
hook on each block with masked layers gets that block's masks from the masker. The forward of each masked layer is
replaced by the masked one, so nothing is computed twice. Weights and state dicts never change, and removal restores every
module.

The masker is no module of the U-Net, so it is neither saved nor offloaded with it; it follows the features to their
device.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..maskers import BlockInput, Draw, LayerMask, Masker
from ..relaxation import derive_seed, keep_probability
from ..targets import LayerSpec, maskable_layers
from .batch_layout import check_batch
from .block_hook import BlockHook
from .replacement import Context, Replacement
from .trace import Trace


class Attachment:
    """A masker on a U-Net, with its hooks and the masks of the current call; `attach` builds it.

    Args:
        unet: the U-Net.
        masker: the masker.
        seed: seed of Gumbel noise, or None.
        noise: Gumbel noise by layer name, or None.
    """

    def __init__(self, unet: nn.Module, masker: Masker, seed: int | None, noise: Mapping[str, Tensor] | None) -> None:
        self.unet = unet
        self.masker = masker
        self.enabled = True
        #: Whether masks are computed without a gradient.
        self.is_frozen = False
        self.trace: Trace | None = None
        self.timestep: Any = None
        self.noise = noise
        self.pipe: weakref.ref[Any] | None = None
        #: If set, filled with the mean P(m = 1) by layer of the latest call, with its gradient.
        self.keep_probabilities: dict[str, Tensor] | None = None
        self.reseed(seed)
        self._masks: dict[str, tuple[LayerMask, Draw, int]] = {}
        self._handles: list[Any] = []

    def reseed(self, seed: int | tuple[int, ...] | None) -> None:
        """Set the seed of the Gumbel noise; in training mode, every call then takes the next noise of that seed.

        Args:
            seed: one for the batch, or one per sample; None for no noise at inference.
        """
        self.seed = seed
        self.calls = 0

    def draw(self, batch: int) -> Draw:
        """Return how masks are drawn during the current call.

        Args:
            batch: rows of the batch.
        """
        if self.noise is not None:
            return Draw(self.masker.tau, noise=self.noise)
        if self.masker.training:
            if self.seed is None:  # `torch.manual_seed` makes it repeat
                self.seed = int(torch.randint(2**62, ()))
            # In training, noise differs by call and by sample.
            seeds = self.seed if isinstance(self.seed, tuple) else tuple((self.seed, i) for i in range(batch))
            return Draw(self.masker.tau, tuple(derive_seed(s, "train", self.calls) for s in seeds))
        if self.seed is None:
            return Draw(self.masker.tau)
        # At inference, noise depends on the timestep and not on the batch, so an image repeats in any batch.
        timestep = self.timestep
        if isinstance(timestep, Tensor) and timestep.numel() > 1:
            return Draw(self.masker.tau, tuple(derive_seed(self.seed, float(t)) for t in timestep))
        return Draw(self.masker.tau, derive_seed(self.seed, None if timestep is None else float(timestep)))

    def install(self) -> None:
        """Register every hook."""
        layers = maskable_layers(self.unet)
        self._handles.append(self.unet.register_forward_pre_hook(self._start_call, with_kwargs=True))
        for block in self.masker.network.blocks:
            hook = BlockHook(self.unet, block, self)
            self._handles.append(hook.module.register_forward_pre_hook(hook, with_kwargs=True))
            self._handles.append(hook)
            for layer in block.layers:
                self._handles.append(Replacement(layers[layer.name], self._replacement(layer, layers[layer.name])))

    def remove(self) -> None:
        """Remove every hook and restore the modules."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._masks = [], {}

    def _replacement(self, layer: LayerSpec, module: nn.Module) -> Callable[[Any], Any]:
        def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
            def forward(x: Tensor, *args: Any, **kwargs: Any) -> Any:
                return self.run(layer, module, x) if self.enabled else original(x, *args, **kwargs)

            return forward

        return wrap

    def _start_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._masks = {}  # a new dict per call, since gradient checkpointing may return to an earlier one
        if not self.enabled:
            return
        self.timestep = kwargs.get("timestep", args[1] if len(args) > 1 else None)
        if self.masker.mask_counts:
            check_batch(self.masker, kwargs["sample"] if "sample" in kwargs else args[0], self.pipe)
        if self.masker.training:  # not at inference, where a counter would make compiled graphs stale
            self.calls += 1
        if self.trace is not None:
            self.trace.begin(self.timestep)

    def start_block(self, block: str, inputs: BlockInput) -> None:
        """Get a block's masks from the masker.

        Args:
            block: name of the block.
            inputs: its inputs.
        """
        device = inputs.hidden_states.device
        if _device_of(self.masker) not in (None, device):
            self.masker.to(device)
        batch = inputs.hidden_states.shape[0]
        draw = self.draw(batch)
        with torch.no_grad() if self.is_frozen else contextlib.nullcontext():
            masks = self.masker.block_masks(block, inputs)
        for name, mask in masks.items():
            self._masks[name] = (mask, draw, batch)
            if self.keep_probabilities is not None and (logits := mask.logits()) is not None:
                self.keep_probabilities[name] = keep_probability(logits).mean()

    def run(self, layer: LayerSpec, module: nn.Module, x: Tensor) -> Tensor:
        """Compute a masked layer.

        Args:
            layer: the layer.
            module: its module.
            x: its inputs (B, ...).

        Returns:
            Its outputs.
        """
        layer_mask, draw, batch = self._masks[layer.name]
        if self.trace is None:
            return layer_mask.run(layer, module, x, draw, batch)
        mask = layer_mask.mask(layer, draw, batch)
        self.trace.add(layer.name, layer_mask.logits(), mask, len(layer.shape))
        return layer_mask.apply(layer, module, x, mask)

    def capture(self) -> Context:
        """Return a context that restores the state of the current call, without recording it again."""
        masks, enabled = self._masks, self.enabled

        @contextlib.contextmanager
        def restored() -> Iterator[None]:
            current = (self._masks, self.enabled, self.trace)
            is_first_time = self._masks is masks and not _in_backward()
            self._masks, self.enabled = masks, enabled
            if not is_first_time:
                self.trace = None
            try:
                yield
            finally:
                self._masks, self.enabled, self.trace = current

        return restored


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


def _device_of(masker: Masker) -> torch.device | None:
    return next((t.device for t in (*masker.parameters(), *masker.buffers())), None)
