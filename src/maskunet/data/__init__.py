"""Pictures with captions, as latents and prompt embeddings that a training step can use."""

from .encoding import encode_images
from .images import ImageCaptions, open_images
from .latents import CachedLatents, PromptEmbeds, encode_pictures, sample_at

__all__ = [
    "CachedLatents",
    "ImageCaptions",
    "PromptEmbeds",
    "encode_images",
    "encode_pictures",
    "open_images",
    "sample_at",
]
