"""Files of models as people have them: variants, single files, U-Nets alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..exports import exports

_PUBLIC = {
    "ModelSource": "source",
    "choose_variant": "variants",
    "fit_pipeline": "unet_alone",
    "model_name": "source",
    "put_unet": "unet_alone",
    "read_single_file": "single_file",
}

__all__ = [*_PUBLIC]

__getattr__ = exports(__name__, _PUBLIC)

if TYPE_CHECKING:
    from .single_file import read_single_file
    from .source import ModelSource, model_name
    from .unet_alone import fit_pipeline, put_unet
    from .variants import choose_variant
