"""Parity with recordings of the authors' training-based model on random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from torch import Tensor

import maskunet as mu
from maskunet import relaxation
from maskunet.errors import CheckpointError
from maskunet.maskers import FixedMasks

FIXTURES = Path(__file__).parents[1] / "fixtures"


class Recording:
    """One recording: tensors by group, the U-Net, and its call."""

    def __init__(self, path: Path) -> None:
        with safe_open(path, "pt") as file:
            self.metadata = file.metadata()
            self.tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        self.layers: list[str] = json.loads(self.metadata["layers"])
        self.unet = UNet2DConditionModel(**json.loads(self.metadata["unet_config"])).eval()
        base = {k: v for k, v in self.group("weights").items() if not k.startswith(("mask_generators.", "adapters."))}
        self.unet.load_state_dict(base)

    def group(self, prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix + "."): v for k, v in self.tensors.items() if k.startswith(prefix + ".")}

    def masker(self) -> mu.MaskGenerator:
        weights = self.group("weights")
        parts = {
            name: {k.removeprefix(name + "."): v for k, v in weights.items() if k.startswith(name + ".")}
            for name in ("mask_generators", "adapters")
        }
        return mu.MaskGenerator.from_authors(self.unet, **parts)

    @torch.no_grad()
    def run(self) -> Tensor:
        given = self.group("input")
        return self.unet(given["sample"], given["timestep"], given["encoder_hidden_states"]).sample


@pytest.fixture(params=["a", "b"])
def recording(request: pytest.FixtureRequest) -> Recording:
    return Recording(FIXTURES / f"authors_masked_unet_{request.param}.safetensors")


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_base_output(recording: Recording) -> None:
    close(recording.run(), recording.tensors["output.base"])


def test_logits_of_first_masked_block(recording: Recording) -> None:
    mu.attach(recording.unet, recording.masker())
    with mu.record(recording.unet) as trace:
        recording.run()
    assert list(trace.logits) == recording.layers
    first = [name for name in recording.layers if name.startswith("up_blocks.1.")]
    assert first
    for name in first:
        theirs = recording.tensors[f"logits.{name}"]
        assert trace.logits[name].shape == theirs.shape
        close(trace.logits[name], theirs)


def test_everything_given_the_recorded_noise(recording: Recording) -> None:
    mu.attach(recording.unet, recording.masker(), noise=recording.group("gumbel"))
    with mu.record(recording.unet) as trace:
        output = recording.run()
    for name in recording.layers:
        close(trace.logits[name], recording.tensors[f"logits.{name}"])
        assert torch.equal(trace.masks[name], recording.tensors[f"mask.{name}"].bool()), name
    close(output, recording.tensors["output.masked"])


def test_masks_from_recorded_logits_and_noise(recording: Recording) -> None:
    for name in recording.layers:
        logits, noise = recording.tensors[f"logits.{name}"], recording.tensors[f"gumbel.{name}"]
        mask = relaxation.gumbel_sigmoid(logits, noise)
        assert torch.equal(mask, recording.tensors[f"mask.{name}"].float())


def test_output_under_recorded_masks(recording: Recording) -> None:
    mu.attach(recording.unet, FixedMasks(recording.group("mask")))
    close(recording.run(), recording.tensors["output.masked"])
    mu.detach(recording.unet)
    close(recording.run(), recording.tensors["output.base"])


def test_later_logits_under_recorded_masks_upstream(recording: Recording) -> None:
    """Block 2's logits, with the recorded masks acting in block 1 through both kinds of masker."""
    upstream = {k: v for k, v in recording.group("mask").items() if k.startswith("up_blocks.1.")}
    seen = {}

    def capture(module: torch.nn.Module, args: object, kwargs: dict) -> None:
        seen.update(kwargs)

    handle = recording.unet.up_blocks[2].register_forward_pre_hook(capture, with_kwargs=True)
    mu.attach(recording.unet, FixedMasks(upstream))
    recording.run()
    handle.remove()
    inputs = mu.maskers.BlockInput(seen["hidden_states"], seen["res_hidden_states_tuple"][-1], seen["temb"])
    for name, mask in recording.masker().block_masks("up_blocks.2", inputs).items():
        close(mask.logits(), recording.tensors[f"logits.{name}"])


def test_no_dead_parameters(recording: Recording) -> None:
    masker = recording.masker()
    assert [block.name for block in masker.network.blocks] == ["up_blocks.1", "up_blocks.2"]
    theirs = sum(
        v.numel()
        for k, v in recording.group("weights").items()
        if k.startswith(("mask_generators.", "adapters.")) and not k.startswith("mask_generators.0.")
    )
    assert sum(p.numel() for p in masker.parameters()) == theirs


def test_checkpoint_of_another_unet_is_refused(recording: Recording) -> None:
    weights = recording.group("weights")
    generators = {k.removeprefix("mask_generators."): v for k, v in weights.items() if k.startswith("mask_gen")}
    adapters = {k.removeprefix("adapters."): v for k, v in weights.items() if k.startswith("adapters")}
    other = "b" if recording.tensors["input.sample"].shape[0] == 2 else "a"
    unet = Recording(FIXTURES / f"authors_masked_unet_{other}.safetensors").unet
    with pytest.raises(CheckpointError, match="U-Net"):
        mu.MaskGenerator.from_authors(unet, mask_generators=generators, adapters=adapters)
