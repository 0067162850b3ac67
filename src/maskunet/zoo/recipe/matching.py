r"""Last stage of the shapes recipe: a matcher, which reads a caption while it looks at the picture.

Of each group every picture meets every caption, and blends, malformed and off-hue pictures meet a caption that they do not
show; right and wrong pairs weigh alike:

.. math:: L = -\frac12 \left( E_{\mathrm{right}} \log \sigma(l) + E_{\mathrm{wrong}} \log \sigma(-l) \right)

On pictures predicted from much noise nothing can be told, so that there the logit becomes the odds of what can still come.
Besides, through heads that are thrown away, patches say which shape and colour they show, and the states of the caption's
shapes say how many of them the picture has and, of a single one, where it lies and in which colour. What is found by its
name is found in pairs that were never seen together, and a colour is bound to its thing. Pictures of two shapes also meet
captions that say where they lie to each other, right and wrong (`zoo.relations`), in a second round: without them words of
relation stay at chance. Of colours it forgets some, so that a third round has captions with wrong colours as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BlipTextConfig, CLIPModel, CLIPTokenizer

from ...shapes.scenes import SIZE, Scene
from ...shapes.vocabulary import COLOURS, SHAPES, plural
from ..matcher import Matcher
from .relations import Bindings, Relations, relation_tokens
from .scene_groups import GROUP, PATCH_CLASSES, GroupedPictures, augmented, blends
from .stage import StageConfig, run_stage
from .tokenizer import MAX_LENGTH

Figures = dict[str, float]

_MOST = 5  # counts 0 to 4
_NO_COLOUR = -100  # what cross-entropy passes over


def new_matcher(tokenizer: CLIPTokenizer, start: CLIPModel, layers: int = 3) -> Matcher:
    """Return a matcher with a CLIP's vision tower and an untrained text encoder of as many channels."""
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
        is_decoder=True,  # has cross-attention; attention stays bidirectional
        use_cache=False,
    )
    matcher = Matcher(vision, text)
    matcher.vision.load_state_dict(start.vision_model.state_dict())
    return matcher


class Contents(NamedTuple):
    """What N pictures hold of S shapes: how many (N, S); a single one's place in [-1, 1] (N, S, 2), and colour (N, S)."""

    counts: Tensor
    places: Tensor
    colours: Tensor

    @classmethod
    def of(cls, scenes: Sequence[Scene]) -> Self:
        """Return the contents of N scenes; without colour where there is not exactly one."""
        shape = (len(scenes), len(SHAPES))
        counts, places = torch.zeros(shape, dtype=torch.long), torch.zeros(*shape, 2)
        colours = torch.full(shape, _NO_COLOUR)
        for n, scene in enumerate(scenes):
            for one in scene.objects:
                k = SHAPES.index(one.shape)
                counts[n, k] += 1
                places[n, k] = 2 * torch.tensor([one.x, one.y]) / SIZE - 1
                colours[n, k] = COLOURS.index(one.colour)
        return cls(counts, places, colours.masked_fill(counts != 1, _NO_COLOUR))


