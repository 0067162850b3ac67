"""Tiny pipelines of every kind that masks meet, each with the row layout of its U-Net's batches, written down by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, EulerDiscreteScheduler, LCMScheduler, UNet2DConditionModel
from PIL import Image
from torch import Tensor
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

PROMPTS = ("a b", "c d")
IMAGES_PER_PROMPT = 2
STEPS = 2
_SIZE = 16
_FRAMES = 3

#: One row of a batch: the part of the guided batch that it belongs to, and its prompt.
Row = tuple[str, int]

SD1: dict[str, Any] = {
    "sample_size": 8,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 24,
    "block_out_channels": (16, 32, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 4,
}
SDXL: dict[str, Any] = SD1 | {
    "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (2, 4),
    "use_linear_projection": True,
    "transformer_layers_per_block": (1, 2),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 32,
}
_NO_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


@dataclass(frozen=True)
class Case:
    """A kind of pipeline.

    Args:
        build: makes the pipeline, always the same.
        call: arguments of its call beside the generator.
        generators: random generators for its call.
        rows: the layout of a batch of this many rows.
        prompts: how many prompts it is called with.
    """

    build: Callable[[], Any]
    call: Callable[[], dict[str, Any]]
    rows: Callable[[int], list[Row]]
    prompts: int = 2
    generators: int = 4


def seeded(build: Callable[[], Any]) -> Any:
    """Build a frozen network, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().eval().requires_grad_(False)


