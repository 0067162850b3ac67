r"""Last stage of the shapes recipe: the world's reward, and a second one as its referee.

Both are small CLIPs. A batch holds groups of a scene and its near misses, so that every picture and every caption meets
the ones that are hardest to tell from it, in both directions:

.. math:: L = \frac12 \left( -\log \frac{e^{s_{ii}}}{\sum_{j \in T_i} e^{s_{ij}}}
              - \log \frac{e^{s_{ii}}}{\sum_{j \in P_i} e^{s_{ji}}} \right), \qquad s_{ij} = \kappa \cos(f(x_i), g(c_j))

where T_i leaves out captions that picture i shows as well, and P_i pictures that show caption i, and P_i also holds blends
of a scene with its near miss, which show neither. Half of the pictures are what a search judges: predicted clean latents at
any noise level, decoded. Combinations outside the training split occur neither in right captions nor in wrong ones.

Contrast alone teaches a small CLIP slowly, and places not at all. So, through heads that are thrown away, patches say which
shape and which colour they show, and (where `harder`) the joint features of pictures and captions say, shape by shape, on
which side of the other it lies. Being linear in the shapes, that holds for pairs that were never seen together. With
`harder`, P_i also holds malformed and off-hue pictures: what a generated picture gets wrong besides its content.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import CLIPModel, CLIPTokenizer

from ..shapes.drawing import draw, patch_labels
from ..shapes.near_misses import near_misses, shows
from ..shapes.scenes import Scene, training_scene
from ..shapes.vocabulary import SHAPES
from .clip import new_clip
from .denoiser import new_scheduler, tokenize
from .stage import StageConfig, run_stage

#: A scene and its near misses.
GROUP = 3
_GUIDANCE = 4.0
_CHUNK = 240
#: Most patches are ground.
_GROUND_WEIGHT = 0.25
_PLACES_WEIGHT = 10.0
_SIDES = {"left of": (-1.0, 0.0), "right of": (1.0, 0.0), "above": (0.0, -1.0), "below": (0.0, 1.0)}


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


def _versions(pipe: Any, scenes: Sequence[Scene], path: Path, seed: int, progress: bool) -> dict[str, Tensor]:
    """Pictures (N, 3, 64, 64) in bytes: as drawn, and as predicted from noise; kept in a file."""
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


def _augmented(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Add noise of any strength to pictures in [-1, 1] and blur a quarter of them."""
    size = len(pictures)
    strength = 0.25 * torch.rand(size, 1, 1, 1, generator=generator).square()
    pictures = pictures + strength * torch.randn(pictures.shape, generator=generator)
    blurred = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return torch.where(torch.rand(size, 1, 1, 1, generator=generator) < 0.25, blurred, pictures)


def _blends(groups: Tensor, generator: torch.Generator) -> Tensor:
    """Blend each scene with its first near miss: evenly, or here the one and there the other (G, 3, H, W)."""
    count = len(groups)
    field = F.interpolate(torch.randn(count, 1, 4, 4, generator=generator), size=groups.shape[-2:], mode="bicubic")
    even = torch.rand(count, 1, 1, 1, generator=generator) < 0.4
    share = torch.where(even, torch.tensor(0.5), (field * 6).sigmoid())
    return share * groups[:, 0] + (1 - share) * groups[:, 1]


