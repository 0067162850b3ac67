"""Images with captions, as the latents and prompt embeddings that training uses."""

from .buckets import BucketOrder
from .encoding import encode_images
from .images import ImageCaptions, open_images
from .latents import CachedLatents, encode_posterior, sample_index
from .prompt_embeds import PromptEmbeds

__all__ = [
    "BucketOrder",
    "CachedLatents",
    "ImageCaptions",
    "PromptEmbeds",
    "encode_images",
    "encode_posterior",
    "open_images",
    "sample_index",
]