def text_config(width: int) -> CLIPTextConfig:
    """Return the config of a tiny text encoder."""
    return CLIPTextConfig(
        vocab_size=64,
        hidden_size=width,
        intermediate_size=32,
        projection_dim=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def unet(**changes: Any) -> Any:
    """Return the tiny U-Net of SD 1.x."""
    return seeded(lambda: UNet2DConditionModel(**(SD1 | changes)))


def _unet_xl(**changes: Any) -> Any:
    return seeded(lambda: UNet2DConditionModel(**(SDXL | changes)))


def vae() -> Any:
    """Return a tiny autoencoder."""
    return seeded(
        lambda: AutoencoderKL(
            block_out_channels=(8, 8),
            norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            sample_size=16,
        )
    )


class Builder:
    """Builds the pipelines around one tokenizer.

    Args:
        tokenizer: a tiny tokenizer.
    """

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        self.tokenizer = tokenizer

    def _parts(self) -> dict[str, Any]:
        return {
            "vae": vae(),
            "text_encoder": seeded(lambda: CLIPTextModel(text_config(24))),
            "tokenizer": self.tokenizer,
            "scheduler": DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        }

    def _parts_xl(self) -> dict[str, Any]:
        return {
            "vae": vae(),
            "text_encoder": seeded(lambda: CLIPTextModel(text_config(8))),
            "text_encoder_2": seeded(lambda: CLIPTextModelWithProjection(text_config(16))),
            "tokenizer": self.tokenizer,
            "tokenizer_2": self.tokenizer,
            "scheduler": EulerDiscreteScheduler(),
            "add_watermarker": False,
        }

    def _sd(self, pipeline: str, **parts: Any) -> Any:
        return getattr(diffusers, pipeline)(**(self._parts() | {"unet": unet()} | _NO_CHECKER | parts))

    def _controlnet(self) -> Any:
        network = unet()
        control = seeded(
            lambda: diffusers.ControlNetModel.from_unet(network, conditioning_embedding_out_channels=(8, 8))
        )
        # A fresh ControlNet adds zeros; this one adds something.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            for name, p in control.named_parameters():
                if "controlnet_" in name:
                    p.copy_(0.1 * torch.randn(p.shape))
        return self._sd("StableDiffusionControlNetPipeline", unet=network, controlnet=control)

    def _adapter(self) -> Any:
        adapter = seeded(
            lambda: diffusers.T2IAdapter(
                in_channels=3, channels=[16, 32, 32], num_res_blocks=1, downscale_factor=2, adapter_type="full_adapter"
            )
        )
        return self._sd("StableDiffusionAdapterPipeline", adapter=adapter)

    def _ip_adapter(self) -> Any:
        encoder = seeded(
            lambda: CLIPVisionModelWithProjection(
                CLIPVisionConfig(
                    hidden_size=16,
                    intermediate_size=32,
                    projection_dim=16,
                    num_hidden_layers=1,
                    num_attention_heads=2,
                    image_size=16,
                    patch_size=8,
                )
            )
        )
        processor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
        pipe = self._sd("StableDiffusionPipeline", image_encoder=encoder, feature_extractor=processor)
        generator = torch.Generator().manual_seed(2)

        def normal(*shape: int) -> Tensor:
            return 0.3 * torch.randn(shape, generator=generator)

        projection = {
            "proj.weight": normal(24 * 4, 16),
            "proj.bias": normal(24 * 4),
            "norm.weight": normal(24),
            "norm.bias": normal(24),
        }
        layers: dict[str, Tensor] = {}
        names = [name for name in pipe.unet.attn_processors if name.endswith("attn2.processor")]
        for number, name in enumerate(names):
            width = pipe.unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
            layers[f"{2 * number + 1}.to_k_ip.weight"] = normal(width, 24)
            layers[f"{2 * number + 1}.to_v_ip.weight"] = normal(width, 24)
        pipe.load_ip_adapter({"image_proj": projection, "ip_adapter": layers}, subfolder=None, weight_name=None)
        return pipe

    def _animatediff(self) -> Any:
        motion = seeded(
            lambda: diffusers.MotionAdapter(
                block_out_channels=(16, 32, 32),
                motion_layers_per_block=1,
                motion_norm_num_groups=8,
                motion_num_attention_heads=4,
            )
        )
        return diffusers.AnimateDiffPipeline(**self._parts(), unet=unet(), motion_adapter=motion)

    def _refiner(self) -> Any:
        parts = self._parts_xl() | {"text_encoder": None, "tokenizer": None}
        network = _unet_xl(cross_attention_dim=16, projection_class_embeddings_input_dim=5 * 8 + 32)
        return diffusers.StableDiffusionXLImg2ImgPipeline(**parts, unet=network, requires_aesthetics_score=True)

    def cases(self) -> dict[str, Case]:
        """Return all kinds of pipelines by name."""
        image = {"image": picture()}
        square = {"height": _SIZE, "width": _SIZE}
        inpaint = square | image | {"mask_image": mask_picture()}
        each = {"image": [picture()] * len(PROMPTS), "strength": 1.0}
        cases = {
            "text to image": Case(lambda: self._sd("StableDiffusionPipeline"), lambda: square, _halves),
            "image to image": Case(lambda: self._sd("StableDiffusionImg2ImgPipeline"), lambda: each, _halves),
            "inpainting, 4 channels": Case(
                lambda: self._sd("StableDiffusionInpaintPipeline"), lambda: inpaint, _halves
            ),
            "inpainting, 9 channels": Case(
                lambda: self._sd("StableDiffusionInpaintPipeline", unet=unet(in_channels=9)), lambda: inpaint, _halves
            ),
            "ControlNet": Case(self._controlnet, lambda: square | image, _halves),
            "ControlNet, guess mode": Case(self._controlnet, lambda: square | image | {"guess_mode": True}, _halves),
            "T2I-Adapter": Case(self._adapter, lambda: square | {"image": [picture()] * 2}, _halves),
            "IP-Adapter": Case(self._ip_adapter, lambda: square | {"ip_adapter_image": picture()}, _halves),
            "InstructPix2Pix": Case(
                lambda: self._sd("StableDiffusionInstructPix2PixPipeline", unet=unet(in_channels=8)),
                lambda: image,
                lambda rows: _layout(("conditional", "image", "unconditional"), rows),
            ),
            "PAG": Case(
                lambda: self._sd("StableDiffusionPAGPipeline", pag_applied_layers=["mid"]),
                lambda: square,
                lambda rows: _layout(("unconditional", "conditional", "perturbed"), rows),
            ),
            "PAG without guidance": Case(
                lambda: self._sd("StableDiffusionPAGPipeline", pag_applied_layers=["mid"]),
                lambda: square | {"guidance_scale": 1.0},
                lambda rows: _layout(("conditional", "perturbed"), rows),
            ),
            "no guidance": Case(
                lambda: self._sd("StableDiffusionPipeline"),
                lambda: square | {"guidance_scale": 1.0},
                lambda rows: _layout(("conditional",), rows),
            ),
            "LCM": Case(
                lambda: diffusers.LatentConsistencyModelPipeline(
                    **(self._parts() | {"scheduler": LCMScheduler()}), unet=unet(time_cond_proj_dim=8), **_NO_CHECKER
                ),
                lambda: square,
                lambda rows: _layout(("conditional",), rows),
            ),
            "SDXL": Case(
                lambda: diffusers.StableDiffusionXLPipeline(**self._parts_xl(), unet=_unet_xl()),
                lambda: square,
                _halves,
            ),
            "SDXL refiner": Case(self._refiner, lambda: image | {"strength": 1.0}, _halves),
            "AnimateDiff": Case(
                self._animatediff,
                lambda: square | {"num_frames": _FRAMES, "num_images_per_prompt": None},
                _halves,
                generators=2,
            ),
            "Text2Video-Zero": Case(
                lambda: diffusers.TextToVideoZeroPipeline(**(self._parts() | {"unet": unet()} | _NO_CHECKER)),
                lambda: square | {"video_length": _FRAMES, "num_inference_steps": 4, "t0": 1, "t1": 3,
                                  "num_images_per_prompt": None},
                lambda rows: _layout(("unconditional", "conditional"), rows, prompts=1),
                prompts=1,
                generators=1,
            ),
            "panorama": Case(
                lambda: self._sd("StableDiffusionPanoramaPipeline"),
                lambda: {"height": _SIZE, "width": 144, "num_images_per_prompt": None, "view_batch_size": 2},
                lambda rows: _layout(("unconditional", "conditional"), rows, prompts=1, alternating=True),
                prompts=1,
                generators=1,
            ),
        }  # fmt: skip
        return cases


def _layout(parts: Sequence[str], rows: int, prompts: int = len(PROMPTS), *, alternating: bool = False) -> list[Row]:
    """Rows of a batch: part after part, in each a a b b; `alternating` for u c u c, as panorama's views come."""
    repeats, odd = divmod(rows, len(parts) * prompts)
    assert not odd
    if alternating:
        return [(part, 0) for _ in range(repeats) for part in parts]
    return [(part, prompt) for part in parts for prompt in range(prompts) for _ in range(repeats)]


def _halves(rows: int) -> list[Row]:
    return _layout(("unconditional", "conditional"), rows)


def generate(case: Case, pipe: Any, seed: int = 0) -> Tensor:
    """Call a pipeline and return its latents.

    Args:
        case: the kind of pipeline.
        pipe: the pipeline.
        seed: seed of the first image.
    """
    pipe.set_progress_bar_config(disable=True)
    prompts = list(PROMPTS[: case.prompts])
    arguments: dict[str, Any] = {
        "prompt": prompts if case.prompts > 1 else prompts[0],
        "num_inference_steps": STEPS,
        "num_images_per_prompt": IMAGES_PER_PROMPT,
        "output_type": "latent",
    }
    arguments |= case.call()
    arguments = {name: value for name, value in arguments.items() if value is not None}
    generators = [torch.Generator().manual_seed(seed + i) for i in range(case.generators)]
    arguments["generator"] = generators if case.generators > 1 else generators[0]
    output = pipe(**copy.copy(arguments))
    return output.images if hasattr(output, "images") else output.frames


def picture() -> Image.Image:
    """Return a small image of noise."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (_SIZE, _SIZE, 3), dtype=np.uint8))


def mask_picture() -> Image.Image:
    """Return an inpainting mask of the upper half."""
    values = np.zeros((_SIZE, _SIZE), np.uint8)
    values[: _SIZE // 2] = 255
    return Image.fromarray(values)
