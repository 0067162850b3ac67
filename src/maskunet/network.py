"""What a masker needs to know of a network: its blocks with their masked layers."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from .errors import CheckpointError


@dataclass(frozen=True)
class LayerSpec:
    """A masked layer.

    Args:
        name: its dotted name in the U-Net.
        shape: shape of its weight, (O, I) of a Linear or (O, I / groups, kh, kw) of a Conv2d.
    """

    name: str
    shape: tuple[int, ...]

    @property
    def kernel(self) -> tuple[int, int]:
        """Kernel size (kh, kw); (1, 1) of a Linear."""
        return (self.shape[2], self.shape[3]) if len(self.shape) == 4 else (1, 1)

    @property
    def weights(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class BlockSpec:
    """A block of the U-Net and its masked layers.

    Args:
        name: its dotted name, such as "up_blocks.1".
        in_channels: input channels of its first resnet convolution (hidden state and, in the decoder, last skip).
        out_channels: output channels of this convolution.
        temb_channels: width of the timestep embedding.
        layers: its masked layers, in the network's order.
    """

    name: str
    in_channels: int
    out_channels: int
    temb_channels: int
    layers: tuple[LayerSpec, ...]


@dataclass(frozen=True)
class Network:
    """Description of a U-Net for a masker.

    Args:
        blocks: the blocks with masked layers, in the network's order.
    """

    blocks: tuple[BlockSpec, ...]

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        """All masked layers, in the network's order."""
        return tuple(layer for block in self.blocks for layer in block.layers)

    @property
    def weights(self) -> int:
        """Number of masked weights."""
        return sum(layer.weights for layer in self.layers)

    def to_json(self) -> list[dict[str, Any]]:
        """Return the blocks as JSON values."""
        return [asdict(block) for block in self.blocks]

    @classmethod
    def from_json(cls, blocks: list[dict[str, Any]]) -> Network:
        """Undo `to_json`.

        Args:
            blocks: the blocks as JSON values.

        Raises:
            CheckpointError: the values do not describe a network.
        """
        try:
            return cls(
                tuple(
                    BlockSpec(
                        b["name"],
                        int(b["in_channels"]),
                        int(b["out_channels"]),
                        int(b["temb_channels"]),
                        tuple(LayerSpec(x["name"], tuple(int(n) for n in x["shape"])) for x in b["layers"]),
                    )
                    for b in blocks
                )
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"expected a list of blocks with their layers, got JSON of another form ({error!r})"
            ) from error
