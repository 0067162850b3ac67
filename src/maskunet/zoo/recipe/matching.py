r"""Last stage of the shapes recipe: the matcher, which reads a caption beside the image.

Every image of a group is paired with every caption of the group. Blends, distorted and off-hue images are paired with a
caption that they do not show. Right and wrong pairs have the same weight:

.. math:: L = -\frac12 \left( E_{\mathrm{right}} \log \sigma(l) + E_{\mathrm{wrong}} \log \sigma(-l) \right)

Predictions from much noise show nothing clearly, so the logit becomes the odds that the image will show its caption.

Heads that are discarded after training make the matcher general. From the image's patches they predict shape and colour.
From the state of a shape's word they predict how many of that shape the image has and, of a single one, its position and
colour. A shape that is found by its name is also found in pairs that never occur in training, and its colour belongs to it.

The second round adds captions of relations (`relations`); without them the words of relation stay at chance. It unlearns
some colours, so the third round adds captions with wrong colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BlipTextConfig, CLIPModel, CLIPTokenizer

from ...shapes.layout import SIZE
from ...shapes.scenes import Scene
from ...shapes.vocabulary import COLOURS, SHAPES, plural
from ..matcher import Matcher
from .clip import augment
from .relations import ColourCaptions, RelationCaptions, relation_tokens
from .scene_groups import GROUP, PATCH_CLASSES, SceneGroups, blend_with_near_miss
from .stage import Figures, StageConfig, run_stage
from .tokenizer import MAX_LENGTH

_COUNTS = 5  # 0 to 4 objects
_NO_COLOUR = -100  # ignored by cross-entropy


def new_matcher(tokenizer: CLIPTokenizer, start: CLIPModel, layers: int = 3) -> Matcher:
    """Return a matcher with a CLIP's image tower, and an untrained text encoder of the same width.

    Args:
        tokenizer: tokenizer of the captions.
        start: the CLIP.
        layers: layers of the text encoder.
    """
    vision = start.config.vision_config
    width = vision.hidden_size
    text = BlipTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        encoder_hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        is_decoder=True,  # gives the layers cross-attention; self-attention stays bidirectional
        use_cache=False,
    )
    matcher = Matcher(vision, text)
    matcher.vision.load_state_dict(start.vision_model.state_dict())
    return matcher


class SceneContents(NamedTuple):
    """The contents of N images, by shape.

    Args:
        counts: number of objects (N, S).
        positions: centre of a single object in [-1, 1] (N, S, 2).
        colours: colour of a single object, an index into `COLOURS` (N, S); -100 if there is not exactly one.
    """

    counts: Tensor
    positions: Tensor
    colours: Tensor

    @classmethod
    def from_scenes(cls, scenes: Sequence[Scene]) -> Self:
        """Return the contents of N scenes.

        Args:
            scenes: the scenes.
        """
        shape = (len(scenes), len(SHAPES))
        counts, positions = torch.zeros(shape, dtype=torch.long), torch.zeros(*shape, 2)
        colours = torch.full(shape, _NO_COLOUR)
        for n, scene in enumerate(scenes):
            for o in scene.objects:
                k = SHAPES.index(o.shape)
                counts[n, k] += 1
                positions[n, k] = 2 * torch.tensor([o.x, o.y]) / SIZE - 1
                colours[n, k] = COLOURS.index(o.colour)
        return cls(counts, positions, colours.masked_fill(counts != 1, _NO_COLOUR))


def shape_tokens(tokenizer: CLIPTokenizer) -> Tensor:
    """Return, for each token id, the index of the shape that it names in singular or plural; -1 for all others.

    Args:
        tokenizer: the tokenizer.
    """
    shapes = torch.full((len(tokenizer),), -1)
    for index, shape in enumerate(SHAPES):
        for word in (shape, plural(shape)):
            (token,) = tokenizer(word, add_special_tokens=False)["input_ids"]
            shapes[token] = index
    return shapes


def train_matcher(
    pipe: Any,
    tokenizer: CLIPTokenizer,
    config: StageConfig,
    folder: Path,
    *,
    groups: int,
    start: CLIPModel | Matcher,
    relations: bool = False,
    bindings: bool = False,
    name: str = "matcher",
    progress: bool = True,
) -> Matcher:
    """Train a matcher on groups of scenes.

    Args:
        pipe: the bundled pipeline, in single precision, whose predictions the matcher learns to read.
        tokenizer: tokenizer of the captions.
        config: settings of the stage. `batch_size` counts images and is rounded down to whole groups. `seed` also draws the
            scenes.
        folder: folder of the run; a run in it is continued.
        groups: number of groups that are drawn.
        start: a CLIP for the initial image tower, or a matcher to continue, which is trained in place.
        relations: also learn captions of relations; needs a matcher that knows the shapes.
        bindings: also learn captions of colours; slows the round in which relations are learnt down.
        name: name of the run.
        progress: show progress bars.
    """
    torch.manual_seed(config.seed)
    matcher = start if isinstance(start, Matcher) else new_matcher(tokenizer, start)
    matcher.train().requires_grad_(True)
    width = matcher.head.in_features
    # Changed keys would make saved runs unreadable.
    heads = nn.ModuleDict(
        {
            "patches": nn.Linear(width, PATCH_CLASSES),
            "place": nn.Linear(width, 2),
            "colour": nn.Linear(width, len(COLOURS)),
            "count": nn.Linear(width, _COUNTS),
            "way": nn.Linear(width, 2),
            "holds": nn.Linear(width, 1),
        }
    )
    data = SceneGroups(pipe, tokenizer, groups, config.seed, folder, progress=progress)
    ids, contents, shape_of_token = data.ids, SceneContents.from_scenes(data.scenes), shape_tokens(tokenizer)
    masks = _attention_mask(ids, tokenizer)
    relation_captions = RelationCaptions(data.scenes, tokenizer, config.seed) if relations else None
    colour_captions = ColourCaptions(data.scenes, tokenizer, config.seed) if bindings else None
    is_relation_token = relation_tokens(tokenizer)
    count = config.batch_size // GROUP
    # Each image of a group with each of its captions.
    pairs = torch.cartesian_prod(torch.arange(count), torch.arange(GROUP), torch.arange(GROUP))
    image_of_pair, caption_of_pair = pairs[:, 0] * GROUP + pairs[:, 1], pairs[:, 0] * GROUP + pairs[:, 2]

    def loss(generator: torch.Generator) -> tuple[Tensor, Figures]:
        batch = data.sample(count, generator)
        index, first = batch.index, torch.arange(count) * GROUP
        corrupted = data.corrupt(batch, generator)
        blended = blend_with_near_miss(batch.images.unflatten(0, (-1, GROUP)), generator)
        states = matcher.encode_images(augment(torch.cat([batch.images, blended, corrupted]), generator))

        size, has_own_caption = len(index), image_of_pair == caption_of_pair
        is_shown = has_own_caption | data.shared_captions(index)[image_of_pair, caption_of_pair]
        is_right = torch.cat([is_shown, torch.zeros(2 * count, dtype=torch.bool)])
        images = torch.cat([image_of_pair, size + torch.arange(2 * count)])
        captions = index[torch.cat([caption_of_pair, first, first])]
        logits, layers = matcher.read_captions(states[images], ids[captions], masks[captions].long())
        matched = _balanced_loss(logits, is_right)

        # The words of shapes in the pairs of whole images.
        row, token = (shape_of_token[ids[captions[: len(pairs)]]] >= 0).nonzero(as_tuple=True)
        word, scene = layers[-1][row, token], index[image_of_pair[row]]
        shape = shape_of_token[ids[captions[row], token]]
        number = contents.counts[scene, shape]
        is_single = number == 1
        positions = contents.positions[scene, shape][is_single]
        position_loss = (heads["place"](word[is_single]) - positions).square().mean()
        colour_loss = F.cross_entropy(heads["colour"](word), contents.colours[scene, shape], ignore_index=_NO_COLOUR)
        count_loss = F.cross_entropy(heads["count"](word), number)
        patch_loss = data.patch_loss(heads["patches"](states[:size, 1:]), batch)

        is_drawn = torch.cat([~batch.is_predicted[image_of_pair], torch.zeros(2 * count, dtype=torch.bool)])
        figures = {
            "matched": float(matched.detach()),
            "accuracy": float(((logits > 0) == is_right)[is_drawn].float().mean()),
            "patches": float(patch_loss.detach()),
            "positions": float(position_loss.detach()),
            "colours": float(colour_loss.detach()),
            "counts": float(count_loss.detach()),
        }
        total = matched + 0.5 * patch_loss + 2 * position_loss + 0.3 * colour_loss + 0.5 * count_loss
        for part in (relation_loss, binding_loss):
            total = total + part(index, states, batch.is_predicted, generator, figures)
        return total, figures

    def relation_loss(
        index: Tensor, states: Tensor, is_predicted: Tensor, generator: torch.Generator, figures: Figures
    ) -> Tensor:
        """Return the loss of captions of relations, on images of two shapes."""
        if relation_captions is None:
            return states.new_zeros(())
        images, captions, is_right = relation_captions.sample(index, generator)
        if not len(images):
            return states.new_zeros(())
        logits, layers = matcher.read_captions(states[images], captions, _attention_mask(captions, tokenizer).long())
        matched = _balanced_loss(logits, is_right)
        # Each layer has its task; otherwise words and positions are combined too late to be compared. In the first,
        # shapes learn their positions; in the second, the relation's word learns the offset of the two and whether the
        # relation holds; the last reads the verdict.
        row, token = (shape_of_token[captions] >= 0).nonzero(as_tuple=True)
        positions = contents.positions[index[images[row]], shape_of_token[captions[row, token]]]
        position_loss = (heads["place"](layers[1][row, token]) - positions).square().mean()
        word = layers[2][torch.arange(len(captions)), is_relation_token[captions].int().argmax(1)]
        subject, reference = positions.unflatten(0, (-1, 2)).unbind(1)
        offset_loss = (heads["way"](word) - (subject - reference)).square().mean()
        verdict_loss = _balanced_loss(heads["holds"](word).squeeze(-1), is_right)
        figures |= {
            "offsets": float(offset_loss.detach()),
            "verdicts": float(verdict_loss.detach()),
            "related": float(matched.detach()),
        }
        _log_accuracy(figures, "relations", logits, is_right, is_predicted[images])
        return matched + verdict_loss + 2 * position_loss + 2 * offset_loss

    def binding_loss(
        index: Tensor, states: Tensor, is_predicted: Tensor, generator: torch.Generator, figures: Figures
    ) -> Tensor:
        """Return the loss of captions of colours, true and wrong, on images of two shapes."""
        if colour_captions is None:
            return states.new_zeros(())
        images, captions, is_right = colour_captions.sample(index, generator)
        if not len(images):
            return states.new_zeros(())
        logits, _ = matcher.read_captions(states[images], captions, _attention_mask(captions, tokenizer).long())
        matched = _balanced_loss(logits, is_right)
        figures["binding"] = float(matched.detach())
        _log_accuracy(figures, "bindings", logits, is_right, is_predicted[images])
        return matched

    run_stage(name, nn.ModuleDict({"matcher": matcher, "heads": heads}), loss, config, folder, progress=progress)
    return matcher.eval()


def _log_accuracy(figures: Figures, name: str, logits: Tensor, is_right: Tensor, is_predicted: Tensor) -> None:
    """Add the share of drawn images whose logit has the right sign."""
    if len(is_correct := ((logits > 0) == is_right)[~is_predicted]):
        figures[name] = float(is_correct.float().mean())


def _balanced_loss(logits: Tensor, is_right: Tensor) -> Tensor:
    """Return the binary cross-entropy in which right and wrong pairs have the same weight."""
    return (F.softplus(-logits[is_right]).mean() + F.softplus(logits[~is_right]).mean()) / 2


def _attention_mask(ids: Tensor, tokenizer: CLIPTokenizer) -> Tensor:
    """Return (N, L), True up to the first end token; the padding after it is the same token."""
    return torch.arange(ids.shape[1]) <= (ids == tokenizer.eos_token_id).int().argmax(1, keepdim=True)
