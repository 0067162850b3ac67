r"""GenEval's detector for photographs: Mask2Former for the objects, CLIP for their colours; both from transformers.

For query q and class c with logits :math:`s_{qc}` and mask logits :math:`m_q`, the confidence is

.. math:: \mathrm{softmax}_c(s_q)_c \cdot \frac{\sum \sigma(m_q) [m_q > 0]}{\sum [m_q > 0]}

over the pixels of the image. The box is the mask's, as in the detector that GenEval runs.

References: Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation", CVPR 2022; Ghosh et al.,
"GenEval", NeurIPS 2023.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..errors import CheckpointError, first_line
from ..metrics.geneval_rules import COLOURS, THRESHOLD, Detection
from ..pretrained import Source, is_hub_id, locate, require_complete, sibling_file
from .features import ClipFeatures

#: Swin-S on COCO, and the CLIP that names colours.
MASK2FORMER = "facebook/mask2former-swin-small-coco-instance"
CLIP = "openai/clip-vit-large-patch14"
#: GenEval's names of COCO's classes where they differ from COCO's own, and the names in older checkpoints.
NAMES = {
    "mouse": "computer mouse",
    "remote": "tv remote",
    "keyboard": "computer keyboard",
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
    "hair dryer": "hair drier",
}
_TEMPLATES = ("a photo of a {c} {name}", "a photo of a {c}-colored {name}", "a photo of a {c} object")
_BACKGROUND = "#999"
_MAX_CANDIDATES = 100  # per image
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_PREPROCESSOR = "preprocessor_config.json"

Colours = Callable[[Image.Image, Sequence[Detection]], list[str]]


def crop_object(image: Image.Image, detection: Detection, side: int) -> Image.Image:
    """Return an object on grey, cropped to its box, its shorter side resized (bicubic) and its centre cropped.

    Args:
        image: the whole image.
        detection: the object.
        side: side of the crop, in pixels.
    """
    if detection.mask is not None:
        image = Image.composite(image, Image.new("RGB", image.size, _BACKGROUND), Image.fromarray(detection.mask))
    left, top, right, bottom = (round(x) for x in detection.box)
    image = image.crop((left, top, right, bottom))
    width, height = (int(side * d / min(image.size)) for d in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (round((d - side) / 2) for d in image.size)
    return image.crop((left, top, left + side, top + side))


class ClipColours:
    """Names colours by CLIP, zero-shot, with GenEval's templates.

    Args:
        features: the CLIP.
        palette: the colours to choose from.
    """

    def __init__(self, features: ClipFeatures, palette: Sequence[str] = COLOURS) -> None:
        self.features, self.palette = features, palette
        self._classes: dict[str, Tensor] = {}

    def __call__(self, image: Image.Image, objects: Sequence[Detection]) -> list[str]:
        """Return the colour of each of these objects.

        Args:
            image: an RGB image.
            objects: objects found in it.
        """
        if not objects:
            return []
        crops = [np.array(crop_object(image, detection, self.features.side)) for detection in objects]
        pixels = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255
        features = self.features(pixels)
        return [self.palette[int((self._texts(o.name) @ f).argmax())] for o, f in zip(objects, features, strict=True)]

    def _texts(self, name: str) -> Tensor:
        """Features (colours, D) of a class's prompts, averaged over the templates."""
        if name not in self._classes:
            prompts = [t.format(c=colour, name=name) for colour in self.palette for t in _TEMPLATES]
            features = self.features.texts(prompts).unflatten(0, (len(self.palette), len(_TEMPLATES)))
            self._classes[name] = F.normalize(features.mean(1), dim=-1)
        return self._classes[name]


