"""Pictures with captions, as latents and prompt embeddings that a training step can use."""

from .cached import CachedLatents, PromptEmbeds, encode_pictures, encode_scenes, sample_at
from .encoding import encode_images
from .images import ImageCaptions, open_images

__all__ = [
    "CachedLatents",
    "ImageCaptions",
    "PromptEmbeds",
    "encode_images",
    "encode_pictures",
    "encode_scenes",
    "open_images",
    "sample_at",
]