def _malformed(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Bend pictures (B, 3, H, W) by a smooth field of some pixels."""
    count, side = len(pictures), pictures.shape[-1]
    field = F.interpolate(torch.randn(count, 2, 7, 7, generator=generator), size=(side, side), mode="bicubic")
    pixels = 1.5 + 2 * torch.rand(count, 1, 1, 1, generator=generator)
    grid = F.affine_grid(torch.eye(2, 3).expand(count, -1, -1), [count, 3, side, side], align_corners=False)
    moved = grid + (field * pixels * 2 / side).permute(0, 2, 3, 1)
    return F.grid_sample(pictures, moved, padding_mode="border", align_corners=False)


def _off_hue(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Turn the colours of pictures (B, 3, H, W) about grey by 15 to 30 degrees either way."""
    count = len(pictures)
    sign = torch.rand(count, generator=generator).round() * 2 - 1
    angle = sign * (15 + 15 * torch.rand(count, generator=generator)) * math.pi / 180
    # Rodrigues' rotation about (1, 1, 1) / sqrt 3.
    cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    turn = cos * torch.eye(3) + sin * cross + (1 - cos) / 3
    return torch.einsum("bij,bjhw->bihw", turn, pictures)


def _places(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
    """On which side of the other each shape lies, by picture and by caption: (N, 2, shapes, 2), and where that is known."""
    sides, known = torch.zeros(len(scenes), 2, len(SHAPES), 2), torch.zeros(len(scenes), 2, dtype=torch.bool)
    for n, scene in enumerate(scenes):
        if len(scene.include) != 2:
            continue
        other, one = (next(o for o in scene.objects if o.shape == need["class"]) for need in scene.include)
        towards = torch.tensor([one.x - other.x, one.y - other.y])
        vectors = [towards / towards.norm()]
        if "position" in scene.include[1]:
            vectors.append(torch.tensor(_SIDES[scene.include[1]["position"][0]]))
        for k, vector in enumerate(vectors):
            known[n, k] = True
            sides[n, k, SHAPES.index(one.shape)] = vector
            sides[n, k, SHAPES.index(other.shape)] = -vector
    return sides, known


def train_reward(
    pipe: Any,
    tokenizer: CLIPTokenizer,
    config: StageConfig,
    folder: Path,
    *,
    groups: int,
    name: str = "reward",
    width: int = 128,
    start: CLIPModel | None = None,
    harder: bool = False,
    progress: bool = True,
) -> CLIPModel:
    """Train a reward on groups of scenes.

    Args:
        pipe: the bundled pipeline, whose predictions it learns to read.
        tokenizer: of the captions.
        config: how to train; `batch_size` counts pictures and is rounded down to whole groups. Its seed also chooses the
            scenes, so that two rewards of different seeds share none.
        folder: where the run is kept; a run found there goes on.
        groups: how many groups are drawn.
        name: of the run.
        width: of both towers.
        start: what it starts from: all of it where `harder`, else its vision tower; from nothing if None.
        harder: learn places as well, and against malformed and off-hue pictures.
        progress: show progress bars.
    """
    torch.manual_seed(config.seed)
    clip = new_clip(tokenizer, width)
    if start is not None and harder:
        clip.load_state_dict(start.state_dict())
    elif start is not None:
        clip.vision_model.load_state_dict(start.vision_model.state_dict())
    heads = nn.ModuleDict(
        {"patches": nn.Linear(width, 2 * (len(SHAPES) + 1)), "places": nn.Linear(width, 2 * len(SHAPES))}
    )
    scenes = grouped_scenes(groups, config.seed)
    matches, ids = Matches(scenes), tokenize(tokenizer, [s.caption for s in scenes])
    pictures = _versions(pipe, scenes, folder / f"pictures-{config.seed}.safetensors", config.seed, progress)
    shown, (sides, known) = patch_labels(scenes), _places(scenes)
    coloured = torch.tensor(["color" in scene.include[0] for scene in scenes])
    ground = torch.ones(len(SHAPES) + 1)
    ground[-1] = _GROUND_WEIGHT
    count = config.batch_size // GROUP

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        group = torch.randperm(groups, generator=generator)[:count]
        index = (group[:, None] * GROUP + torch.arange(GROUP)).view(-1)
        predicted = (torch.rand(len(group), generator=generator) < 0.5).repeat_interleave(GROUP)
        batch = torch.where(predicted.view(-1, 1, 1, 1), pictures["predicted"][index], pictures["drawn"][index])
        batch = batch.float() / 127.5 - 1
        blends = _blends(batch.unflatten(0, (len(group), GROUP)), generator)
        spoilt = [blends]
        if harder:
            whole = pictures["drawn"][index[::GROUP]].float() / 127.5 - 1
            off = coloured[index[::GROUP]] & (torch.rand(len(group), generator=generator) < 0.5)
            bent, turned = _malformed(whole, generator), _off_hue(whole, generator)
            spoilt.append(torch.where(off.view(-1, 1, 1, 1), turned, bent))
        values = _augmented(torch.cat([batch, *spoilt]), generator)
        seen = clip.vision_model(pixel_values=values)
        image = F.normalize(clip.visual_projection(seen.pooler_output), dim=-1)
        text = F.normalize(clip.get_text_features(input_ids=ids[index]).pooler_output, dim=-1)
        scores = clip.logit_scale.exp().clamp(max=100) * image @ text.T
        size = len(index)
        too = matches(index)
        labels = torch.arange(size)
        by_picture = scores[:size].masked_fill(too, -math.inf)
        by_caption = torch.cat([by_picture, scores[size:]]).T
        contrast = (F.cross_entropy(by_picture, labels) + F.cross_entropy(by_caption, labels)) / 2
        patches = heads["patches"](seen.last_hidden_state[:size, 1:]).unflatten(-1, (2, -1))  # (B, P, 2, classes)
        named = F.cross_entropy(patches.permute(0, 3, 2, 1), shown[index], ground)
        right = {
            f"{kind}_accuracy": float((s.argmax(1) == labels).float().mean())
            for kind, s in (("caption", by_picture.detach()), ("picture", by_caption.detach()))
        }
        value, figures = contrast + named, right | {"patches": float(named.detach())}
        if harder:
            joint = torch.stack([image[:size], text], 1) * width**0.5
            said = heads["places"](joint).unflatten(-1, (len(SHAPES), 2))
            wrong = (said - sides[index])[known[index]].square().mean()
            value, figures = value + _PLACES_WEIGHT * wrong, figures | {"places": float(wrong.detach())}
        return value, figures

    run_stage(name, nn.ModuleDict({"clip": clip, "heads": heads}), loss, config, folder, progress=progress)
    return clip.eval()
