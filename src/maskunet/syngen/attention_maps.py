"""Cross-attention maps of a U-Net with their gradient, captured by temporary processors.

A processor computes with its layer's own projections, masks and LoRAs included.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError

#: Processors that compute softmax(Q K^T / sqrt(d)) V and nothing else.
_PLAIN_PROCESSORS = ("AttnProcessor", "AttnProcessor2_0", "SlicedAttnProcessor", "XFormersAttnProcessor")


class AttentionMaps:
    """Sum of the maps of the captured calls.

    Args:
        positions: number N of image positions of the captured maps.
    """

    def __init__(self, positions: int) -> None:
        self.positions = positions
        self.sizes: set[int] = set()  # numbers of positions of all calls
        self._total: Tensor | None = None
        self._heads = 0

    def add(self, maps: Tensor) -> None:
        """Add the maps of a layer.

        Args:
            maps: attention probabilities (B, heads, N, L).
        """
        summed = maps.float().sum(1)
        self._total = summed if self._total is None else self._total + summed
        self._heads += maps.shape[1]

    def mean(self) -> Tensor:
        """Return the mean over all heads of all layers, (B, N, L), float32.

        Raises:
            DataError: no layer has maps of this size.
        """
        if self._total is None:
            sizes = ", ".join(map(str, sorted(self.sizes, reverse=True))) or "none"
            raise DataError(
                f"expected cross-attention at {self.positions} positions, this U-Net's layers have {sizes}; choose another "
                "resolution"
            )
        return self._total / self._heads


class _CapturingProcessor:
    """A processor that captures the maps of one size and computes what the layer's own processor computes."""

    def __init__(self, original: Any, maps: AttentionMaps) -> None:
        self.original, self.maps = original, maps

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        positions = hidden_states.shape[1]
        self.maps.sizes.add(positions)
        if positions != self.maps.positions or encoder_hidden_states is None:
            return self.original(  # type: ignore[no-any-return]
                attn, hidden_states, encoder_hidden_states, attention_mask, *args, **kwargs
            )
        text = encoder_hidden_states
        mask = attn.prepare_attention_mask(attention_mask, text.shape[1], text.shape[0])
        if attn.norm_cross:
            text = attn.norm_encoder_hidden_states(text)
        projected = (attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text))
        query, key, value = (attn.head_to_batch_dim(x) for x in projected)
        weights = attn.get_attention_scores(query, key, mask)
        self.maps.add(weights.unflatten(0, (-1, attn.heads)))
        output = attn.batch_to_head_dim(torch.bmm(weights, value))
        return attn.to_out[1](attn.to_out[0](output))  # type: ignore[no-any-return]


def cross_attention(unet: Any) -> list[Any]:
    """Return the cross-attention layers of a U-Net.

    Args:
        unet: a diffusers U-Net, with or without masks.

    Raises:
        DataError: there are none, or their processors do more than plain attention, so their maps would be incomplete.
    """
    layers = {n: m for n, m in unet.named_modules() if n.endswith(".attn2") and hasattr(m, "set_processor")}
    if not layers:
        raise DataError(f"expected a U-Net with cross-attention (attn2), {type(unet).__name__} has none")
    for name, layer in layers.items():
        processor = type(layer.processor).__name__
        norms = ("group_norm", "spatial_norm", "norm_q", "norm_k")
        is_plain = processor in _PLAIN_PROCESSORS and all(getattr(layer, norm, None) is None for norm in norms)
        if not is_plain or layer.residual_connection or layer.rescale_output_factor != 1:
            raise DataError(
                f"expected an attention processor among {', '.join(_PLAIN_PROCESSORS)}, {name} has {processor}; unload "
                "adapters (unload_ip_adapter, unfuse_qkv_projections) or call unet.set_default_attn_processor()"
            )
    return list(layers.values())


@contextlib.contextmanager
def capture_maps(unet: Any, positions: int) -> Iterator[AttentionMaps]:
    """Capture the cross-attention maps of the calls inside the context; afterwards restore the layers' processors.

    Compute gradients inside the context: gradient checkpointing calls layers a second time, with the processors they have
    at that moment.

    Args:
        unet: a diffusers U-Net, with or without masks.
        positions: number N = h w of image positions of the maps to capture.

    Raises:
        DataError: see `cross_attention`.
    """
    layers = cross_attention(unet)
    processors = [layer.processor for layer in layers]
    maps = AttentionMaps(positions)
    try:
        for layer, processor in zip(layers, processors, strict=True):
            layer.set_processor(_CapturingProcessor(processor, maps))
        yield maps
    finally:
        for layer, processor in zip(layers, processors, strict=True):
            layer.set_processor(processor)
