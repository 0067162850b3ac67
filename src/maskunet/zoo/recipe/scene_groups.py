"""Training data of the rewards: groups of a scene and its near misses, and images that show none of their captions.

Half of the images are like those that a search scores: predicted clean latents at any noise level, decoded. Combinations
outside the training split occur neither in right captions nor in wrong ones.
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

from ...files import save_whole
from ...shapes.drawing import draw, patch_labels
from ...shapes.near_misses import near_misses, shows
from ...shapes.scenes import Scene, training_scene
from ...shapes.vocabulary import SHAPES
from .denoiser import new_scheduler, tokenize

#: Scenes per group: a scene and its near misses.
GROUP = 3
#: Logits per patch: one of the shapes or ground, and one of the colours or ground.
PATCH_CLASSES = 2 * (len(SHAPES) + 1)
_GROUND_WEIGHT = 0.25
# Part of the recipe: the bundled rewards were trained at this scale, whatever the pipeline's default becomes.
_GUIDANCE_SCALE = 4.0
_CHUNK = 240


def draw_scene_groups(groups: int, seed: int) -> list[Scene]:
    """Return training scenes, each followed by its near misses: groups * GROUP scenes.

    Args:
        groups: number of groups.
        seed: seed of the scenes and of their near misses.
    """
    scenes: list[Scene] = []
    for index in range(groups):
        scene = training_scene(index, seed)
        scenes += [scene, *near_misses(scene, random.Random(f"near misses/{seed}/{index}"), GROUP - 1)]
    return scenes


class SharedCaptions:
    """Finds the images that show another scene's caption.

    Args:
        scenes: all scenes, in the order of the indices.
    """

    def __init__(self, scenes: Sequence[Scene]) -> None:
        self._scenes = scenes
        numbers: dict[tuple[str, ...], int] = {}
        keys = [tuple(sorted(o.shape for o in scene.objects)) for scene in scenes]
        # Only scenes of the same shapes can share a caption.
        self._keys = torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys])

    def __call__(self, index: Tensor) -> Tensor:
        """Return (B, B), True where image `index[i]` shows the caption of `index[j]`, i != j.

        Args:
            index: indices of B scenes.
        """
        keys = self._keys[index]
        is_shown = torch.zeros(len(index), len(index), dtype=torch.bool)
        for i, j in (keys[:, None] == keys[None]).nonzero().tolist():
            if i != j:
                is_shown[i, j] = shows(self._scenes[int(index[i])], self._scenes[int(index[j])].include)
        return is_shown


@dataclass(frozen=True)
class Batch:
    """Images of G groups.

    Args:
        index: indices of their scenes (G * GROUP,).
        is_predicted: whether each image is a prediction of the pipeline, or drawn (G * GROUP,).
        images: (G * GROUP, 3, 64, 64) in [-1, 1].
    """

    index: Tensor
    is_predicted: Tensor
    images: Tensor


class SceneGroups:
    """Groups of scenes with their captions' token ids and images, to sample batches from.

    Args:
        pipe: the bundled pipeline, in single precision; half of the images are its predictions.
        tokenizer: tokenizer of the captions.
        groups: number of groups.
        seed: seed of the scenes and of the predictions.
        folder: folder of the images' cache.
        progress: show a progress bar while the images are drawn and predicted.
    """

    def __init__(
        self, pipe: Any, tokenizer: CLIPTokenizer, groups: int, seed: int, folder: Path, *, progress: bool
    ) -> None:
        self.groups = groups
        self.scenes = draw_scene_groups(groups, seed)
        self.ids = tokenize(tokenizer, [s.caption for s in self.scenes])
        self.shared_captions = SharedCaptions(self.scenes)
        self._images = render_scenes(pipe, self.scenes, folder / f"pictures-{seed}.safetensors", seed, progress)
        self._names_colour = torch.tensor(["color" in scene.include[0] for scene in self.scenes])
        self._patch_labels, self._class_weights = patch_labels(self.scenes), torch.ones(len(SHAPES) + 1)
        # Most patches show only ground.
        self._class_weights[-1] = _GROUND_WEIGHT

    def sample(self, count: int, generator: torch.Generator) -> Batch:
        """Return the images of random groups, about half of the groups drawn and half predicted.

        Args:
            count: number of groups G.
            generator: draws the groups.
        """
        group = torch.randperm(self.groups, generator=generator)[:count]
        index = (group[:, None] * GROUP + torch.arange(GROUP)).view(-1)
        is_predicted = (torch.rand(len(group), generator=generator) < 0.5).repeat_interleave(GROUP)
        images = torch.where(
            is_predicted.view(-1, 1, 1, 1), self._images["predicted"][index], self._images["drawn"][index]
        )
        return Batch(index, is_predicted, images.float() / 127.5 - 1)

    def corrupt(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return the drawn first image of each group, distorted or, if its caption names a colour, perhaps off-hue.

        Args:
            batch: images of G groups.
            generator: draws the corruptions.

        Returns:
            Images (G, 3, 64, 64) in about [-1, 1]; they do not show their captions.
        """
        first = batch.index[::GROUP]
        images = self._images["drawn"][first].float() / 127.5 - 1
        is_off_hue = self._names_colour[first] & (torch.rand(len(first), generator=generator) < 0.5)
        distorted, off_hue = distort(images, generator), shift_hue(images, generator)
        return torch.where(is_off_hue.view(-1, 1, 1, 1), off_hue, distorted)

    def patch_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the cross-entropy of the patches' shapes and colours.

        Args:
            logits: (B, P, PATCH_CLASSES) of the batch's B images.
            batch: the batch.
        """
        by_kind = logits.unflatten(-1, (2, -1)).permute(0, 3, 2, 1)  # (B, classes, 2, P)
        return F.cross_entropy(by_kind, self._patch_labels[batch.index], self._class_weights)


def render_scenes(pipe: Any, scenes: Sequence[Scene], path: Path, seed: int, progress: bool) -> dict[str, Tensor]:
    """Draw scenes and let a pipeline predict them from noise, once per file, seed and U-Net.

    Args:
        pipe: the pipeline, in single precision.
        scenes: N scenes.
        path: file of the cache.
        seed: seed of the predictions.
        progress: show a progress bar.

    Returns:
        Images (N, 3, 64, 64), uint8: "drawn" and "predicted".

    Raises:
        DataError: the cache cannot be written.
    """
    weights = b"".join(p.detach().float().numpy().tobytes() for p in pipe.unet.parameters())
    mark = {"count": str(len(scenes)), "seed": str(seed), "unet": hashlib.sha256(weights).hexdigest()}
    if path.exists():
        with safe_open(path, "pt") as file:
            if file.metadata() == mark:
                return load_file(path)
    drawn, predicted = [], []
    generator = torch.Generator().manual_seed(seed)
    for start in tqdm(range(0, len(scenes), _CHUNK), desc="images", disable=not progress):
        chunk = scenes[start : start + _CHUNK]
        images = draw(chunk, "art" if start // _CHUNK % 8 == 7 else "plain")
        drawn.append(_to_bytes(images))
        predicted.append(_to_bytes(_predict(pipe, images, [s.caption for s in chunk], generator)))
    rendered = {"drawn": torch.cat(drawn), "predicted": torch.cat(predicted)}
    save_whole(path, lambda part: save_file(rendered, part, metadata=mark))
    return rendered


def _to_bytes(images: Tensor) -> Tensor:
    return (images.clamp(0, 1) * 255).round().byte()


@torch.inference_mode()
def _predict(pipe: Any, images: Tensor, captions: list[str], generator: torch.Generator) -> Tensor:
    """Return predictions of noised images; a group shares its timestep, and half of the groups are guided."""
    groups = len(images) // GROUP
    vae, scale = pipe.vae, pipe.vae.config.scaling_factor
    latents = vae.encode(images * 2 - 1).latent_dist.mode() * scale
    timesteps = torch.randint(1000, (groups,), generator=generator).repeat_interleave(GROUP)
    is_guided = (torch.rand(groups, generator=generator) < 0.5).repeat_interleave(GROUP)
    alpha = new_scheduler().alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    noise = torch.randn(latents.shape, generator=generator)
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    empty = pipe.text_encoder(tokenize(pipe.tokenizer, [""])).last_hidden_state
    noise_pred = pipe.unet(noisy, timesteps, empty.expand(len(noisy), -1, -1)).sample
    guided_captions = [caption for caption, guided in zip(captions, is_guided, strict=True) if guided]
    prompt_embeds = pipe.text_encoder(tokenize(pipe.tokenizer, guided_captions)).last_hidden_state
    conditional = pipe.unet(noisy[is_guided], timesteps[is_guided], prompt_embeds).sample
    noise_pred[is_guided] += _GUIDANCE_SCALE * (conditional - noise_pred[is_guided])
    pred_x0 = (noisy - (1 - alpha).sqrt() * noise_pred) / alpha.sqrt()
    return vae.decode(pred_x0 / scale).sample / 2 + 0.5


def blend_with_near_miss(groups: Tensor, generator: torch.Generator) -> Tensor:
    """Blend each scene with its first near miss: evenly, or by a smooth random field.

    Args:
        groups: images (G, GROUP, 3, H, W).
        generator: draws the blends.

    Returns:
        Images (G, 3, H, W), which show neither caption.
    """
    count = len(groups)
    field = F.interpolate(torch.randn(count, 1, 4, 4, generator=generator), size=groups.shape[-2:], mode="bicubic")
    is_even = torch.rand(count, 1, 1, 1, generator=generator) < 0.4
    share = torch.where(is_even, torch.tensor(0.5), (field * 6).sigmoid())
    return share * groups[:, 0] + (1 - share) * groups[:, 1]


def distort(images: Tensor, generator: torch.Generator) -> Tensor:
    """Distort images by a smooth random field of some pixels.

    Args:
        images: (B, 3, H, H).
        generator: draws the field.
    """
    count, side = len(images), images.shape[-1]
    field = F.interpolate(torch.randn(count, 2, 7, 7, generator=generator), size=(side, side), mode="bicubic")
    pixels = 1.5 + 2 * torch.rand(count, 1, 1, 1, generator=generator)
    grid = F.affine_grid(torch.eye(2, 3).expand(count, -1, -1), [count, 3, side, side], align_corners=False)
    bent = grid + (field * pixels * 2 / side).permute(0, 2, 3, 1)
    return F.grid_sample(images, bent, padding_mode="border", align_corners=False)


def shift_hue(images: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate the colours of images about the grey axis, by 15 to 30 degrees in either direction.

    Args:
        images: (B, 3, H, W).
        generator: draws the angles.
    """
    count = len(images)
    sign = torch.rand(count, generator=generator).round() * 2 - 1
    angle = sign * (15 + 15 * torch.rand(count, generator=generator)) * math.pi / 180
    # Rodrigues' rotation about (1, 1, 1) / sqrt 3.
    cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    rotation = cos * torch.eye(3) + sin * cross + (1 - cos) / 3
    return torch.einsum("bij,bjhw->bihw", rotation, images)
