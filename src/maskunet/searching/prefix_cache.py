"""Compute once a step what no mask touches.

In a decoder-only search the encoder, the middle block and the decoder blocks before the first masked one give the same
output for every mask. Their outputs are kept from the first call after `clear` and handed out again, so the U-Net's own
forward does the rest, whatever the model's variant. They are computed without gradients, which need not flow there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..attaching.replacement import Replacement
from ..targets import Network


def untouched(unet: nn.Module, network: Network) -> list[str]:
    """Return the modules before the first masked block, in the order of computation.

    Args:
        unet: a diffusers U-Net.
        network: the blocks that are masked.
    """
    order = ["time_embedding", "add_embedding", "conv_in"]
    order += [f"down_blocks.{i}" for i in range(len(unet.down_blocks))]  # type: ignore[arg-type]
    order += ["mid_block"] + [f"up_blocks.{i}" for i in range(len(unet.up_blocks))]  # type: ignore[arg-type]
    masked = {block.name for block in network.blocks}
    before = order[: next((i for i, name in enumerate(order) if name in masked), len(order))]
    return [name for name in before if _module(unet, name) is not None]


def _module(unet: nn.Module, name: str) -> nn.Module | None:
    try:
        return unet.get_submodule(name)
    except AttributeError:
        return None


class Reuse:
    """Keep what untouched modules give, from one `clear` to the next.

    Args:
        unet: the U-Net; `remove` leaves it as it was.
        network: the blocks that are masked.
    """

    def __init__(self, unet: nn.Module, network: Network) -> None:
        self._kept: dict[str, Any] = {}
        self.computed = 0  # calls of a module that were computed
        self._paused = False
        names = untouched(unet, network)
        self._last = names[-1] if names else ""
        self._replacements = [
            Replacement(module, self._keeping(name)) for name in names if (module := _module(unet, name)) is not None
        ]

    def _keeping(self, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def make(original: Callable[..., Any]) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                if self._paused:
                    return original(*args, **kwargs)
                if name not in self._kept:
                    self.computed += 1
                    with torch.no_grad():
                        self._kept[name] = original(*args, **kwargs)
                kept = self._kept[name]
                # FreeU scales in place what enters a decoder block.
                return kept.clone() if name == self._last and isinstance(kept, Tensor) else kept

            return forward

        return make

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Compute everything inside, with gradients, and keep what was kept: calls there have other inputs."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def clear(self) -> None:
        """Forget everything: the inputs of the next call are others."""
        self._kept.clear()

    def remove(self) -> None:
        """Put every module's own forward back."""
        for replacement in self._replacements:
            replacement.remove()
        self._kept.clear()
