"""Third stage of the shapes recipe: a small CLIP, whose image features measure distances between sets of images.

It is trained contrastively on images of both styles with noise and blur. Half of them pass through the autoencoder, like
generated ones. Each image is also paired with wrong versions of its own caption, since contrast within a batch alone
teaches a CLIP to ignore colours and positions.
"""

from __future__ import annotations

import functools
import math
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from ...shapes.drawing import draw
from ...shapes.scenes import training_scene
from ...shapes.vocabulary import COLOURS, SHAPES, plural
from .denoiser import tokenize
from .stage import Figures, StageConfig, run_stage
from .tokenizer import MAX_LENGTH

_SEED = 2
_MEAN = (0.5, 0.5, 0.5)
_STD = (0.5, 0.5, 0.5)

# Words that are exchanged for each other.
_WORD_GROUPS: tuple[tuple[str, ...], ...] = (
    COLOURS,
    SHAPES,
    tuple(plural(s) for s in SHAPES),
    ("left", "right"),
    ("above", "below"),
    ("two", "three", "four"),
)


def new_clip(tokenizer: CLIPTokenizer, width: int = 128) -> CLIPModel:
    """Return an untrained CLIP for images of 64 by 64 pixels.

    Args:
        tokenizer: tokenizer of the captions.
        width: channels of both towers.
    """
    shared = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": 4, "hidden_act": "gelu"}
    text = {
        **shared,
        "vocab_size": len(tokenizer),
        "num_hidden_layers": 3,
        "max_position_embeddings": MAX_LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.eos_token_id,
        "projection_dim": width,
    }
    vision = {**shared, "num_hidden_layers": 4, "image_size": 64, "patch_size": 8, "projection_dim": width}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=width))


def new_image_processor() -> CLIPImageProcessorPil:
    """Return the preprocessing of the small CLIP: 64 by 64 pixels in [-1, 1]."""
    size = {"height": 64, "width": 64}
    return CLIPImageProcessorPil(
        size={"shortest_edge": 64}, crop_size=size, image_mean=list(_MEAN), image_std=list(_STD), do_convert_rgb=True
    )


def wrong_caption(caption: str, rng: random.Random) -> str:
    """Return a caption that the image does not show: one word replaced by another of its kind, or two words swapped.

    Args:
        caption: the image's caption.
        rng: draws the change.
    """
    words = caption.split()
    candidates = [(i, group) for i, word in enumerate(words) for group in _WORD_GROUPS if word in group]
    for kind in (COLOURS, SHAPES):
        pair = [i for i, g in candidates if g is kind]
        # "a red circle and a blue star" means the same with both halves swapped.
        if len(pair) == 2 and words[pair[0]] != words[pair[1]] and rng.random() < 0.25 and " and " not in caption:
            return _swap(words, *pair)
    pair = [i for i, g in candidates if g is COLOURS]
    if len(pair) == 2 and words[pair[0]] != words[pair[1]] and rng.random() < 0.4:
        return _swap(words, *pair)
    index, group = rng.choice(candidates)
    words[index] = rng.choice([w for w in group if w != words[index]])
    return " ".join(words)


def _swap(words: list[str], i: int, j: int) -> str:
    words[i], words[j] = words[j], words[i]
    return " ".join(words)


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Add noise of random strength to images, and blur a quarter of them.

    Args:
        images: (B, 3, H, W) in [-1, 1].
        generator: draws noise and blur.
    """
    size = len(images)
    strength = 0.25 * torch.rand(size, 1, 1, 1, generator=generator).square()
    images = images + strength * torch.randn(images.shape, generator=generator)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return torch.where(torch.rand(size, 1, 1, 1, generator=generator) < 0.25, blurred, images)


def _draw_pool(vae: AutoencoderKL, count: int, progress: bool) -> tuple[Tensor, list[str]]:
    """Return training images (count, 3, 64, 64), uint8, and their captions."""
    images, captions = [], []
    for start in tqdm(range(0, count, 250), desc="images", disable=not progress):
        scenes = [training_scene(i, _SEED) for i in range(start, min(count, start + 250))]
        drawn = draw(scenes, "art" if start // 250 % 4 == 3 else "plain")
        if start // 250 % 2:
            with torch.inference_mode():
                drawn = vae.decode(vae.encode(drawn * 2 - 1).latent_dist.mode()).sample / 2 + 0.5
        images.append((drawn.clamp(0, 1) * 255).round().byte())
        captions += [s.caption for s in scenes]
    return torch.cat(images), captions


def train_clip(
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    config: StageConfig,
    folder: Path,
    *,
    pool: int,
    negatives: int = 2,
    progress: bool = True,
) -> CLIPModel:
    """Train the small CLIP.

    Args:
        vae: the trained autoencoder.
        tokenizer: tokenizer of the captions.
        config: settings of the stage.
        folder: folder of the run; a run in it is continued.
        pool: number of images that are drawn.
        negatives: wrong captions per image.
        progress: show progress bars.
    """
    torch.manual_seed(config.seed)
    clip = new_clip(tokenizer)

    @functools.cache
    def data() -> tuple[Tensor, Tensor, Tensor]:
        images, captions = _draw_pool(vae, pool, progress)
        wrong = [
            [wrong_caption(c, random.Random(f"{i}/{k}")) for i, c in enumerate(captions)] for k in range(negatives)
        ]
        return images, tokenize(tokenizer, captions), torch.stack([tokenize(tokenizer, w) for w in wrong])

    def loss(generator: torch.Generator) -> tuple[Tensor, Figures]:
        size = config.batch_size
        images, ids, wrong_ids = data()
        index = torch.randint(pool, (size,), generator=generator)
        batch = augment(images[index].float() / 127.5 - 1, generator)
        texts = torch.cat([ids[index], *wrong_ids[:, index]])
        image = F.normalize(clip.get_image_features(pixel_values=batch).pooler_output, dim=-1)
        text = F.normalize(clip.get_text_features(input_ids=texts).pooler_output, dim=-1)
        scale = clip.logit_scale.exp().clamp(max=100)
        scores = scale * image @ text.T
        # Equal captions are not each other's negatives.
        is_same = (ids[index][:, None] == ids[index][None]).all(-1) & ~torch.eye(size, dtype=torch.bool)
        scores = torch.cat([scores[:, :size].masked_fill(is_same, -math.inf), scores[:, size:]], 1)
        labels = torch.arange(size)
        right = scores[labels, labels]
        wrong = torch.stack([scores[labels, labels + size * (k + 1)] for k in range(negatives)], 1)
        hard = F.cross_entropy(torch.cat([right[:, None], wrong], 1), torch.zeros(size, dtype=torch.long))
        contrast = (F.cross_entropy(scores, labels) + F.cross_entropy(scores[:, :size].T, labels)) / 2
        return contrast + hard, {"hard": float((right[:, None] > wrong).float().mean())}

    run_stage("clip", nn.ModuleDict({"clip": clip}), loss, config, folder, progress=progress)
    return clip.eval()
