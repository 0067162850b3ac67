"""COCO protocols: which captions, how many, which pictures they are compared with, at which size."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError


@dataclass(frozen=True)
class Protocol:
    """A protocol of evaluation on COCO.

    Args:
        annotations: the annotation file's usual name.
        count: how many captions, each of another picture.
        resolution: pixels a side that both sets are brought to.
    """

    annotations: str
    count: int
    resolution: int


#: FID-30k on val2014 (pictures down to 256 pixels, against all of val2014), and FID-5k on val2017.
PROTOCOLS = {
    "coco2014-30k": Protocol("captions_val2014.json", 30_000, 256),
    "coco2017-5k": Protocol("captions_val2017.json", 5_000, 256),
}


def coco_captions(annotations: Path, count: int, seed: int = 0) -> list[str]:
    """Return captions from COCO's annotation file: one for each of `count` pictures, drawn with the seed.

    Raises:
        DataError: not such a file, or too few pictures in it.
    """
    try:
        entries = json.loads(annotations.read_text())["annotations"]
        by_image: dict[int, list[str]] = {}
        for entry in sorted(entries, key=lambda e: e["id"]):
            by_image.setdefault(entry["image_id"], []).append(" ".join(str(entry["caption"]).split()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"expected COCO's caption annotations, could not read {annotations}: {error!r}") from error
    if len(by_image) < count:
        raise DataError(f"expected captions of at least {count} pictures in {annotations}, got {len(by_image)}")
    rng = random.Random(seed)
    return [rng.choice(by_image[i]) for i in rng.sample(sorted(by_image), count)]
