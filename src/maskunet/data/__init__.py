"""Pictures with captions, as latents and prompt embeddings that a training step can use."""

from .cached import CachedLatents, encode_scenes

__all__ = ["CachedLatents", "encode_scenes"]
