"""Cache of a U-Net's unmasked prefix, which is computed once per step.

In a search of decoder masks, the encoder, the middle block and the decoder blocks before the first masked one return the
same output for every mask. They return their output from the first call after `clear`; the U-Net's own forward does the
rest, so every model variant works. The prefix is computed without gradients, since none need to flow there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..attaching.replacement import Replacement
from ..network import Network


def unmasked_prefix(unet: nn.Module, network: Network) -> list[str]:
    """Return the modules before the first masked block, in the order of computation.

    Args:
        unet: a diffusers U-Net.
        network: the masked blocks.
    """
    order = ["time_embedding", "add_embedding", "conv_in"]
    order += [f"down_blocks.{i}" for i in range(len(unet.down_blocks))]  # type: ignore[arg-type]
    order += ["mid_block"] + [f"up_blocks.{i}" for i in range(len(unet.up_blocks))]  # type: ignore[arg-type]
    masked = {block.name for block in network.blocks}
    prefix = order[: next((i for i, name in enumerate(order) if name in masked), len(order))]
    return [name for name in prefix if _submodule(unet, name) is not None]


def _submodule(unet: nn.Module, name: str) -> nn.Module | None:
    try:
        return unet.get_submodule(name)
    except AttributeError:
        return None


class PrefixCache:
    """Cached outputs of the unmasked prefix, valid until the next `clear`.

    Args:
        unet: a diffusers U-Net; `remove` restores it.
        network: the masked blocks.
    """

    def __init__(self, unet: nn.Module, network: Network) -> None:
        self._outputs: dict[str, Any] = {}
        self.computed = 0  # module calls that missed the cache
        names = unmasked_prefix(unet, network)
        self._last = names[-1] if names else ""
        self._replacements = [
            Replacement(module, self._caching(name))
            for name in names
            if (module := _submodule(unet, name)) is not None
        ]

    def _caching(self, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                if name not in self._outputs:
                    self.computed += 1
                    with torch.no_grad():
                        self._outputs[name] = original(*args, **kwargs)
                output = self._outputs[name]
                # FreeU scales the input of a decoder block in place.
                return output.clone() if name == self._last and isinstance(output, Tensor) else output

            return forward

        return wrap

    def clear(self) -> None:
        """Empty the cache, since the next call has other inputs."""
        self._outputs.clear()

    def remove(self) -> None:
        """Restore every module's own forward."""
        for replacement in self._replacements:
            replacement.remove()
        self._outputs.clear()
