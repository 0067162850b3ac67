"""The zoo: models that come with the package, so that everything runs without a download.

    import maskunet as mu

    pipe = mu.zoo.load("shapes")                        # a StableDiffusionPipeline of 64 by 64 pixels
    image = pipe("a red circle and a blue star").images[0]

They live in the **shapes world**: images of eight shapes in eight colours, with captions in GenEval's six tasks, whose exact
judge (`maskunet.shapes.judge`) checks whether an image shows its caption. The pipeline is a small Stable Diffusion. With it
come a masker ("shapes-masker"), three rewards ("shapes", "shapes-matching" and "shapes-referee", by `mu.rewards.load`) and a
CLIP whose features measure distances between sets of images.

`path("shapes")` is a folder in diffusers' format, so `StableDiffusionPipeline.from_pretrained` reads it like any other
checkpoint. `zoo.dataset` draws the training data, `zoo.defaults` holds the model's default settings, and `zoo.recipe`
trains everything again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..exports import exports

#: Public names by the module that holds them: `zoo.defaults` can be read without importing torch.
_PUBLIC = {"load": "loading", "load_clip": "loading", "path": "loading"}

__all__ = [*_PUBLIC]

__getattr__ = exports(__name__, _PUBLIC)


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:
    from .loading import load, load_clip, path
