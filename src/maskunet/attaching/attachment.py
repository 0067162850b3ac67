"""The attachment of a masker to a U-Net: its hooks, and the masks of each call.

Three kinds of hooks work together. The forward of the U-Net starts a call. A pre-forward hook on each block with masked
layers gets that block's masks from the masker. The forward of each masked layer is replaced by the masked one, so nothing
is computed twice. Weights and state dicts never change, and removal restores every module.

The state of a call belongs to the call: each thread has its own, and gradient checkpointing goes back to it. The masker is
no module of the U-Net, so it is neither saved nor offloaded with it; it follows the features to their device.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import TargetError
from ..maskers import BlockInput, Draw, LayerMask, Masker
from ..network import LayerSpec
from ..relaxation import derive_seed, keep_probability
from ..targets import maskable_layers
from .arranged_mask import ArrangedMask, compute_plainly
from .batch_layout import BatchLayout, find_layout, is_guided_call
from .block_hook import BlockHook
from .call import Call
from .masked_forward import MaskedLayerForward, MaskedUNetForward
from .replacement import Context, Replacement
from .strength import Strength, check_strength, strength_at
from .trace import Trace

_REMEMBERED_CALLS = 256
logger = logging.getLogger(__name__)


class Attachment:
    """A masker on a U-Net, with its hooks; `attach` builds it.

    Args:
        unet: the U-Net.
        masker: the masker.
        seed: seed of Gumbel noise, or None.
        noise: Gumbel noise by layer name, or None.
        strength: how strongly the masks act; see `strength.Strength`.
    """

    def __init__(
        self,
        unet: nn.Module,
        masker: Masker,
        seed: int | None,
        noise: Mapping[str, Tensor] | None,
        strength: Strength = 1.0,
    ) -> None:
        self.unet = unet
        self.masker = masker
        self.strength = strength
        #: Whether masks are computed without a gradient.
        self.is_frozen = False
        self.trace: Trace | None = None
        self.noise = noise
        #: If set, filled with the mean P(m = 1) by layer of the latest call, with its gradient.
        self.keep_probabilities: dict[str, Tensor] | None = None
        self._state = threading.local()
        # torch.compile traces neither thread-local state nor what other threads do: its graphs use these two.
        self._traced_call: Call | None = None
        self._traced_enabled = True
        self.reseed(seed)
        self._handles: list[Any] = []
        self._warns_of_guidance = masker.replaced_guidance is not None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the state of calls under way out of a copy."""
        return {name: value for name, value in vars(self).items() if name not in ("_state", "_traced_call")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start a copy without a call under way."""
        vars(self).update(state, _state=threading.local(), _traced_call=None)

    @property
    def enabled(self) -> bool:
        """Whether this thread's calls are masked."""
        if torch.compiler.is_compiling():
            return self._traced_enabled
        return getattr(self._state, "enabled", True)

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self._state.enabled = self._traced_enabled = value

    @property
    def strength(self) -> Strength:
        """How strongly masks act, from 0 (the base model) to 1; see `strength.Strength`."""
        return self._strength

    @strength.setter
    def strength(self, value: Strength) -> None:
        self._strength = check_strength(value, [block.name for block in self.masker.network.blocks])

    @property
    def call(self) -> Call | None:
        """This thread's call under way; None between calls."""
        return self._traced_call if torch.compiler.is_compiling() else getattr(self._state, "call", None)

    @call.setter
    def call(self, value: Call | None) -> None:
        if torch.compiler.is_compiling():
            self._traced_call = value
        else:
            self._state.call = value

    def reseed(self, seed: int | tuple[int, ...] | None) -> None:
        """Set the seed of the Gumbel noise; in training mode, every call then takes the next noise of that seed.

        Args:
            seed: one for the batch, or one per sample; None for no noise at inference.
        """
        self.seed = seed
        self.calls = 0
        self._numbers: OrderedDict[tuple[Any, ...], int] = OrderedDict()

    def draw(self, batch: int, timestep: Any, number: int = 0) -> Draw:
        """Return how the masks of a call are drawn.

        Args:
            batch: rows of the batch.
            timestep: the call's timestep, a number, a tensor, or None.
            number: number of the call since the latest seed, for noise in training.
        """
        if self.noise is not None:
            return Draw(self.masker.tau, noise=self.noise)
        if self.masker.training:
            if self.seed is None:  # `torch.manual_seed` makes it repeat
                self.seed = int(torch.randint(2**62, ()))
            # In training, noise differs by call and by sample.
            seeds = self.seed if isinstance(self.seed, tuple) else tuple((self.seed, i) for i in range(batch))
            return Draw(self.masker.tau, tuple(derive_seed(s, "train", number) for s in seeds))
        if self.seed is None:
            return Draw(self.masker.tau)
        # At inference, noise depends on the timestep and not on the batch, so an image repeats in any batch.
        if isinstance(timestep, Tensor) and timestep.numel() > 1:
            return Draw(self.masker.tau, tuple(derive_seed(self.seed, float(t)) for t in timestep))
        return Draw(self.masker.tau, derive_seed(self.seed, None if timestep is None else float(timestep)))

    def install(self) -> None:
        """Register every hook."""
        layers = maskable_layers(self.unet)
        self._handles.append(Replacement(self.unet, lambda original: MaskedUNetForward(self, original)))
        for block in self.masker.network.blocks:
            hook = BlockHook(self.unet, block, self)
            self._handles.append(hook.module.register_forward_pre_hook(hook, with_kwargs=True))
            self._handles.append(hook)
            for layer in block.layers:
                self._handles.append(Replacement(layers[layer.name], self._masking(layer, layers[layer.name])))

    def remove(self) -> None:
        """Remove every hook and restore the modules."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _masking(self, layer: LayerSpec, module: nn.Module) -> Callable[[Any], Any]:
        return lambda original: MaskedLayerForward(self, layer, module, original)

    def start_call(self, sample: Tensor, timestep: Any) -> Call:
        """Return the state of a new call.

        Args:
            sample: the U-Net's input.
            timestep: the call's timestep.

        Raises:
            TargetError: the batch does not fit masks that differ by prompt or half.
        """
        call = Call(timestep)
        if self._warns_of_guidance and not torch.compiler.is_compiling() and is_guided_call(self.unet):
            self._warns_of_guidance = False
            logger.warning(
                "these masks already do the work of guidance (scale %g), this call guides once more: expected "
                "guidance_scale=1, which also halves the time",
                self.masker.replaced_guidance,
            )
        if self.masker.mask_counts or self.masker.guided_half is not None:
            call.layout = find_layout(self.unet, self.masker, sample)
        if self.masker.training:  # not at inference, where a counter would make compiled graphs stale
            call.number = self._number(sample)
        if self.trace is not None and not _in_backward():
            call.record = self.trace.begin(timestep)
        return call

    def _number(self, sample: Tensor) -> int:
        """The number of a call in training; one that gradient checkpointing repeats has its first number."""
        key = (sample.data_ptr(), tuple(sample.shape))
        if _in_backward() and key in self._numbers:
            return self._numbers[key]
        self.calls += 1
        self._numbers[key] = self.calls
        while len(self._numbers) > _REMEMBERED_CALLS:
            self._numbers.popitem(last=False)
        return self.calls

    def start_block(self, block: str, inputs: BlockInput) -> None:
        """Get a block's masks from the masker.

        Args:
            block: name of the block.
            inputs: its inputs.
        """
        call = self.call
        assert call is not None
        device = inputs.hidden_states.device
        if _device_of(self.masker) not in (None, device):
            self.masker.to(device)
        batch = inputs.hidden_states.shape[0]
        draw = self.draw(batch, call.timestep, call.number)
        with torch.no_grad() if self.is_frozen else contextlib.nullcontext():
            masks = self.masker.block_masks(block, inputs)
        call.strength = strength_at(self._strength, block, call.timestep)
        for name, mask in masks.items():
            call.masks[name] = (mask if call.layout is None else self._arranged(mask, name, call.layout), draw, batch)
            if self.keep_probabilities is not None and (logits := mask.logits()) is not None:
                self.keep_probabilities[name] = keep_probability(logits).mean()

    def _arranged(self, mask: LayerMask, layer: str, layout: BatchLayout) -> LayerMask:
        """The masks of a layer in the order of the batch's rows."""
        indices = layout.mask_indices(self.masker.count_masks(layer) or 1, self.masker)
        if mask.offsets is not None:
            indices = [i if i is None else i + offset for i, offset in zip(indices, mask.offsets, strict=True)]
        return mask if _is_default(indices, mask) else ArrangedMask(mask, indices)

    def run(self, layer: LayerSpec, module: nn.Module, x: Tensor) -> Tensor:
        """Compute a masked layer.

        Args:
            layer: the layer.
            module: its module.
            x: its inputs (B, ...).

        Returns:
            Its outputs.

        Raises:
            TargetError: the layer sees other rows than its block, whose masks are per row.
        """
        call = self.call
        assert call is not None
        if call.strength == 1:
            return self._run_masked(call, layer, module, x)
        plain = compute_plainly(module, x)
        return (
            plain if call.strength == 0 else torch.lerp(plain, self._run_masked(call, layer, module, x), call.strength)
        )

    def _run_masked(self, call: Call, layer: LayerSpec, module: nn.Module, x: Tensor) -> Tensor:
        layer_mask, draw, batch = call.masks[layer.name]
        if call.record is None and len(x) == batch:
            return layer_mask.run(layer, module, x, draw, batch)
        mask = layer_mask.mask(layer, draw, batch)
        if len(x) != batch and mask.ndim > len(layer.shape) and len(mask) > 1:
            raise TargetError(
                f"expected {batch} rows in {layer.name}, as in its block, got {len(x)}: its attention splits the batch, as "
                "PAG does. Leave it out of the masker's targets, or out of pag_applied_layers."
            )
        if call.record is not None and self.trace is not None:
            self.trace.add(call.record, layer.name, layer_mask.logits(), mask, len(layer.shape))
        return layer_mask.apply(layer, module, x, mask)

    def capture(self) -> Context:
        """Return a context that restores the state of the current call, without recording it again."""
        call, enabled = self.call, self.enabled
        again = None if call is None else copy.copy(call)
        if again is not None:
            again.record = None

        @contextlib.contextmanager
        def restored() -> Iterator[None]:
            current, current_enabled = self.call, self.enabled
            is_first_time = current is call and not _in_backward()
            self.call, self.enabled = call if is_first_time else again, enabled
            try:
                yield
            finally:
                self.call, self.enabled = current, current_enabled

        return restored


def _is_default(indices: list[int | None], mask: LayerMask) -> bool:
    """Whether row r takes mask r mod M, as the forms themselves order them."""
    if mask.offsets is not None or None in indices:
        return False
    count = max(index or 0 for index in indices) + 1
    return indices == [row % count for row in range(len(indices))]


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


def _device_of(masker: Masker) -> torch.device | None:
    return next((t.device for t in (*masker.parameters(), *masker.buffers())), None)
