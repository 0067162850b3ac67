"""ImageReward: a BLIP reads the prompt with cross-attention to the image, and linear layers map its state to one value.

    h = BERT(prompt; cross-attention to ViT(image))[CLS]        (B, 768)
    r = (MLP(h) - mean) / std

in transformers' BLIP classes. The checkpoint's keys:

    blip.visual_encoder.{patch_embed.proj, cls_token, pos_embed, norm}      vision_model.embeddings.*, post_layernorm
    blip.visual_encoder.blocks.N.{norm1, norm2, attn.qkv, attn.proj, mlp.*} vision_model.encoder.layers.N.*
    blip.text_encoder.*                                                     text_encoder.*, the same
    mlp.layers.{0, 2, 4, 6, 7}                                              the head
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import BertTokenizer, BlipConfig, BlipPreTrainedModel, BlipTextModel, BlipVisionModel

from ..errors import CheckpointError
from ..moving import outside_inference_mode
from ..pretrained import (
    Source,
    build_frozen,
    is_hub_id,
    load_tokenizer,
    locate,
    read_state_dict,
    sibling_file,
    tokenizer_source,
    unwrap_state_dict,
)
from .base import Reward
from .head import linear_head
from .preprocess import Preprocess, resolve_preprocess
from .prompt_tokenizer import PromptTokenizer

logger = logging.getLogger(__name__)

# Mean and standard deviation of the raw value over the original's training set; constants of its code.
MEAN, STD = 0.16717362830052426, 1.0333394966054072
LIMIT = 35
_NAME = "image-reward"
_VISUAL, _TEXT, _HEAD = "blip.visual_encoder.", "blip.text_encoder.", "mlp."
_FILES = ("ImageReward.pt", "ImageReward.safetensors")
_RENAMED = (
    (r"^blocks\.", "encoder.layers."),
    (r"\.attn\.proj\.", ".self_attn.projection."),
    (r"\.attn\.", ".self_attn."),
    (r"\.norm([12])\.", r".layer_norm\1."),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^norm\.", "post_layernorm."),
)


class Blip(BlipPreTrainedModel):
    """The two towers of BLIP, without its heads.

    Args:
        config: the config of both towers.
    """

    def __init__(self, config: BlipConfig) -> None:
        super().__init__(config)
        self.vision_model = BlipVisionModel(config.vision_config)
        self.text_encoder = BlipTextModel(config.text_config, add_pooling_layer=False)
        self.post_init()

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Return the state (B, D) of the prompt's first token, which attends to prompt and image.

        Args:
            pixel_values: normalised images (B, 3, side, side).
            input_ids: token ids (B, L).
            attention_mask: (B, L), 1 = token, 0 = padding; all tokens if None.
        """
        patches = self.vision_model(pixel_values=pixel_values).last_hidden_state
        states = self.text_encoder(input_ids, attention_mask=attention_mask, encoder_hidden_states=patches)
        first: Tensor = states.last_hidden_state[:, 0]
        return first


