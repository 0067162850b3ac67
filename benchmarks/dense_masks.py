"""The plain way to apply masks, as a baseline: dense, one layer at a time, in hooks that compute every layer twice.

Written from the paper's text, without the library: one generator per block, whose output every layer expands to a dense
mask per sample. A hook discards the layer's first result and computes it again with masked weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


class DenseGenerator(nn.Module):
    """The paper's networks of one block, with Gumbel noise.

    Args:
        channels: input channels of the block.
        outputs: output channels of the block.
        temb: width of the time embedding.
        layers: masked layers by name.
    """

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
        """Compute Z of the block from its input (B, C, H, W) and the time embedding (B, T)."""
        z = features.mean((2, 3)) + self.time(temb)
        self.state = self.core(z).unflatten(1, self.size)

    def mask(self, name: str) -> Tensor:
        """Return the dense mask (B, O, I) of a layer."""
        key = name.replace(".", "_")
        assert self.state is not None
        logits = self.inp[key](self.out[key](self.state.transpose(1, 2)).transpose(1, 2))
        noise = -torch.log(-torch.log(torch.rand_like(logits).clamp_(1e-20, 1 - 1e-7)))
        soft = torch.sigmoid(logits + noise)
        hard = (soft > 0.5).to(soft.dtype)
        return hard - soft.detach() + soft


def attach_dense(unet: nn.Module) -> nn.ModuleList:
    """Put the hooks on a U-Net's decoder, irreversibly, and return the generators.

    Args:
        unet: a Stable Diffusion U-Net.
    """
    generators = nn.ModuleList()
    for block in unet.up_blocks:
        layers = {n: m for n, m in block.named_modules() if n.endswith(PROJECTIONS) and isinstance(m, nn.Linear)}
        if not layers:
            continue
        resnet = block.resnets[0]
        generator = DenseGenerator(
            resnet.conv1.in_channels, resnet.conv1.out_channels, resnet.time_emb_proj.in_features, layers
        )
        generators.append(generator)

        def start(module: nn.Module, args: tuple, kwargs: dict, generator: DenseGenerator = generator) -> None:
            features = torch.cat([kwargs["hidden_states"], kwargs["res_hidden_states_tuple"][-1]], 1)
            generator.begin(features, kwargs["temb"])

        block.register_forward_pre_hook(start, with_kwargs=True)
        for name, layer in layers.items():

            def recompute(
                m: nn.Linear, args: tuple, out: Tensor, g: DenseGenerator = generator, name: str = name
            ) -> Tensor:
                weights = m.weight * g.mask(name)
                y = torch.einsum("bni,boi->bno", args[0], weights)
                return y if m.bias is None else y + m.bias

            layer.register_forward_hook(recompute)
    return generators