class Mask2FormerDetector:
    """Finds objects by Mask2Former.

    Args:
        model: a `Mask2FormerForUniversalSegmentation`.
        name_colours: names the colours of objects.
        preprocessing: as in `preprocessor_config.json`: `size`, `size_divisor`, `image_mean`, `image_std`.
        palette: the colours that `name_colours` knows.
    """

    def __init__(
        self,
        model: Any,
        name_colours: Colours,
        preprocessing: Mapping[str, Any] | None = None,
        palette: Sequence[str] = COLOURS,
    ) -> None:
        config = dict(preprocessing or {})
        size = config.get("size") or {}
        size = size if isinstance(size, Mapping) else {"shortest_edge": size}
        self.shortest_edge, self.longest_edge = (
            int(size.get("shortest_edge", 800)),
            int(size.get("longest_edge", 1333)),
        )
        self.divisor = int(config.get("size_divisor", 32))
        self.mean, self.std = (
            torch.tensor(config.get(key, default))[:, None, None]
            for key, default in (("image_mean", _MEAN), ("image_std", _STD))
        )
        self.model, self.name_colours, self.palette = model, name_colours, palette
        labels: Mapping[Any, str] = model.config.id2label
        self.labels = [NAMES.get(label, label) for _, label in sorted((int(k), v) for k, v in labels.items())]
        self.names = frozenset(self.labels)

    @classmethod
    def from_pretrained(
        cls, source: Source = MASK2FORMER, *, clip: str = CLIP, device: torch.device | str = "cpu"
    ) -> Mask2FormerDetector:
        """Load detector and CLIP from folders or the hub.

        Args:
            source: a Mask2Former in transformers' format.
            clip: a CLIP in transformers' format.
            device: where they run.

        Raises:
            CheckpointError: one of them cannot be read.
        """
        from transformers import Mask2FormerForUniversalSegmentation

        text, hub = str(source), is_hub_id(source)
        try:
            model, report = Mask2FormerForUniversalSegmentation.from_pretrained(
                text, dtype=torch.float32, output_loading_info=True, local_files_only=not hub
            )
        except Exception as error:  # hub, file and config errors of several libraries
            raise CheckpointError(
                f"expected a Mask2Former in transformers' format in {text!r}, could not read it: {first_line(error)}"
            ) from error
        require_complete(report, "Mask2Former")
        path = locate(source, [_PREPROCESSOR]) if hub else sibling_file(source, _PREPROCESSOR)
        preprocessing = json.loads(path.read_text()) if path else None
        colours = ClipColours(ClipFeatures(clip, device))
        return cls(model.to(device).eval().requires_grad_(False), colours, preprocessing)

    def colours(self, image: Image.Image, objects: Sequence[Detection]) -> list[str]:
        """Return the colour of each of these objects.

        Args:
            image: an RGB image.
            objects: objects found in it.
        """
        return self.name_colours(image, objects)

    @torch.inference_mode()
    def __call__(self, image: Image.Image) -> list[Detection]:
        """Return the objects with a confidence above GenEval's threshold, the most confident first.

        Args:
            image: the image.
        """
        image = image.convert("RGB")
        pixels, (height, width) = self._prepare(image)
        out = self.model(pixel_values=pixels.to(self.model.device))
        scores = out.class_queries_logits[0].float().softmax(-1)[:, :-1]
        best, index = scores.flatten().topk(min(_MAX_CANDIDATES, scores.numel()))
        # The confidence is at most the class's score, so only these can count.
        best, index = best[best > THRESHOLD], index[best > THRESHOLD]
        if not len(best):
            return []
        logits = out.masks_queries_logits[0, index // scores.shape[1]].float()
        logits = self._resize(self._resize(logits, pixels.shape[-2:])[..., :height, :width], image.size[::-1])
        masks = logits > 0
        confidences = (logits.sigmoid() * masks).flatten(1).sum(1) / (masks.flatten(1).sum(1) + 1e-6)
        detections = [
            Detection(self.labels[i], None, confidence, _box(mask), mask)
            for i, confidence, mask in zip(
                (index % scores.shape[1]).tolist(), (best * confidences).tolist(), masks.cpu().numpy(), strict=True
            )
            if confidence > THRESHOLD
        ]
        return sorted(detections, key=lambda d: -d.confidence)

    def _prepare(self, image: Image.Image) -> tuple[Tensor, tuple[int, int]]:
        """Return the network's input (1, 3, H, W), padded below and to the right, and its size without padding."""
        scale = min(self.shortest_edge / min(image.size), self.longest_edge / max(image.size))
        width, height = (int(d * scale + 0.5) for d in image.size)
        resized = np.array(image.resize((width, height), Image.Resampling.BILINEAR))
        x = torch.from_numpy(resized).permute(2, 0, 1).float() / 255
        padding = (0, -width % self.divisor, 0, -height % self.divisor)
        return F.pad((x - self.mean) / self.std, padding)[None], (height, width)

    @staticmethod
    def _resize(logits: Tensor, size: Sequence[int]) -> Tensor:
        return F.interpolate(logits[None], size=tuple(size), mode="bilinear", align_corners=False)[0]


def _box(mask: Any) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a mask (H, W); its last pixels lie inside."""
    xs, ys = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    return float(xs[0]), float(ys[0]), float(xs[-1] + 1), float(ys[-1] + 1)
