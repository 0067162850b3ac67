"""The state of a call belongs to the call: threads, copies, gradient checkpointing around the whole U-Net, frames."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import maskunet as mu
from maskunet.attaching import attachment_of
from maskunet.errors import TargetError
from maskunet.maskers import FixedMasks, LowRankMasker, MaskSchedule, MaskTable
from maskunet.targets import describe, resolve

Unet = diffusers.UNet2DConditionModel
Inputs = Callable[..., dict[str, Any]]


def conditional_masker(unet: Unet) -> LowRankMasker:
    """A masker whose masks depend on the timestep and the sample."""
    masker = LowRankMasker.for_unet(unet, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in masker.named_parameters():
            p.add_(0.6 * torch.randn(p.shape, generator=generator))
            if name.endswith("_bias"):
                p.sub_(0.6)
    return masker


def schedule_of(unet: Unet, samples: int = 1) -> MaskSchedule:
    schedule = MaskSchedule(describe(unet), [900.0, 500.0, 100.0], samples=samples)
    generator = torch.Generator().manual_seed(2)
    for i in range(3):
        masks = {
            layer.name: torch.rand(samples, *layer.shape, generator=generator) < 0.6
            for layer in schedule.network.layers
        }
        schedule.set(i, masks)
    return schedule


@pytest.mark.parametrize("build", [conditional_masker, schedule_of])
def test_threads_do_not_mix(sd1: Unet, inputs: Inputs, build: Callable[[Unet], Any]) -> None:
    """Several requests on one U-Net, each in a thread of its own and at its own timestep."""
    mu.attach(sd1, build(sd1))
    requests = [inputs(sd1, batch, seed=batch, timestep=t) for batch, t in ((1, 900), (2, 500), (3, 100), (4, 700))]
    with torch.no_grad():
        alone = [sd1(**request).sample for request in requests]
    results: dict[int, list[Tensor]] = {}
    barrier = threading.Barrier(len(requests))

    @torch.no_grad()
    def serve(i: int) -> None:
        barrier.wait()
        results[i] = [sd1(**requests[i]).sample for _ in range(12)]

    threads = [threading.Thread(target=serve, args=(i,)) for i in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, expected in enumerate(alone):
        assert len(results[i]) == 12
        assert all(torch.equal(result, expected) for result in results[i])


def test_disabling_in_one_thread_leaves_the_others_masked(sd1: Unet, predict: Callable[..., Tensor]) -> None:
    base = predict(sd1)
    mu.attach(sd1, conditional_masker(sd1))
    masked, results = predict(sd1), []
    with mu.disabled(sd1):
        thread = threading.Thread(target=lambda: results.append(predict(sd1)))
        thread.start()
        thread.join()
        assert torch.equal(predict(sd1), base)
    assert torch.equal(results[0], masked)


def test_a_deep_copy_is_its_own(sd1: Unet, predict: Callable[..., Tensor]) -> None:
    base = predict(sd1)
    mu.attach(sd1, conditional_masker(sd1))
    masked = predict(sd1)
    copied = copy.deepcopy(sd1)
    assert torch.equal(predict(copied), masked)
    with torch.no_grad():
        for p in sd1.parameters():
            p.zero_()
    assert torch.equal(predict(copied), masked), "the copy computes with the original's weights"
    with mu.disabled(copied):
        assert torch.equal(predict(copied), base)
    mu.detach(copied)
    assert torch.equal(predict(copied), base)
    assert attachment_of(sd1) is not None
    assert attachment_of(copied) is None


def test_a_masked_model_is_not_pickled(sd1: Unet) -> None:
    mu.attach(sd1, conditional_masker(sd1))
    for write in (lambda: pickle.dumps(sd1), lambda: torch.save(sd1, io.BytesIO())):
        with pytest.raises(TargetError, match=r"maskunet\.detach"):
            write()
    mu.detach(sd1)
    assert isinstance(pickle.loads(pickle.dumps(sd1)), Unet)


def test_data_parallel_is_refused(sd1: Unet) -> None:
    with pytest.raises(TargetError, match="DataParallel"):
        mu.attach(nn.DataParallel(sd1), conditional_masker(sd1))


@pytest.mark.parametrize("calls", [1, 2])
def test_checkpointing_the_whole_network_draws_the_same_masks_again(sd1: Unet, inputs: Inputs, calls: int) -> None:
    """What reward fine-tuning does: the user's own `checkpoint` around every call of the U-Net."""
    masker = conditional_masker(sd1)
    attachment = mu.attach(sd1, masker.train())

    def gradients(run: Callable[..., Tensor]) -> list[Tensor]:
        attachment.reseed(3)
        masker.zero_grad()
        total = torch.zeros(())
        for k in range(calls):
            call = inputs(sd1, 2, seed=k, timestep=700 - 300 * k)
            call["sample"].requires_grad_(True)
            total = total + run(call).square().mean()
        total.backward()
        return [p.grad.clone() for p in masker.parameters() if p.grad is not None]

    plain = gradients(lambda call: sd1(**call).sample)
    again = gradients(
        lambda call: checkpoint(
            lambda sample: sd1(**{**call, "sample": sample}).sample, call["sample"], use_reentrant=False
        )
    )
    assert len(plain) == len(again) > 0
    for a, b in zip(plain, again, strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-5)