class ImageReward(Reward):
    """ImageReward v1.0; about -2 to 2, with mean 0 over its training set.

    Args:
        model: a frozen BLIP.
        head: maps the state of the prompt's first token to one value, float32.
        tokenizer: BERT's tokenizer; None if only `score_tokens` is used.
        preprocess: maps images to the network's input.

    Reference: Xu et al., arXiv 2304.05977; https://github.com/THUDM/ImageReward.
    """

    name = _NAME

    def __init__(self, model: Blip, head: nn.Module, tokenizer: Any, preprocess: Preprocess) -> None:
        self.model, self.head, self.preprocess = model, head, preprocess
        self.models, self.heads = (model,), (head,)
        limit = min(LIMIT, model.config.text_config.max_position_embeddings)
        self.tokenize = PromptTokenizer(tokenizer, limit, _NAME)

    @classmethod
    def from_original(
        cls,
        config: Mapping[str, Any] | None,
        state_dict: Mapping[str, Any],
        *,
        tokenizer: Any = None,
        preprocess: Preprocess | str = "original",
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Build it from a checkpoint in ImageReward's layout.

        Args:
            config: settings that the tensors' shapes do not determine: {"vision": {...}, "text": {...}} with
                transformers' names, where "text" may be a `med_config.json`; None for the public checkpoint (heads of 64
                channels).
            state_dict: tensors by the original's keys.
            tokenizer: BERT's tokenizer; None if only `score_tokens` is used.
            preprocess: "original", "shared" (the authors' one crop) or your own `Preprocess`.
            dtype: dtype of the BLIP; the head stays in float32.

        Raises:
            CheckpointError: keys are missing, or tensors and config do not fit each other.
        """
        tensors = unwrap_state_dict(state_dict, _NAME)
        parts = {
            p: {k.removeprefix(p): v for k, v in tensors.items() if k.startswith(p)} for p in (_VISUAL, _TEXT, _HEAD)
        }
        unused = [key for key in tensors if not key.startswith((_VISUAL, _TEXT, _HEAD))]
        if unused:  # BLIP's projections for its contrastive loss
            logger.info("%s: %d tensors of the checkpoint are not used, such as %r", _NAME, len(unused), unused[0])
        blip_config = _config(dict(config or {}), parts[_VISUAL], parts[_TEXT])
        model = build_frozen(Blip, blip_config, _state_dict(parts[_VISUAL], parts[_TEXT]), _NAME, dtype)
        head = linear_head(parts[_HEAD], blip_config.text_config.hidden_size, _NAME)
        original = Preprocess(blip_config.vision_config.image_size)
        return cls(model, head, tokenizer, resolve_preprocess(preprocess, original))

    @classmethod
    @outside_inference_mode()
    def from_pretrained(
        cls,
        source: Source = "THUDM/ImageReward",
        *,
        config: Mapping[str, Any] | None = None,
        tokenizer: Any = None,
        preprocess: Preprocess | str = "original",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        revision: str | None = None,
        token: str | None = None,
    ) -> Self:
        """Load it from the hub, a folder or a file.

        Args:
            source: hub id, folder with `ImageReward.pt` (or .safetensors) and perhaps `med_config.json`, or the file.
            config: see `from_original`; "text" is the checkpoint's `med_config.json` if None.
            tokenizer: a tokenizer, or its folder or hub id. If None: the one next to the checkpoint, else
                bert-base-uncased.
            preprocess: see `from_original`.
            dtype: dtype of the BLIP; the head stays in float32.
            device: device of the reward.
            revision: branch, tag or commit on the hub.
            token: access token for the hub.

        Raises:
            CheckpointError: missing, unreadable, or not ImageReward.
        """
        tensors = read_state_dict(locate(source, _FILES, revision=revision, token=token))
        if config is None:
            path = sibling_file(source, "med_config.json")
            if path is None and is_hub_id(source):
                path = locate(source, ["med_config.json"], revision=revision, token=token)
            config = {"text": json.loads(path.read_text())} if path is not None else None
        tokenizer = load_tokenizer(BertTokenizer, tokenizer_source(source, tokenizer, "google-bert/bert-base-uncased"))
        vocabulary = tensors.get(f"{_TEXT}embeddings.word_embeddings.weight")
        if vocabulary is not None and len(tokenizer) + 2 == len(vocabulary):
            # BLIP's own two tokens come after BERT's; only a prompt that spells them out has them.
            tokenizer.add_tokens(["[DEC]", "[ENC]"], special_tokens=True)
        reward = cls.from_original(config, tensors, tokenizer=tokenizer, preprocess=preprocess, dtype=dtype)
        return reward.to(device)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the values of images.

        Args:
            images: (B, 3, H, W), floating, in [0, 1].
            prompts: B prompts, one per image.

        Returns:
            Values (B,), on the images' device.
        """
        values = self.preprocess(images.to(self.model.device))
        return self.score_tokens(values, *self.tokenize(prompts)).to(images.device)

    def score_tokens(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return the values (B,) of preprocessed images and tokenized prompts.

        Args:
            pixel_values: normalised images (B, 3, side, side).
            input_ids: token ids (B, L).
            attention_mask: (B, L), 1 = token, 0 = padding; all tokens if None.
        """
        device = self.model.device
        mask = None if attention_mask is None else attention_mask.to(device)
        state = self.model(pixel_values.to(device, self.model.dtype), input_ids.to(device), mask)
        with torch.autocast(device.type, enabled=False):
            values: Tensor = self.head(state.float())
        return (values.squeeze(-1) - MEAN) / STD


def _state_dict(visual: Mapping[str, Tensor], text: Mapping[str, Tensor]) -> dict[str, Tensor]:
    tensors = {}
    for key, value in visual.items():
        for pattern, replacement in _RENAMED:
            key = re.sub(pattern, replacement, key)
        tensors[f"vision_model.{key}"] = value
    for key, value in text.items():
        # A buffer, and a pooler that the original does not build.
        if not key.startswith(("embeddings.position_ids", "pooler.")):
            tensors[f"text_encoder.{key}"] = value
    return tensors


def _config(config: dict[str, Any], visual: Mapping[str, Tensor], text: Mapping[str, Tensor]) -> BlipConfig:
    try:
        width, _, patch, _ = visual["patch_embed.proj.weight"].shape
        vocabulary, text_width = text["embeddings.word_embeddings.weight"].shape
        vision_shapes = {
            "hidden_size": width,
            "intermediate_size": visual["blocks.0.mlp.fc1.weight"].shape[0],
            "num_hidden_layers": _layers(visual, "blocks"),
            "patch_size": patch,
            "image_size": patch * math.isqrt(visual["pos_embed"].shape[1] - 1),
        }
        text_shapes = {
            "hidden_size": text_width,
            "encoder_hidden_size": width,
            "vocab_size": vocabulary,
            "intermediate_size": text["encoder.layer.0.intermediate.dense.weight"].shape[0],
            "num_hidden_layers": _layers(text, "encoder.layer"),
            "max_position_embeddings": text["embeddings.position_embeddings.weight"].shape[0],
        }
    except KeyError as error:
        raise CheckpointError(f"expected {_NAME}'s keys in the checkpoint, {error} is missing") from error
    vision_defaults = {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "num_attention_heads": max(1, width // 64)}
    text_defaults = {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "num_attention_heads": max(1, text_width // 64)}
    vision_config = _merged(vision_shapes, vision_defaults, config.get("vision", {}))
    text_config = _merged(text_shapes, text_defaults, config.get("text", {}))
    # Gradient checkpointing needs training mode, where dropout would make the reward random.
    vision_config["attention_dropout"] = 0.0
    text_config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "pad_token_id": 0}
    text_config |= dict.fromkeys(("bos_token_id", "eos_token_id", "sep_token_id"))  # for generating text only
    # is_decoder gives the layers their cross-attention; self-attention stays bidirectional.
    return BlipConfig(vision_config=vision_config, text_config=text_config | {"is_decoder": True})


def _merged(shapes: dict[str, Any], defaults: dict[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tower's settings: those of the tensors' shapes, the others from the config or else the defaults."""
    wrong = [key for key in shapes.keys() & config.keys() if shapes[key] != config[key]]
    if wrong:
        raise CheckpointError(
            f"expected a config of {_NAME} that agrees with the checkpoint's shapes, got {wrong[0]} {config[wrong[0]]} "
            f"with tensors for {shapes[wrong[0]]}"
        )
    return shapes | {key: config.get(key, value) for key, value in defaults.items()}


def _layers(tensors: Mapping[str, Tensor], prefix: str) -> int:
    return len({m[1] for key in tensors if (m := re.match(rf"{re.escape(prefix)}\.(\d+)\.", key))})
