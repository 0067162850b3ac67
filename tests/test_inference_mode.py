"""What is created, moved or cast under `torch.inference_mode` can be trained afterwards, and calls inside it work."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor, nn

import maskunet as mu
from maskunet import moving, targets
from maskunet.attaching import attachment_of
from maskunet.data import CachedLatents, encode_images, encode_posterior, open_images
from maskunet.errors import DataError
from maskunet.maskers import BlockInput, FixedMasks, LayerMask, Masker, MaskSchedule, MaskTable, RandomMasks
from maskunet.maskers.forms import DenseLogits
from maskunet.network import Network
from maskunet.pipelines import load_pipeline
from maskunet.sampling import generate
from maskunet.sampling.stepwise import StepwiseSampler
from maskunet.searching import SearchConfig
from maskunet.shapes.scenes import training_scene
from maskunet.syngen import shapes_phrases, syngen
from maskunet.zoo.dataset import encode_scenes

Unet = UNet2DConditionModel
CONFIG = mu.TrainConfig(
    max_train_steps=2,
    train_batch_size=2,
    gradient_accumulation_steps=1,
    learning_rate=0.02,
    lr_warmup_steps=0,
    validation_samples=2,
    validation_prompts=("a b",),
    validation_num_inference_steps=1,
)


class UsersMasker(Masker, savable=False):
    """A masker that this library knows nothing of."""

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self.weights = nn.ParameterList([nn.Parameter(torch.zeros(x.shape)) for x in network.layers])
        self.register_buffer("scale", torch.ones(()))

    def block_masks(self, block: str, inputs: BlockInput) -> Mapping[str, LayerMask]:
        names = {layer.name: weight for layer, weight in zip(self.network.layers, self.weights, strict=True)}
        layers = next(b.layers for b in self.network.blocks if b.name == block)
        return {layer.name: DenseLogits(names[layer.name] * self.scale) for layer in layers}


def ones(unet: Unet) -> dict[str, Tensor]:
    return {layer.name: torch.ones(layer.shape) for layer in targets.describe(unet, "decoder-attention").layers}


BUILDERS: dict[str, Callable[[Unet], Masker]] = {
    "low-rank": lambda unet: mu.LowRankMasker.for_unet(unet, seed=0),
    "low-rank, built plainly": lambda unet: mu.LowRankMasker(targets.describe(unet, "decoder-attention")),
    "paper": lambda unet: mu.MaskGenerator.for_unet(unet),
    "table": MaskTable.for_unet,
    "fixed": lambda unet: FixedMasks(ones(unet)),
    "random": RandomMasks.for_unet,
    "schedule": lambda unet: MaskSchedule(targets.describe(unet, "decoder-attention"), [900.0, 20.0]),
    "user's": lambda unet: UsersMasker(targets.describe(unet, "decoder-attention")),
}
SAVABLE = [name for name in BUILDERS if name != "user's"]


def tensors_of(masker: Masker) -> list[Tensor]:
    return [*masker.parameters(), *masker.buffers(), *masker.tensors().values()]


def check_ordinary(*tensors: Tensor) -> None:
    assert not any(tensor.is_inference() for tensor in tensors)


@pytest.mark.parametrize("name", list(BUILDERS))
def test_maskers_are_built_of_ordinary_tensors(sd1: Unet, name: str) -> None:
    with torch.inference_mode():
        masker = BUILDERS[name](sd1)
        assert torch.is_inference_mode_enabled()
        check_ordinary(*tensors_of(masker))
        masker.to(torch.float64)
        check_ordinary(*tensors_of(masker.half().float()))


@pytest.mark.parametrize("name", SAVABLE)
def test_maskers_are_loaded_as_ordinary_tensors(sd1: Unet, tmp_path: Path, name: str) -> None:
    BUILDERS[name](sd1).save_pretrained(tmp_path)
    with torch.inference_mode():
        check_ordinary(*tensors_of(mu.load(tmp_path, sd1)))
        check_ordinary(*tensors_of(mu.load(tmp_path, device="meta")))
        check_ordinary(*tensors_of(mu.attach(sd1, tmp_path).masker))


def test_a_schedule_that_followed_the_features_can_be_set(sd1: Unet) -> None:
    schedule = MaskSchedule(targets.describe(sd1, "decoder-attention"), [500.0])
    block = schedule.network.blocks[0]
    with torch.inference_mode():
        schedule.block_masks(block.name, BlockInput(torch.zeros(1, 2, 2, 2, device="meta"), None, torch.zeros(1)))
    packed = [schedule.tensors()[layer.name] for layer in block.layers]
    assert all(tensor.is_meta for tensor in packed)
    check_ordinary(*packed)


@pytest.mark.parametrize("name", ["low-rank", "paper", "table", "user's"])
def test_a_masker_trains_after_inference_mode(
    pipe: StableDiffusionPipeline, tmp_path: Path, draw_latents: Callable[..., Tensor], name: str
) -> None:
    """Built, cast, attached and generated with under inference mode, then trained."""
    with torch.inference_mode():
        masker = BUILDERS[name](pipe.unet).to(torch.float64).to(torch.float32)
        mu.attach(pipe, masker)
        draw_latents(pipe, ["a b"], [0])
        generate(pipe, ["a b"], num_inference_steps=1, progress=False)
    start = copy.deepcopy(masker.state_dict())
    data = latents(pipe)
    mu.train(pipe, masker, data, CONFIG, tmp_path, progress=False)
    assert any(not torch.equal(value, start[key]) for key, value in masker.state_dict().items())


def latents(pipe: Any) -> CachedLatents:
    cached = encode_scenes(pipe, [training_scene(i) for i in range(6)])
    return CachedLatents(cached.mean[..., ::4, ::4], cached.std[..., ::4, ::4], cached.captions, cached.time_ids)


@pytest.fixture
def half_vae(sdxl_pipe: StableDiffusionXLPipeline) -> StableDiffusionXLPipeline:
    """An SDXL pipeline whose autoencoder overflows in its half precision, some of its layers kept in float32."""
    sdxl_pipe.vae = copy.deepcopy(sdxl_pipe.vae).half()
    sdxl_pipe.vae.decoder.conv_norm_out.float()
    sdxl_pipe.vae.requires_grad_(True)
    assert sdxl_pipe.vae.config.force_upcast
    return sdxl_pipe


def vae_state(pipe: Any) -> dict[str, Any]:
    return {name: (p.dtype, p.requires_grad, p.detach().clone()) for name, p in pipe.vae.named_parameters()}


def check_same_vae(pipe: Any, before: dict[str, Any]) -> None:
    after = vae_state(pipe)
    for name, (dtype, requires_grad, value) in before.items():
        assert after[name][:2] == (dtype, requires_grad), name
        assert torch.equal(after[name][2], value), name
    check_ordinary(*pipe.vae.parameters())


def test_encoding_leaves_the_autoencoder_as_it_was(half_vae: StableDiffusionXLPipeline) -> None:
    before = vae_state(half_vae)
    images = torch.rand(2, 3, 16, 16)
    expected = encode_posterior(half_vae.vae, images)
    check_same_vae(half_vae, before)
    with torch.inference_mode():
        mean, std = encode_posterior(half_vae.vae, images)
    check_same_vae(half_vae, before)
    check_ordinary(mean, std)
    assert torch.equal(mean, expected[0])
    assert torch.equal(std, expected[1])
    with pytest.raises(RuntimeError), torch.inference_mode():
        encode_posterior(half_vae.vae, torch.rand(2, 5, 16, 16))
    check_same_vae(half_vae, before)


def test_sdxl_trains_on_images_encoded_under_inference_mode(
    half_vae: StableDiffusionXLPipeline, tmp_path: Path
) -> None:
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(4):
        Image.new("RGB", (16, 16), (60 * i, 20, 90)).save(folder / f"{i}.png")
    lines = "".join(f'{{"file_name": "{i}.png", "text": "a b"}}\n' for i in range(4))
    (folder / "metadata.jsonl").write_text(lines)
    before = vae_state(half_vae)
    with torch.inference_mode():
        data = encode_images(half_vae, open_images(folder), resolution=16, progress=False)
    check_same_vae(half_vae, before)
    masker = mu.LowRankMasker.for_unet(half_vae.unet, mu.LowRankMaskerConfig(initial_logit=0.0), seed=0)
    settings = mu.TrainConfig(**{**vars(CONFIG), "validation_prompts": ()})
    run = mu.train(half_vae, masker, data, settings, tmp_path / "run", progress=False)
    assert (run.folder / "masker" / "masker.safetensors").is_file()
    check_same_vae(half_vae, before)


@pytest.mark.filterwarnings("ignore:.*upcast_vae.*:FutureWarning")
def test_decoding_leaves_the_autoencoder_as_it_was(half_vae: StableDiffusionXLPipeline) -> None:
    before = vae_state(half_vae)
    with torch.inference_mode():
        generate(half_vae, ["a b"], num_inference_steps=1, progress=False)
        sampler = StepwiseSampler(half_vae, ["a b"], seeds=[0], num_inference_steps=1, guidance_scale=1.0)
        sampler.decode(sampler.latents)
    after = vae_state(half_vae)
    check_ordinary(*half_vae.vae.parameters())
    assert {name: value[1] for name, value in after.items()} == {name: value[1] for name, value in before.items()}


def redness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images[:, 0].mean((1, 2)) - images[:, 2].mean((1, 2))


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_calls_that_need_gradients_work_inside(
    pipe: StableDiffusionPipeline, tmp_path: Path, mode: Callable[[], Any]
) -> None:
    data = latents(pipe)
    search_config = SearchConfig.preset("masks", num_inference_steps=2, iterations=2, guidance_scale=4.0)

    def results(folder: str) -> list[Tensor]:
        masker = mu.LowRankMasker.for_unet(pipe.unet, mu.LowRankMaskerConfig(initial_logit=0.0), seed=0)
        run = mu.train(pipe, masker, data, CONFIG, tmp_path / folder, progress=False)
        found = mu.search(pipe, ["a b"], redness, search_config, progress=False)
        options = {"phrases": lambda prompt: [], "num_inference_steps": 2}
        return [*run.masker.parameters(), found.tensor, found.rewards, syngen(pipe, ["a b"], [0], **options).tensor]

    outside = results("outside")
    with mode():
        inside = results("inside")
        assert torch.is_inference_mode_enabled() is (mode is torch.inference_mode)
        assert not torch.is_grad_enabled()
    assert all(torch.equal(a, b) for a, b in zip(outside, inside, strict=True))
    check_ordinary(*inside)
    check_ordinary(*pipe.unet.parameters(), *pipe.vae.parameters(), *pipe.text_encoder.parameters())


def test_models_are_loaded_as_ordinary_tensors() -> None:
    with torch.inference_mode():
        pipe = load_pipeline("shapes")
        reward = mu.rewards.load("shapes-matching")
        reward.to(dtype=torch.bfloat16).to(dtype=torch.float32)
        clip = mu.zoo.load_clip()
    networks = (pipe.unet, pipe.vae, pipe.text_encoder, clip, *reward.models, *reward.heads)
    check_ordinary(*(p for network in networks for p in network.parameters()))


def test_a_pipeline_of_inference_tensors_is_refused_in_one_line(pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    data = latents(pipe)
    with torch.inference_mode():
        pipe.unet.to(torch.float64).to(torch.float32)
    masker = mu.LowRankMasker.for_unet(pipe.unet, seed=0)
    calls: list[Callable[[], Any]] = [
        lambda: mu.train(pipe, masker, data, CONFIG, tmp_path, progress=False),
        lambda: mu.search(pipe, ["a b"], redness, progress=False),
        lambda: syngen(pipe, ["a b"], [0], phrases=shapes_phrases),
    ]
    for call in calls:
        with pytest.raises(DataError, match=r"^expected .*conv_in\.weight.*inference_mode") as caught:
            call()
        assert "\n" not in str(caught.value)
    assert attachment_of(pipe) is None


def test_outside_inference_mode_records_no_gradients() -> None:
    weight = nn.Parameter(torch.ones(2))
    with torch.inference_mode(), moving.outside_inference_mode():
        assert not (weight * 2).requires_grad
    with moving.outside_inference_mode():
        assert (weight * 2).requires_grad
