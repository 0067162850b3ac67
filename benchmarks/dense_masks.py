"""What masks cost the plain way, as a yardstick: dense, one layer at a time, in hooks after layers that have already run.

A restatement of the method's text, apart from the library: a generator a block, whose output every layer expands to a
dense mask for each sample; the layer's first result is thrown away and computed again with masked weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


class Generator(nn.Module):
    """The paper's networks of one block, with noise."""

    def __init__(self, channels: int, outputs: int, temb: int, layers: dict[str, nn.Linear]) -> None:
        super().__init__()
        self.size = (outputs // 4, channels // 4)
        self.time = nn.Linear(temb, channels, bias=False)
        self.core = nn.Sequential(
            nn.Linear(channels, 64), nn.ReLU(), nn.Linear(64, outputs * channels // 16), nn.ReLU()
        )
        self.out = nn.ModuleDict(
            {k.replace(".", "_"): nn.Linear(self.size[0], x.out_features) for k, x in layers.items()}
        )
        self.inp = nn.ModuleDict(
            {k.replace(".", "_"): nn.Linear(self.size[1], x.in_features) for k, x in layers.items()}
        )
        self.state: Tensor | None = None

    def begin(self, features: Tensor, temb: Tensor) -> None:
        """Compute Z of the block."""
        z = features.mean((2, 3)) + self.time(temb)
        self.state = self.core(z).unflatten(1, self.size)

    def mask(self, name: str) -> Tensor:
        """Return the dense mask of a layer, (B, O, I)."""
        key = name.replace(".", "_")
        assert self.state is not None
        logits = self.inp[key](self.out[key](self.state.transpose(1, 2)).transpose(1, 2))
        noise = -torch.log(-torch.log(torch.rand_like(logits).clamp_(1e-20, 1 - 1e-7)))
        soft = torch.sigmoid(logits + noise)
        hard = (soft > 0.5).to(soft.dtype)
        return hard - soft.detach() + soft


def attach_dense(unet: nn.Module) -> nn.ModuleList:
    """Put the hooks on a U-Net's decoder; return the generators. There is no way back."""
    generators = nn.ModuleList()
    for block in unet.up_blocks:
        layers = {n: m for n, m in block.named_modules() if n.endswith(PROJECTIONS) and isinstance(m, nn.Linear)}
        if not layers:
            continue
        first = block.resnets[0]
        generator = Generator(
            first.conv1.in_channels, first.conv1.out_channels, first.time_emb_proj.in_features, layers
        )
        generators.append(generator)

        def start(module: nn.Module, args: tuple, kwargs: dict, generator: Generator = generator) -> None:
            features = torch.cat([kwargs["hidden_states"], kwargs["res_hidden_states_tuple"][-1]], 1)
            generator.begin(features, kwargs["temb"])

        block.register_forward_pre_hook(start, with_kwargs=True)
        for name, layer in layers.items():

            def again(m: nn.Linear, args: tuple, out: Tensor, g: Generator = generator, name: str = name) -> Tensor:
                weights = m.weight * g.mask(name)
                y = torch.einsum("bni,boi->bno", args[0], weights)
                return y if m.bias is None else y + m.bias

            layer.register_forward_hook(again)
    return generators
