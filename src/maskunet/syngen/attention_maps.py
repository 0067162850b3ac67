"""Cross-attention maps of a U-Net, with their gradient, taken by processors that are put in place for a while.

A processor computes with its layer's own projections, so whatever masks or LoRAs sit in them count.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError

#: Processors that compute softmax(Q K^T / sqrt(d)) V and nothing else.
_KNOWN = ("AttnProcessor", "AttnProcessor2_0", "SlicedAttnProcessor", "XFormersAttnProcessor")


class AttentionMaps:
    """The maps of the calls under way.

    Args:
        positions: size N of the maps that are kept.
    """

    def __init__(self, positions: int) -> None:
        self.positions = positions
        self.sizes: set[int] = set()  # that came by
        self._total: Tensor | None = None
        self._heads = 0

    def add(self, maps: Tensor) -> None:
        """Add the maps of a layer, (B, heads, N, L)."""
        summed = maps.float().sum(1)
        self._total = summed if self._total is None else self._total + summed
        self._heads += maps.shape[1]

    def mean(self) -> Tensor:
        """Return the mean over all heads of all layers, (B, N, L), float32.

        Raises:
            DataError: no layer has maps of this size.
        """
        if self._total is None:
            raise DataError(
                f"expected cross-attention at {self.positions} positions, this U-Net's layers have "
                f"{', '.join(map(str, sorted(self.sizes, reverse=True))) or 'none'}; choose another resolution"
            )
        return self._total / self._heads


class _Capturing:
    """A processor that keeps the maps of one size and computes what the layer's own one computes."""

    def __init__(self, own: Any, maps: AttentionMaps) -> None:
        self.own, self.maps = own, maps

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        count = hidden_states.shape[1]
        self.maps.sizes.add(count)
        if count != self.maps.positions or encoder_hidden_states is None:
            return self.own(attn, hidden_states, encoder_hidden_states, attention_mask, *args, **kwargs)  # type: ignore[no-any-return]
        text = encoder_hidden_states
        mask = attn.prepare_attention_mask(attention_mask, text.shape[1], text.shape[0])
        if attn.norm_cross:
            text = attn.norm_encoder_hidden_states(text)
        projected = (attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text))
        query, key, value = (attn.head_to_batch_dim(x) for x in projected)
        weights = attn.get_attention_scores(query, key, mask)
        self.maps.add(weights.unflatten(0, (-1, attn.heads)))
        out = attn.batch_to_head_dim(torch.bmm(weights, value))
        return attn.to_out[1](attn.to_out[0](out))  # type: ignore[no-any-return]


def cross_attention(unet: Any) -> list[Any]:
    """Return the cross-attention layers of a U-Net.

    Raises:
        DataError: there are none, or their processors do more than attend, so that their maps are not all they use.
    """
    layers = {n: m for n, m in unet.named_modules() if n.endswith(".attn2") and hasattr(m, "set_processor")}
    if not layers:
        raise DataError(f"expected a U-Net with cross-attention (attn2), {type(unet).__name__} has none")
    for name, layer in layers.items():
        kind = type(layer.processor).__name__
        plain = all(getattr(layer, n, None) is None for n in ("group_norm", "spatial_norm", "norm_q", "norm_k"))
        if kind not in _KNOWN or not plain or layer.residual_connection or layer.rescale_output_factor != 1:
            raise DataError(
                f"expected an attention processor among {', '.join(_KNOWN)}, {name} has {kind}; unload adapters "
                "(unload_ip_adapter, unfuse_qkv_projections) or call unet.set_default_attn_processor()"
            )
    return list(layers.values())


@contextlib.contextmanager
def captured(unet: Any, positions: int) -> Iterator[AttentionMaps]:
    """Keep cross-attention maps of the calls inside the context; the layers' own processors are back after it.

    Take gradients inside the context: gradient checkpointing runs layers again, with the processors they have then.

    Args:
        unet: a diffusers U-Net, with or without masks.
        positions: size N = h w of the maps to keep.

    Raises:
        DataError: see `cross_attention`.
    """
    layers = cross_attention(unet)
    own = [layer.processor for layer in layers]
    maps = AttentionMaps(positions)
    try:
        for layer, processor in zip(layers, own, strict=True):
            layer.set_processor(_Capturing(processor, maps))
        yield maps
    finally:
        for layer, processor in zip(layers, own, strict=True):
            layer.set_processor(processor)