def shape_tokens(tokenizer: CLIPTokenizer) -> Tensor:
    """Return, for each token id, the index of the shape that it names, in singular or plural; -1 for all others."""
    found = torch.full((len(tokenizer),), -1)
    for index, shape in enumerate(SHAPES):
        for word in (shape, plural(shape)):
            (token,) = tokenizer(word, add_special_tokens=False)["input_ids"]
            found[token] = index
    return found


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
        pipe: the bundled pipeline, whose predictions it learns to read.
        tokenizer: of the captions.
        config: how to train; `batch_size` counts pictures and is rounded down to whole groups. Its seed also chooses the
            scenes.
        folder: where the run is kept; a run found there goes on.
        groups: how many groups are drawn.
        start: CLIP whose vision tower it starts from, or a matcher that goes on; that one is trained in place.
        relations: also learn words of relation, which needs a matcher that knows its shapes.
        bindings: also learn whose colour is which; in the round in which words of relation are learnt it slows them down.
        name: of the run.
        progress: show progress bars.
    """
    torch.manual_seed(config.seed)
    matcher = start if isinstance(start, Matcher) else new_matcher(tokenizer, start)
    matcher.train().requires_grad_(True)
    width = matcher.head.in_features
    heads = nn.ModuleDict(
        {
            "patches": nn.Linear(width, PATCH_CLASSES),
            "place": nn.Linear(width, 2),
            "colour": nn.Linear(width, len(COLOURS)),
            "count": nn.Linear(width, _MOST),
            "way": nn.Linear(width, 2),
            "holds": nn.Linear(width, 1),
        }
    )
    data = GroupedPictures(pipe, tokenizer, groups, config.seed, folder, progress=progress)
    ids, contents, named = data.ids, Contents.of(data.scenes), shape_tokens(tokenizer)
    masks = _attended(ids, tokenizer)
    said_of = Relations(data.scenes, tokenizer, config.seed) if relations else None
    coloured = Bindings(data.scenes, tokenizer, config.seed) if bindings else None
    is_relation = relation_tokens(tokenizer)
    count = config.batch_size // GROUP
    # Each picture of a group with each of its captions.
    pairs = torch.cartesian_prod(torch.arange(count), torch.arange(GROUP), torch.arange(GROUP))
    of_picture, of_caption = pairs[:, 0] * GROUP + pairs[:, 1], pairs[:, 0] * GROUP + pairs[:, 2]

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        batch = data.draw(count, generator)
        index, first = batch.index, torch.arange(count) * GROUP
        spoilt = data.spoilt(batch, generator)
        blended = blends(batch.pictures.unflatten(0, (-1, GROUP)), generator)
        seen = matcher.look(augmented(torch.cat([batch.pictures, blended, spoilt]), generator))

        size, both = len(index), of_picture == of_caption
        shown = both | data.matches(index)[of_picture, of_caption]
        right = torch.cat([shown, torch.zeros(2 * count, dtype=torch.bool)])
        rows = torch.cat([of_picture, size + torch.arange(2 * count)])
        captions = index[torch.cat([of_caption, first, first])]
        logits, layers = matcher.read(seen[rows], ids[captions], masks[captions].long())
        matched = _balanced(logits, right)

        # Shapes by name, in whole pictures.
        row, place = (named[ids[captions[: len(pairs)]]] >= 0).nonzero(as_tuple=True)
        state, picture = layers[-1][row, place], index[of_picture[row]]
        shape = named[ids[captions[row], place]]
        number = contents.counts[picture, shape]
        single = number == 1
        where = (heads["place"](state[single]) - contents.places[picture, shape][single]).square().mean()
        colour = F.cross_entropy(heads["colour"](state), contents.colours[picture, shape], ignore_index=_NO_COLOUR)
        counted = F.cross_entropy(heads["count"](state), number)
        labelled = data.patch_loss(heads["patches"](seen[:size, 1:]), batch)

        drawn = torch.cat([~batch.predicted[of_picture], torch.zeros(2 * count, dtype=torch.bool)])
        figures = {
            "matched": float(matched.detach()),
            "accuracy": float(((logits > 0) == right)[drawn].float().mean()),
            "patches": float(labelled.detach()),
            "places": float(where.detach()),
            "colours": float(colour.detach()),
            "counts": float(counted.detach()),
        }
        total = matched + 0.5 * labelled + 2 * where + 0.3 * colour + 0.5 * counted
        for part in (related, bound):
            total = total + part(index, seen, batch.predicted, generator, figures)
        return total, figures

    def related(
        index: Tensor, seen: Tensor, predicted: Tensor, generator: torch.Generator, figures: Figures
    ) -> Tensor:
        """Pictures of two shapes, each with a right and a wrong word between their names."""
        if said_of is None:
            return seen.new_zeros(())
        there, said, holds = said_of.draw(index, generator)
        if not len(there):
            return seen.new_zeros(())
        placed, layers = matcher.read(seen[there], said, _attended(said, tokenizer).long())
        matched = _balanced(placed, holds)
        # Each layer has its part, or words and places meet too late to be compared: shapes find their places in the first,
        # in the second the word of relation learns the way between them and whether it is what it says, the last reads it.
        row, place = (named[said] >= 0).nonzero(as_tuple=True)
        lies = contents.places[index[there[row]], named[said[row, place]]]
        where = (heads["place"](layers[1][row, place]) - lies).square().mean()
        word = layers[2][torch.arange(len(said)), is_relation[said].int().argmax(1)]
        one, other = lies.unflatten(0, (-1, 2)).unbind(1)
        way = (heads["way"](word) - (one - other)).square().mean()
        told = _balanced(heads["holds"](word).squeeze(-1), holds)
        figures |= {"ways": float(way.detach()), "told": float(told.detach()), "related": float(matched.detach())}
        _note(figures, "relations", placed, holds, predicted[there])
        return matched + told + 2 * where + 2 * way

    def bound(index: Tensor, seen: Tensor, predicted: Tensor, generator: torch.Generator, figures: Figures) -> Tensor:
        """The same pictures, with their true colours and with wrong ones."""
        if coloured is None:
            return seen.new_zeros(())
        there, said, true = coloured.draw(index, generator)
        if not len(there):
            return seen.new_zeros(())
        logits = matcher.read(seen[there], said, _attended(said, tokenizer).long())[0]
        matched = _balanced(logits, true)
        figures["binding"] = float(matched.detach())
        _note(figures, "bindings", logits, true, predicted[there])
        return matched

    run_stage(name, nn.ModuleDict({"matcher": matcher, "heads": heads}), loss, config, folder, progress=progress)
    return matcher.eval()


def _note(figures: Figures, name: str, logits: Tensor, right: Tensor, predicted: Tensor) -> None:
    """Note how often the logits' sign is right, of pictures that were drawn."""
    if len(seen_well := ((logits > 0) == right)[~predicted]):
        figures[name] = float(seen_well.float().mean())


def _balanced(logits: Tensor, right: Tensor) -> Tensor:
    """Return the binary cross-entropy in which right and wrong ones weigh alike."""
    return (F.softplus(-logits[right]).mean() + F.softplus(logits[~right]).mean()) / 2


def _attended(ids: Tensor, tokenizer: CLIPTokenizer) -> Tensor:
    """Return (N, L), True up to the first end token; the padding after it is the same token."""
    return torch.arange(ids.shape[1]) <= (ids == tokenizer.eos_token_id).int().argmax(1, keepdim=True)