def test_a_timestep_per_row(sd1: Unet, inputs: Inputs) -> None:
    schedule = schedule_of(sd1)
    mu.attach(sd1, schedule)
    call = inputs(sd1, 3)
    with torch.no_grad():
        together = sd1(**{**call, "timestep": torch.tensor([900, 100, 500])}).sample
        for row, t in enumerate((900, 100, 500)):
            parts = {name: value[row : row + 1] for name, value in call.items() if name != "timestep"}
            alone = sd1(**parts, timestep=torch.tensor(t)).sample
            torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-5)


def test_forward_called_directly_starts_a_call(sd1: Unet, inputs: Inputs) -> None:
    mu.attach(sd1, schedule_of(sd1))
    with torch.no_grad():
        expected = sd1(**inputs(sd1, timestep=100)).sample
        sd1(**inputs(sd1, timestep=900))
        assert torch.equal(sd1.forward(**inputs(sd1, timestep=100)).sample, expected)


def test_guidance_switched_off_during_a_run(pipe: Any) -> None:
    """`callback_on_step_end` may end guidance: from then on the batch is conditional alone."""
    network = describe(pipe.unet)
    generator = torch.Generator().manual_seed(0)
    masks = {layer.name: torch.rand(2, *layer.shape, generator=generator) < 0.6 for layer in network.layers}
    mu.attach(pipe, FixedMasks(masks))
    prompts, seeds = ["a b", "c d"], [1, 2]

    def stop_guiding(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 0:
            pipe._guidance_scale = 0.0
            return {"prompt_embeds": tensors["prompt_embeds"][len(tensors["prompt_embeds"]) // 2 :]}
        return tensors

    def run(prompts: list[str], seeds: list[int]) -> Tensor:
        return pipe(
            prompts,
            num_inference_steps=3,
            generator=[torch.Generator().manual_seed(s) for s in seeds],
            output_type="latent",
            callback_on_step_end=stop_guiding,
            callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
        ).images

    together = run(prompts, seeds)
    for i in range(2):
        mu.attach(pipe, FixedMasks({name: mask[i] for name, mask in masks.items()}))
        torch.testing.assert_close(
            together[i : i + 1], run(prompts[i : i + 1], seeds[i : i + 1]), atol=1e-4, rtol=1e-4
        )


def test_two_pipelines_share_a_network(pipe: Any) -> None:
    """One U-Net has one masker; the layout is that of the pipeline that calls."""
    other = diffusers.StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    network = describe(pipe.unet)
    table = MaskTable(network, samples=2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for logits in table.logits.values():
            logits.copy_(torch.randn(logits.shape, generator=generator))
    mu.attach(pipe, table)

    def run(pipeline: Any, guidance_scale: float) -> Tensor:
        return pipeline(
            ["a b", "c d"],
            num_inference_steps=2,
            guidance_scale=guidance_scale,
            generator=[torch.Generator().manual_seed(s) for s in (1, 2)],
            output_type="latent",
        ).images

    expected = {scale: run(pipe, scale) for scale in (1.0, 4.0)}
    run(pipe, 4.0)
    assert torch.equal(run(other, 1.0), expected[1.0])
    run(pipe, 1.0)
    assert torch.equal(run(other, 4.0), expected[4.0])


def test_perturbed_attention_on_masked_layers_is_refused(pipe: Any) -> None:
    pag = diffusers.StableDiffusionPAGPipeline(
        **pipe.components, requires_safety_checker=False, pag_applied_layers=["up_blocks.1.attentions.0"]
    )
    pag.set_progress_bar_config(disable=True)
    mu.attach(pag, conditional_masker(pag.unet))
    with pytest.raises(TargetError, match="pag_applied_layers"):
        pag("a b", num_inference_steps=1, output_type="latent")


def video_networks() -> dict[str, Callable[[], Any]]:
    width = {"block_out_channels": (16, 32), "norm_num_groups": 8, "layers_per_block": 1, "sample_size": 8}
    return {
        "UNet3D": lambda: diffusers.UNet3DConditionModel(
            **width,
            cross_attention_dim=24,
            attention_head_dim=8,
            down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        ),
        "Stable Video Diffusion": lambda: diffusers.UNetSpatioTemporalConditionModel(
            in_channels=8,
            block_out_channels=(32, 64),
            layers_per_block=1,
            sample_size=8,
            cross_attention_dim=24,
            num_attention_heads=(2, 4),
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=24,
            down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        ),
    }


@pytest.mark.parametrize("kind", list(video_networks()))
def test_video_networks_mask_spatial_layers_alone(kind: str) -> None:
    """Temporal layers see positions as rows; masks per row would silently hit the wrong ones."""
    torch.manual_seed(0)
    unet = video_networks()[kind]().eval().requires_grad_(False)
    names = resolve(unet, "decoder-attention")
    assert names
    assert not any("temp" in name for name in names)
    assert any("temp" in name for name, _ in unet.named_modules())
    with pytest.raises(TargetError, match="match no layer"):
        resolve(unet, r".*temp.*to_q")
    frames = 3
    if kind == "UNet3D":
        call: dict[str, Any] = {
            "sample": torch.randn(2, 4, frames, 8, 8),
            "encoder_hidden_states": torch.randn(2, 5, 24),
        }
    else:
        call = {
            "sample": torch.randn(2, frames, 8, 8, 8),
            "encoder_hidden_states": torch.randn(2, 5, 24),
            "added_time_ids": torch.randn(2, 3),
        }
    call["timestep"] = torch.tensor(500)
    with torch.no_grad():
        base = unet(**call).sample
        mu.attach(unet, LowRankMasker.for_unet(unet, seed=0))
        assert torch.equal(unet(**call).sample, base)
        masker = conditional_masker(unet)
        mu.attach(unet, masker)
        with mu.record(unet) as trace:
            masked = unet(**call).sample
    assert not torch.equal(masked, base)
    assert {len(mask) for mask in trace.masks.values()} == {2 * frames}
    # Masks per video: every frame of a video has that video's.
    generator = torch.Generator().manual_seed(3)
    layers = masker.network.layers
    masks = {layer.name: torch.rand(2, *layer.shape, generator=generator) < 0.6 for layer in layers}
    with torch.no_grad():
        mu.attach(unet, FixedMasks(masks))
        together = unet(**call).sample
        for video in range(2):
            mu.attach(unet, FixedMasks({name: mask[video] for name, mask in masks.items()}))
            torch.testing.assert_close(together[video], unet(**call).sample[video], atol=1e-5, rtol=1e-5)
