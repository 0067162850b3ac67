"""What rewards of the shapes world learn from: groups of a scene and its near misses, and pictures that show neither.

Half of them are what a search judges: predicted clean latents at any noise level, decoded. Combinations outside the
training split occur neither in right captions nor in wrong ones.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm
from transformers import CLIPTokenizer

from ...shapes.drawing import draw, patch_labels
from ...shapes.near_misses import near_misses, shows
from ...shapes.scenes import Scene, training_scene
from ...shapes.vocabulary import SHAPES
from .denoiser import new_scheduler, tokenize

#: A scene and its near misses.
GROUP = 3
#: Logits of a patch: one of the shapes or ground, and the same for colours.
PATCH_CLASSES = 2 * (len(SHAPES) + 1)
_GROUND_WEIGHT = 0.25
_GUIDANCE = 4.0
_CHUNK = 240


def grouped_scenes(groups: int, seed: int) -> list[Scene]:
    """Return training scenes, each followed by its near misses: groups x GROUP scenes."""
    scenes: list[Scene] = []
    for index in range(groups):
        scene = training_scene(index, seed)
        scenes += [scene, *near_misses(scene, random.Random(f"near misses/{seed}/{index}"), GROUP - 1)]
    return scenes


class Matches:
    """Which captions a picture shows besides its own.

    Args:
        scenes: all scenes, in the order that indices refer to.
    """

    def __init__(self, scenes: Sequence[Scene]) -> None:
        self._scenes = scenes
        numbers: dict[tuple[str, ...], int] = {}
        keys = [tuple(sorted(o.shape for o in scene.objects)) for scene in scenes]
        self._keys = torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys])

    def __call__(self, index: Tensor) -> Tensor:
        """Return (B, B), True where picture `index[i]` shows the caption of `index[j]`, i != j."""
        keys = self._keys[index]
        found = torch.zeros(len(index), len(index), dtype=torch.bool)
        for i, j in (keys[:, None] == keys[None]).nonzero().tolist():
            if i != j:
                found[i, j] = shows(self._scenes[int(index[i])], self._scenes[int(index[j])].include)
        return found


def versions(pipe: Any, scenes: Sequence[Scene], path: Path, seed: int, progress: bool) -> dict[str, Tensor]:
    """Return pictures (N, 3, 64, 64) in bytes, as `drawn` and as `predicted` from noise; kept in a file."""
    weights = b"".join(p.detach().float().numpy().tobytes() for p in pipe.unet.parameters())
    mark = {"count": str(len(scenes)), "seed": str(seed), "unet": hashlib.sha256(weights).hexdigest()}
    if path.exists():
        with safe_open(path, "pt") as file:
            if file.metadata() == mark:
                return load_file(path)
    drawn, predicted = [], []
    generator = torch.Generator().manual_seed(seed)
    for start in tqdm(range(0, len(scenes), _CHUNK), desc="pictures", disable=not progress):
        some = scenes[start : start + _CHUNK]
        pictures = draw(some, "art" if start // _CHUNK % 8 == 7 else "plain")
        drawn.append(_bytes(pictures))
        predicted.append(_bytes(_predicted(pipe, pictures, [s.caption for s in some], generator)))
    found = {"drawn": torch.cat(drawn), "predicted": torch.cat(predicted)}
    part = path.with_suffix(".part")
    save_file(found, part, metadata=mark)
    part.rename(path)
    return found


@dataclass(frozen=True)
class Batch:
    """Pictures of G groups: which scenes (G * GROUP,), whether predicted (same), and the pictures in [-1, 1]."""

    index: Tensor
    predicted: Tensor
    pictures: Tensor


class GroupedPictures:
    """Groups of scenes with their captions' tokens and pictures, to draw batches from.

    Args:
        pipe: the bundled pipeline, whose predictions are drawn too.
        tokenizer: of the captions.
        groups: how many.
        seed: chooses the scenes.
        folder: where the pictures are kept.
        progress: show a progress bar while they are made.
    """

    def __init__(
        self, pipe: Any, tokenizer: CLIPTokenizer, groups: int, seed: int, folder: Path, *, progress: bool
    ) -> None:
        self.groups = groups
        self.scenes = grouped_scenes(groups, seed)
        self.ids = tokenize(tokenizer, [s.caption for s in self.scenes])
        self.matches = Matches(self.scenes)
        self._versions = versions(pipe, self.scenes, folder / f"pictures-{seed}.safetensors", seed, progress)
        self._coloured = torch.tensor(["color" in scene.include[0] for scene in self.scenes])
        # What patches show, learnt beside; most are ground.
        self._shown, self._weights = patch_labels(self.scenes), torch.ones(len(SHAPES) + 1)
        self._weights[-1] = _GROUND_WEIGHT

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """Return `count` groups, half of them as drawn and half as predicted."""
        group = torch.randperm(self.groups, generator=generator)[:count]
        index = (group[:, None] * GROUP + torch.arange(GROUP)).view(-1)
        predicted = (torch.rand(len(group), generator=generator) < 0.5).repeat_interleave(GROUP)
        kinds = self._versions
        pictures = torch.where(predicted.view(-1, 1, 1, 1), kinds["predicted"][index], kinds["drawn"][index])
        return Batch(index, predicted, pictures.float() / 127.5 - 1)

    def spoilt(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return the first scene of each group, drawn and malformed or, where its caption names a colour, off-hue."""
        first = batch.index[::GROUP]
        whole = self._versions["drawn"][first].float() / 127.5 - 1
        off = self._coloured[first] & (torch.rand(len(first), generator=generator) < 0.5)
        bent, turned = malformed(whole, generator), off_hue(whole, generator)
        return torch.where(off.view(-1, 1, 1, 1), turned, bent)

    def patch_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the cross-entropy of what patches show; logits (B, P, PATCH_CLASSES)."""
        kinds = logits.unflatten(-1, (2, -1)).permute(0, 3, 2, 1)  # (B, classes, 2, P)
        return F.cross_entropy(kinds, self._shown[batch.index], self._weights)


def _bytes(pictures: Tensor) -> Tensor:
    return (pictures.clamp(0, 1) * 255).round().byte()


@torch.inference_mode()
def _predicted(pipe: Any, pictures: Tensor, captions: list[str], generator: torch.Generator) -> Tensor:
    """Add noise and predict the picture: a group shares its timestep, half of the groups are guided by their captions."""
    groups = len(pictures) // GROUP
    vae, scale = pipe.vae, pipe.vae.config.scaling_factor
    latents = vae.encode(pictures * 2 - 1).latent_dist.mode() * scale
    timesteps = torch.randint(1000, (groups,), generator=generator).repeat_interleave(GROUP)
    guided = (torch.rand(groups, generator=generator) < 0.5).repeat_interleave(GROUP)
    alpha = new_scheduler().alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    noise = torch.randn(latents.shape, generator=generator)
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    empty = pipe.text_encoder(tokenize(pipe.tokenizer, [""])).last_hidden_state
    output = pipe.unet(noisy, timesteps, empty.expand(len(noisy), -1, -1)).sample
    embeds = pipe.text_encoder(tokenize(pipe.tokenizer, [c for c, g in zip(captions, guided, strict=True) if g]))
    towards = pipe.unet(noisy[guided], timesteps[guided], embeds.last_hidden_state).sample
    output[guided] += _GUIDANCE * (towards - output[guided])
    clean = (noisy - (1 - alpha).sqrt() * output) / alpha.sqrt()
    return vae.decode(clean / scale).sample / 2 + 0.5


def augmented(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Add noise of any strength to pictures in [-1, 1] and blur a quarter of them."""
    size = len(pictures)
    strength = 0.25 * torch.rand(size, 1, 1, 1, generator=generator).square()
    pictures = pictures + strength * torch.randn(pictures.shape, generator=generator)
    blurred = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return torch.where(torch.rand(size, 1, 1, 1, generator=generator) < 0.25, blurred, pictures)


