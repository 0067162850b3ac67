r"""Fourth stage of the shapes recipe: the reward of the shapes world, and a second one as its referee.

Both are small CLIPs. A batch has groups of a scene and its near misses, so every image and every caption is contrasted with
those that are hardest to distinguish from it, in both directions:

.. math:: L = \frac12 \left( -\log \frac{e^{s_{ii}}}{\sum_{j \in T_i} e^{s_{ij}}}
              - \log \frac{e^{s_{ii}}}{\sum_{j \in P_i} e^{s_{ji}}} \right), \qquad s_{ij} = \kappa \cos(f(x_i), g(c_j))

T_i leaves out the other captions that image i shows, and P_i the other images that show caption i. P_i also has blends of a
scene with its near miss, which show neither. The images are those of `scene_groups`.

Contrast alone teaches a small CLIP slowly, and no positions. So heads that are discarded after training predict the shape
and the colour in each patch and, in the harder round, on which side of the other each shape lies, from the joint features of
image and caption. That head is linear in the shapes, so it holds for pairs that never occur in training. In the harder round
P_i also has distorted and off-hue images, for the flaws of generated images that are not in their content.
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
from .clip import augment, new_clip
from .scene_groups import GROUP, PATCH_CLASSES, SceneGroups, blend_with_near_miss
from .stage import Figures, StageConfig, run_stage

_SIDES_WEIGHT = 10.0
_DIRECTIONS = {"left of": (-1.0, 0.0), "right of": (1.0, 0.0), "above": (0.0, -1.0), "below": (0.0, 1.0)}


def _relative_sides(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
    """Return on which side of the other each shape lies, by image and by caption.

    Unit vectors (N, 2, shapes, 2), and (N, 2), True where the side is known.
    """
    sides, is_known = torch.zeros(len(scenes), 2, len(SHAPES), 2), torch.zeros(len(scenes), 2, dtype=torch.bool)
    for n, scene in enumerate(scenes):
        if len(scene.include) != 2:
            continue
        reference, subject = (next(o for o in scene.objects if o.shape == r["class"]) for r in scene.include)
        offset = torch.tensor([subject.x - reference.x, subject.y - reference.y])
        vectors = [offset / offset.norm()]
        if "position" in scene.include[1]:
            vectors.append(torch.tensor(_DIRECTIONS[scene.include[1]["position"][0]]))
        for k, vector in enumerate(vectors):
            is_known[n, k] = True
            sides[n, k, SHAPES.index(subject.shape)] = vector
            sides[n, k, SHAPES.index(reference.shape)] = -vector
    return sides, is_known


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
        pipe: the bundled pipeline, in single precision, whose predictions the reward learns to score.
        tokenizer: tokenizer of the captions.
        config: settings of the stage. `batch_size` counts images and is rounded down to whole groups. `seed` also draws the
            scenes, so rewards of different seeds share none.
        folder: folder of the run; a run in it is continued.
        groups: number of groups that are drawn.
        name: name of the run.
        width: channels of both towers.
        start: initial weights: both towers if `harder`, else the image tower; random weights if None.
        harder: also learn positions, and to reject distorted and off-hue images.
        progress: show progress bars.
    """
    torch.manual_seed(config.seed)
    clip = new_clip(tokenizer, width)
    if start is not None and harder:
        clip.load_state_dict(start.state_dict())
    elif start is not None:
        clip.vision_model.load_state_dict(start.vision_model.state_dict())
    heads = nn.ModuleDict({"patches": nn.Linear(width, PATCH_CLASSES), "places": nn.Linear(width, 2 * len(SHAPES))})
    data = SceneGroups(pipe, tokenizer, groups, config.seed, folder, progress=progress)
    sides, is_known = _relative_sides(data.scenes)
    count = config.batch_size // GROUP

    def loss(generator: torch.Generator) -> tuple[Tensor, Figures]:
        batch = data.sample(count, generator)
        index, size = batch.index, len(batch.index)
        wrong = [blend_with_near_miss(batch.images.unflatten(0, (-1, GROUP)), generator)]
        if harder:
            wrong.append(data.corrupt(batch, generator))
        pixel_values = augment(torch.cat([batch.images, *wrong]), generator)
        states = clip.vision_model(pixel_values=pixel_values)
        image = F.normalize(clip.visual_projection(states.pooler_output), dim=-1)
        text = F.normalize(clip.get_text_features(input_ids=data.ids[index]).pooler_output, dim=-1)
        scores = clip.logit_scale.exp().clamp(max=100) * image @ text.T
        labels = torch.arange(size)
        by_image = scores[:size].masked_fill(data.shared_captions(index), -math.inf)
        by_caption = torch.cat([by_image, scores[size:]]).T
        contrast = (F.cross_entropy(by_image, labels) + F.cross_entropy(by_caption, labels)) / 2
        patches = data.patch_loss(heads["patches"](states.last_hidden_state[:size, 1:]), batch)
        value = contrast + patches
        figures = {
            "caption_accuracy": float((by_image.detach().argmax(1) == labels).float().mean()),
            "image_accuracy": float((by_caption.detach().argmax(1) == labels).float().mean()),
            "patches": float(patches.detach()),
        }
        if harder:
            joint = torch.stack([image[:size], text], 1) * width**0.5
            predicted = heads["places"](joint).unflatten(-1, (len(SHAPES), 2))
            error = (predicted - sides[index])[is_known[index]].square().mean()
            value = value + _SIDES_WEIGHT * error
            figures["sides"] = float(error.detach())
        return value, figures

    run_stage(name, nn.ModuleDict({"clip": clip, "heads": heads}), loss, config, folder, progress=progress)
    return clip.eval()
