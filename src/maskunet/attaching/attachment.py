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
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..maskers import BlockInput, ComposedMasker, Draw, Masker
from ..network import LayerSpec
from ..relaxation import derive_seed, keep_probability
from ..targets import maskable_layers
from .batch_layout import find_layout, is_guided_call, warn_of_guidance
from .block_hook import BlockHook
from .call import Call
from .choice import choose_maskers
from .masked_forward import MaskedLayerForward, MaskedUNetForward
from .masked_layer import MaskedLayer, masked_layers
from .replacement import Context, Replacement
from .strength import Strength, Strengths, check_strength
from .trace import Trace

_REMEMBERED_CALLS = 256


class Attachment:
    """A masker on a U-Net, with its hooks; `attach` builds it.

    Args:
        unet: the U-Net.
        masker: the masker.
        seed: seed of Gumbel noise, or None.
        noise: Gumbel noise by layer name, or None.
        strength: how strongly the masks act; see `strength.Strengths`.
    """

    def __init__(
        self,
        unet: nn.Module,
        masker: Masker,
        seed: int | None,
        noise: Mapping[str, Tensor] | None,
        strength: Strengths = 1.0,
    ) -> None:
        self.unet = unet
        #: The masker as attached, with all maskers of a composition.
        self.attached = masker
        # The masker that acts and its strength, replaced at once: a call of another thread sees both old or both new.
        self._acting = (masker, check_strength(strength, masker))
        #: Whether masks are computed without a gradient.
        self.is_frozen = False
        self.trace: Trace | None = None
        self.noise = noise
        #: If set, filled with the mean P(m = 1) by layer of the latest call, with its gradient.
        self.keep_probabilities: dict[str, Tensor] | None = None
        self._state = threading.local()
        # torch.compile traces neither thread-local state nor what other threads do: its graphs use these two.
        self._traced_call: Call | None = None
        self.is_traced_whole = False  # whether a graph of the whole U-Net is being traced or run
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
        if self.is_traced_whole:
            return self._traced_enabled
        return getattr(self._state, "enabled", True)

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self._state.enabled = self._traced_enabled = value

    @property
    def masker(self) -> Masker:
        """The masker that acts: of a composition, the maskers that are switched on."""
        return self._acting[0]

    @property
    def strength(self) -> Strengths:
        """How strongly masks act, from 0 (the base model) to 1; see `strength.Strengths`."""
        return self._acting[1]

    @strength.setter
    def strength(self, value: Strengths) -> None:
        self._acting = (self.masker, check_strength(value, self.attached))

    @property
    def active_maskers(self) -> tuple[str, ...]:
        """Names of the maskers of a composition that are switched on; none of a single masker."""
        return self.masker.names if isinstance(self.masker, ComposedMasker) else ()

    def set_maskers(self, names: str | Sequence[str], strengths: Strength | Sequence[Strength] | None = None) -> None:
        """Switch maskers of a composition on, and all others off, from the next call of the U-Net on.

        Args:
            names: the name of one masker, or names of several.
            strengths: their strengths in the same order, each as for a single masker; one alone applies to each. None
                leaves all strengths as they are.

        Raises:
            SettingError: a single masker is attached, a name is unknown, or a strength cannot be used.
        """
        self._acting = choose_maskers(self.attached, self.strength, names, strengths)

    @property
    def call(self) -> Call | None:
        """This thread's call under way; None between calls."""
        return self._traced_call if self.is_traced_whole else getattr(self._state, "call", None)

    @call.setter
    def call(self, value: Call | None) -> None:
        if self.is_traced_whole:
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
        for block in self.attached.network.blocks:
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
        masker, strength = self._acting
        call = Call(masker, strength, timestep)
        if self._warns_of_guidance and not torch.compiler.is_compiling() and is_guided_call(self.unet):
            self._warns_of_guidance = False
            warn_of_guidance(masker)
        if masker.mask_counts or masker.guided_half is not None:
            call.layout = find_layout(self.unet, masker, sample)
        if masker.training:  # not at inference, where a counter would make compiled graphs stale
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
        assert self.call is not None
        for name, masked in self.layer_masks(block, inputs, self.call).items():
            self.call.masks[name] = masked
            if self.keep_probabilities is not None and (logits := masked.mask.logits()) is not None:
                self.keep_probabilities[name] = keep_probability(logits).mean()

    def layer_masks(self, block: str, inputs: BlockInput, call: Call) -> dict[str, MaskedLayer]:
        """Return the masks of a block's layers in a call.

        Args:
            block: name of the block.
            inputs: its inputs.
            call: the call.
        """
        draw = self.draw(len(inputs.hidden_states), call.timestep, call.number)
        with torch.no_grad() if self.is_frozen else contextlib.nullcontext():
            return masked_layers(call.masker, call.strength, call.layout, draw, block, inputs)

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
        call, trace = self.call, self.trace
        assert call is not None
        record = None
        if call.record is not None and trace is not None:
            record = partial(trace.add, call.record, layer.name, ndim=len(layer.shape))
        return call.masks[layer.name].run(layer, module, x, record)

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


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1