def blends(groups: Tensor, generator: torch.Generator) -> Tensor:
    """Blend each scene with its first near miss: evenly, or here the one and there the other (G, 3, H, W)."""
    count = len(groups)
    field = F.interpolate(torch.randn(count, 1, 4, 4, generator=generator), size=groups.shape[-2:], mode="bicubic")
    even = torch.rand(count, 1, 1, 1, generator=generator) < 0.4
    share = torch.where(even, torch.tensor(0.5), (field * 6).sigmoid())
    return share * groups[:, 0] + (1 - share) * groups[:, 1]


def malformed(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Bend pictures (B, 3, H, W) by a smooth field of some pixels."""
    count, side = len(pictures), pictures.shape[-1]
    field = F.interpolate(torch.randn(count, 2, 7, 7, generator=generator), size=(side, side), mode="bicubic")
    pixels = 1.5 + 2 * torch.rand(count, 1, 1, 1, generator=generator)
    grid = F.affine_grid(torch.eye(2, 3).expand(count, -1, -1), [count, 3, side, side], align_corners=False)
    moved = grid + (field * pixels * 2 / side).permute(0, 2, 3, 1)
    return F.grid_sample(pictures, moved, padding_mode="border", align_corners=False)


def off_hue(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Turn the colours of pictures (B, 3, H, W) about grey by 15 to 30 degrees either way."""
    count = len(pictures)
    sign = torch.rand(count, generator=generator).round() * 2 - 1
    angle = sign * (15 + 15 * torch.rand(count, generator=generator)) * math.pi / 180
    # Rodrigues' rotation about (1, 1, 1) / sqrt 3.
    cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    turn = cos * torch.eye(3) + sin * cross + (1 - cos) / 3
    return torch.einsum("bij,bjhw->bihw", turn, pictures)
