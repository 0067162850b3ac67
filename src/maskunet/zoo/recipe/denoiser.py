"""Second stage of the shapes recipe: the U-Net and its text encoder, trained together on cached latents."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ...files import save_whole
from ...shapes.drawing import draw
from ...shapes.scenes import training_scene
from .stage import Figures, StageConfig, run_stage
from .tokenizer import MAX_LENGTH

EMPTY_CAPTIONS = 0.1  # share of captions that are dropped, for classifier-free guidance
SNR_GAMMA = 5.0
_LATENTS_SEED = 1


def new_text_encoder(tokenizer: CLIPTokenizer, width: int = 128) -> CLIPTextModel:
    """Return an untrained three-layer CLIP text encoder.

    Args:
        tokenizer: tokenizer of the captions.
        width: channels of its states.
    """
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            projection_dim=width,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_LENGTH,
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )
    )


def new_unet(latent_channels: int, width: int = 128) -> UNet2DConditionModel:
    """Return an untrained U-Net in Stable Diffusion's architecture, with three levels.

    Args:
        latent_channels: channels of the latents.
        width: channels of the text encoder's states.
    """
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=latent_channels,
        out_channels=latent_channels,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(64, 128, 192),
        layers_per_block=1,
        cross_attention_dim=width,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def new_scheduler(kind: type = DDPMScheduler, **changes: object) -> DDPMScheduler:
    """Return a scheduler with the noise schedule of Stable Diffusion 1.5.

    Args:
        kind: the scheduler's class.
        changes: other settings of the class.
    """
    return kind(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **changes)


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Return token ids (N, 24), padded and cut as in Stable Diffusion's pipelines.

    Args:
        tokenizer: the tokenizer.
        captions: N captions.
    """
    options = {"padding": "max_length", "truncation": True, "max_length": MAX_LENGTH, "return_tensors": "pt"}
    return tokenizer(captions, **options).input_ids


def encode_pool(
    vae: AutoencoderKL, tokenizer: CLIPTokenizer, count: int, folder: Path, *, progress: bool = True
) -> dict[str, Tensor]:
    """Draw and encode training scenes, once per folder and autoencoder.

    Args:
        vae: the autoencoder.
        tokenizer: tokenizer of the captions.
        count: number of scenes N.
        folder: folder of the cache, `latents.safetensors`.
        progress: show a progress bar.

    Returns:
        "mean" and "std" of the latents (N, C, 8, 8), float16, and token "ids" (N, 24), int16.

    Raises:
        DataError: the cache cannot be written.
    """
    path = folder / "latents.safetensors"
    weights = b"".join(p.detach().float().numpy().tobytes() for p in vae.parameters())
    mark = {"count": str(count), "vae": hashlib.sha256(weights).hexdigest()}
    if path.exists():
        with safe_open(path, "pt") as file:
            if file.metadata() == mark:
                return load_file(path)
    means, stds, ids = [], [], []
    with torch.inference_mode():
        for start in tqdm(range(0, count, 250), desc="latents", disable=not progress):
            scenes = [training_scene(i, _LATENTS_SEED) for i in range(start, min(count, start + 250))]
            posterior = vae.encode(draw(scenes) * 2 - 1).latent_dist
            means.append(posterior.mean.half())
            stds.append(posterior.std.half())
            ids.append(tokenize(tokenizer, [s.caption for s in scenes]).short())
    pool = {"mean": torch.cat(means), "std": torch.cat(stds), "ids": torch.cat(ids)}
    save_whole(path, lambda part: save_file(pool, part, metadata=mark))
    return pool


def train_denoiser(
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    config: StageConfig,
    folder: Path,
    *,
    pool: int,
    progress: bool = True,
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """Train the U-Net and the text encoder on the noise-prediction loss with min-SNR weights.

    Writes the latents' scale to `vae.config.scaling_factor`.

    Args:
        vae: the trained autoencoder.
        tokenizer: tokenizer of the captions.
        config: settings of the stage.
        folder: folder of the run; a run in it is continued.
        pool: number of scenes that are drawn.
        progress: show progress bars.
    """
    torch.manual_seed(config.seed)
    unet, text_encoder = new_unet(vae.config.latent_channels), new_text_encoder(tokenizer)
    data = encode_pool(vae, tokenizer, pool, folder, progress=progress)
    scale = 1 / float(data["mean"][:10_000].float().std())
    vae.register_to_config(scaling_factor=round(scale, 5))
    empty = tokenize(tokenizer, [""])
    alphas = new_scheduler().alphas_cumprod
    weights = (SNR_GAMMA / (alphas / (1 - alphas))).clamp(max=1.0)

    def loss(generator: torch.Generator) -> tuple[Tensor, Figures]:
        size = config.batch_size
        index = torch.randint(len(data["ids"]), (size,), generator=generator)
        mean, std = data["mean"][index].float(), data["std"][index].float()
        latents = (mean + std * torch.randn(mean.shape, generator=generator)) * vae.config.scaling_factor
        ids = data["ids"][index].long()
        is_dropped = torch.rand(size, generator=generator) < EMPTY_CAPTIONS
        ids = torch.where(is_dropped[:, None], empty, ids)
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = torch.randint(1000, (size,), generator=generator)
        alpha = alphas[timesteps][:, None, None, None]
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        noise_pred = unet(noisy, timesteps, text_encoder(ids).last_hidden_state).sample
        errors = (noise_pred - noise).square().mean((1, 2, 3))
        return (errors * weights[timesteps]).mean(), {"mse": float(errors.detach().mean())}

    modules = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    run_stage("denoiser", modules, loss, config, folder, progress=progress)
    return unet.eval(), text_encoder.eval()
