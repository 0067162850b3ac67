r"""Last stage of the shapes recipe: the world's reward, and a second one as its referee.

Both are small CLIPs. A batch holds groups of a scene and its near misses, so that every picture and every caption meets
the ones that are hardest to tell from it, in both directions:

.. math:: L = \frac12 \left( -\log \frac{e^{s_{ii}}}{\sum_{j \in T_i} e^{s_{ij}}}
              - \log \frac{e^{s_{ii}}}{\sum_{j \in P_i} e^{s_{ji}}} \right), \qquad s_{ij} = \kappa \cos(f(x_i), g(c_j))

where T_i leaves out captions that picture i shows as well, and P_i pictures that show caption i, and P_i also holds blends
of a scene with its near miss, which show neither. Pictures are those of `groups`.

Contrast alone teaches a small CLIP slowly, and places not at all. So, through heads that are thrown away, patches say which
shape and which colour they show, and (where `harder`) the joint features of pictures and captions say, shape by shape, on
which side of the other it lies. Being linear in the shapes, that holds for pairs that were never seen together. With
`harder`, P_i also holds malformed and off-hue pictures: what a generated picture gets wrong besides its content.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer

from ...shapes.scenes import Scene
from ...shapes.vocabulary import SHAPES
from .clip import new_clip
from .scene_groups import GROUP, PATCH_CLASSES, GroupedPictures, augmented, blends
from .stage import StageConfig, run_stage

_PLACES_WEIGHT = 10.0
_SIDES = {"left of": (-1.0, 0.0), "right of": (1.0, 0.0), "above": (0.0, -1.0), "below": (0.0, 1.0)}


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
    heads = nn.ModuleDict({"patches": nn.Linear(width, PATCH_CLASSES), "places": nn.Linear(width, 2 * len(SHAPES))})
    data = GroupedPictures(pipe, tokenizer, groups, config.seed, folder, progress=progress)
    sides, known = _places(data.scenes)
    count = config.batch_size // GROUP

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        batch = data.draw(count, generator)
        index, size = batch.index, len(batch.index)
        wrong = [blends(batch.pictures.unflatten(0, (-1, GROUP)), generator)]
        if harder:
            wrong.append(data.spoilt(batch, generator))
        values = augmented(torch.cat([batch.pictures, *wrong]), generator)
        seen = clip.vision_model(pixel_values=values)
        image = F.normalize(clip.visual_projection(seen.pooler_output), dim=-1)
        text = F.normalize(clip.get_text_features(input_ids=data.ids[index]).pooler_output, dim=-1)
        scores = clip.logit_scale.exp().clamp(max=100) * image @ text.T
        too = data.matches(index)
        labels = torch.arange(size)
        by_picture = scores[:size].masked_fill(too, -math.inf)
        by_caption = torch.cat([by_picture, scores[size:]]).T
        contrast = (F.cross_entropy(by_picture, labels) + F.cross_entropy(by_caption, labels)) / 2
        named = data.patch_loss(heads["patches"](seen.last_hidden_state[:size, 1:]), batch)
        right = {
            f"{kind}_accuracy": float((s.argmax(1) == labels).float().mean())
            for kind, s in (("caption", by_picture.detach()), ("picture", by_caption.detach()))
        }
        value, figures = contrast + named, right | {"patches": float(named.detach())}
        if harder:
            joint = torch.stack([image[:size], text], 1) * width**0.5
            said = heads["places"](joint).unflatten(-1, (len(SHAPES), 2))
            off = (said - sides[index])[known[index]].square().mean()
            value, figures = value + _PLACES_WEIGHT * off, figures | {"places": float(off.detach())}
        return value, figures

    run_stage(name, nn.ModuleDict({"clip": clip, "heads": heads}), loss, config, folder, progress=progress)
    return clip.eval()
