"""Which variant of a pipeline's weights to read: the plain ones, or the only ones that are there."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..errors import CheckpointError

#: A component's weights: "unet/diffusion_pytorch_model.fp16.safetensors", or shards of them.
_WEIGHTS = re.compile(
    r"(?P<component>[^/]+)/[a-z_]+(\.(?P<variant>\w+))?(-\d{5}-of-\d{5}(\.(?P<old>\w+))?)?\.(?P<format>safetensors|bin)"
)


def choose_variant(names: Iterable[str], variant: str | None, source: str) -> str | None:
    """Return the variant of the weights to read; None for the plain ones.

    Args:
        names: files of the pipeline, with their component's folder: "unet/diffusion_pytorch_model.safetensors".
        variant: the requested one; if None, the plain weights, or else the only variant.
        source: the pipeline, for errors.

    Raises:
        CheckpointError: there is no such variant, several without plain weights, or a component has pickles alone.
    """
    variants: dict[str, set[str]] = {}
    pickled: dict[str, str] = {}
    for name in names:
        if match := _WEIGHTS.fullmatch(name):
            if match["format"] == "bin":
                pickled[match["component"]] = name
            else:
                variants.setdefault(match["component"], set()).add(match["variant"] or match["old"] or "")
    for component in pickled.keys() - variants.keys():
        raise CheckpointError(
            f"expected .safetensors weights in {source!r}, got only the pickle {pickled[component]}, which is not read. If "
            f"you trust it, convert it once: DiffusionPipeline.from_pretrained({source!r})"
            ".save_pretrained(NEW_FOLDER)"
        )
    offered = sorted(set().union(*variants.values()) - {""})
    if variant is not None:
        if variant not in offered:
            raise CheckpointError(
                f"expected weights of the variant {variant!r} in {source!r}, there are {_listed(offered)}; leave out "
                "variant (--variant) or name one of these"
            )
        return variant
    lacking = [present for present in variants.values() if "" not in present]
    if not lacking:
        return None
    common = set.intersection(*lacking)
    if len(common) != 1:
        raise CheckpointError(
            f"expected one variant of the weights in {source!r}, there are {_listed(offered)} and no plain ones for every "
            "component; name one as variant (--variant)"
        )
    return common.pop()


def _listed(variants: list[str]) -> str:
    return ", ".join(variants) or "plain ones alone"
