"""Third stage of the shapes recipe: a small CLIP, whose picture features measure distances between sets of pictures.

It is trained contrastively on pictures of both styles, half of them through the autoencoder as generated ones are,
with noise and blur; each picture also faces its own caption with one word swapped, since contrast within a batch alone
teaches it to ignore colours and places.
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
from .stage import StageConfig, run_stage
from .tokenizer import MAX_LENGTH

_SEED = 2
MEAN = (0.5, 0.5, 0.5)
STD = (0.5, 0.5, 0.5)

_GROUPS: tuple[tuple[str, ...], ...] = (
    COLOURS,
    SHAPES,
    tuple(plural(s) for s in SHAPES),
    ("left", "right"),
    ("above", "below"),
    ("two", "three", "four"),
)


def new_clip(tokenizer: CLIPTokenizer, width: int = 128) -> CLIPModel:
    """Return an untrained CLIP for 64-pixel pictures."""
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
    """Return the preprocessing of the small CLIP: 64 pixels, [-1, 1]."""
    size = {"height": 64, "width": 64}
    return CLIPImageProcessorPil(
        size={"shortest_edge": 64}, crop_size=size, image_mean=list(MEAN), image_std=list(STD), do_convert_rgb=True
    )


def swapped(caption: str, rng: random.Random) -> str:
    """Return a caption that the picture does not show: one word swapped for another of its kind, or two exchanged."""
    words = caption.split()
    places = [(i, group) for i, word in enumerate(words) for group in _GROUPS if word in group]
    for kind in (COLOURS, SHAPES):
        mine = [i for i, g in places if g is kind]
        # Exchanging two colours keeps every word and changes the binding.
        if len(mine) == 2 and words[mine[0]] != words[mine[1]] and rng.random() < 0.25 and " and " not in caption:
            words[mine[0]], words[mine[1]] = words[mine[1]], words[mine[0]]
            return " ".join(words)
    coloured = [i for i, g in places if g is COLOURS]
    if len(coloured) == 2 and words[coloured[0]] != words[coloured[1]] and rng.random() < 0.4:
        words[coloured[0]], words[coloured[1]] = words[coloured[1]], words[coloured[0]]
        return " ".join(words)
    index, group = rng.choice(places)
    words[index] = rng.choice([w for w in group if w != words[index]])
    return " ".join(words)


def _pool(vae: AutoencoderKL, count: int, progress: bool) -> tuple[Tensor, list[str]]:
    pictures, captions = [], []
    for start in tqdm(range(0, count, 250), desc="pictures", disable=not progress):
        scenes = [training_scene(i, _SEED) for i in range(start, min(count, start + 250))]
        drawn = draw(scenes, "art" if start // 250 % 4 == 3 else "plain")
        if start // 250 % 2:
            with torch.inference_mode():
                drawn = vae.decode(vae.encode(drawn * 2 - 1).latent_dist.mode()).sample / 2 + 0.5
        pictures.append((drawn.clamp(0, 1) * 255).round().byte())
        captions += [s.caption for s in scenes]
    return torch.cat(pictures), captions


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
    """Train the small CLIP on `pool` pictures with `negatives` swapped captions each."""
    torch.manual_seed(config.seed)
    clip = new_clip(tokenizer)

    @functools.cache
    def data() -> tuple[Tensor, Tensor, Tensor]:
        pictures, captions = _pool(vae, pool, progress)
        wrong = [[swapped(c, random.Random(f"{i}/{k}")) for i, c in enumerate(captions)] for k in range(negatives)]
        return pictures, tokenize(tokenizer, captions), torch.stack([tokenize(tokenizer, w) for w in wrong])

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        size = config.batch_size
        pictures, ids, wrong_ids = data()
        index = torch.randint(pool, (size,), generator=generator)
        batch = pictures[index].float() / 127.5 - 1
        strength = 0.25 * torch.rand(size, 1, 1, 1, generator=generator).square()
        batch = batch + strength * torch.randn(batch.shape, generator=generator)
        blurred = F.avg_pool2d(F.pad(batch, (1, 1, 1, 1), mode="replicate"), 3, 1)
        batch = torch.where(torch.rand(size, 1, 1, 1, generator=generator) < 0.25, blurred, batch)
        texts = torch.cat([ids[index], *wrong_ids[:, index]])
        image = F.normalize(clip.get_image_features(pixel_values=batch).pooler_output, dim=-1)
        text = F.normalize(clip.get_text_features(input_ids=texts).pooler_output, dim=-1)
        scale = clip.logit_scale.exp().clamp(max=100)
        scores = scale * image @ text.T
        # Captions that read the same are not each other's negatives.
        same = (ids[index][:, None] == ids[index][None]).all(-1) & ~torch.eye(size, dtype=torch.bool)
        scores = torch.cat([scores[:, :size].masked_fill(same, -math.inf), scores[:, size:]], 1)
        labels = torch.arange(size)
        own = scores[labels, labels]
        rival = torch.stack([scores[labels, labels + size * (k + 1)] for k in range(negatives)], 1)
        hard = F.cross_entropy(torch.cat([own[:, None], rival], 1), torch.zeros(size, dtype=torch.long))
        contrast = (F.cross_entropy(scores, labels) + F.cross_entropy(scores[:, :size].T, labels)) / 2
        return contrast + hard, {"hard": float((own[:, None] > rival).float().mean())}

    run_stage("clip", nn.ModuleDict({"clip": clip}), loss, config, folder, progress=progress)
    return clip.eval()
