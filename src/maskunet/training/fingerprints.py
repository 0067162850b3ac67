"""Fingerprints of what a run trains on, by which a resumed run recognises its model and its data.

A fingerprint is a hash of names, shapes, dtypes and a fixed sample of the values, so that it costs less than a step.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..attaching import Attachment
from ..data import CachedLatents
from ..rewards import Reward
from ..targets import unet_of

#: Values that are read of each weight, and samples of a data set.
_VALUES, _SAMPLES = 64, 256
#: A prime that scatters the sample, so that a stride of it meets every column of a matrix.
_STRIDE = 2654435761


def run_fingerprints(
    pipe: Any, data: CachedLatents, reward: Reward | None = None, attachment: Attachment | None = None
) -> dict[str, str | None]:
    """Return the fingerprints of a run, by what they identify.

    Args:
        pipe: the pipeline, before a method is installed on it.
        data: the training set.
        reward: the reward of objective "reward", or None.
        attachment: the masker that stays in effect while the run trains, or None.
    """
    encoders = [getattr(pipe, name, None) for name in ("text_encoder", "text_encoder_2")]
    networks = [unet_of(pipe), *(encoder for encoder in encoders if encoder is not None)]
    prints = {
        "unet": _of_modules(networks[0]),
        "text_encoder": _of_modules(*networks[1:]),
        "noise_schedule": _of_schedule(pipe.scheduler),
        "adapters": _of_adapters(networks),
        "masker": None if attachment is None else _of_attachment(attachment),
        "latents": _digest(_sampled_rows(data.mean), _sampled_rows(data.std)),
        "captions": _digest(*data.captions),
        "time_ids": None if data.time_ids is None else _digest(_sampled_rows(data.time_ids)),
    }
    if reward is not None:  # its samples are made by the sampler and decoded
        config = {name: value for name, value in pipe.scheduler.config.items() if not name.startswith("_")}
        prints["scheduler"] = _digest(json.dumps(config, sort_keys=True, default=str))
        prints["vae"] = _of_modules(pipe.vae)
        prints["reward"] = _of_modules(*reward.models, *reward.heads)
    return prints


def _digest(*parts: Any) -> str:
    """Return a short hash of texts, numbers, their lists, and tensors."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.numpy().tobytes() if isinstance(part, Tensor) else repr(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:12]


def _of_modules(*modules: nn.Module) -> str:
    return _digest(*(part for module in modules for name, tensor in _weights(module) for part in _parts(name, tensor)))


def _weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield weights and saved buffers, without adapters, under the names that they have without adapters and compilation."""
    adapted = {path for path, m in module.named_modules() if isinstance(getattr(m, "base_layer", None), nn.Module)}
    for path, owner in module.named_modules():
        words = path.split(".")
        ancestors = {".".join(words[:i]): word for i, word in enumerate([*words, ""])}
        if any(ancestors[layer] != "base_layer" for layer in adapted & ancestors.keys()):
            continue
        offloaded = getattr(getattr(owner, "_hf_hook", None), "weights_map", None)
        plain = ".".join(word for word in words if word not in ("base_layer", "_orig_mod"))
        for name, tensor in (owner._parameters | owner._buffers).items():
            if tensor is not None and name not in owner._non_persistent_buffers_set:
                yield f"{plain}.{name}", offloaded[name] if tensor.is_meta and offloaded is not None else tensor


def _parts(name: str, tensor: Tensor) -> tuple[Any, ...]:
    """Return what identifies a tensor: name, shape, dtype and a sample of its values, if they can be read."""
    description = (name, tuple(tensor.shape), str(tensor.dtype))
    if tensor.is_meta or not tensor.numel():
        return (description,)
    indices = _scattered(tensor.numel(), _VALUES)
    try:
        tensor = tensor.detach() if tensor.ndim else tensor.detach().reshape(1)
        values = tensor[torch.unravel_index(indices.to(tensor.device), tensor.shape)]
        return description, values.cpu().double()
    except (RuntimeError, TypeError):  # a quantised format without indexing
        return (description,)


def _scattered(count: int, size: int) -> Tensor:
    """Return `size` of `count` indices; all of them if there are fewer."""
    return torch.arange(count) if count <= size else torch.arange(size) * _STRIDE % count


def _sampled_rows(tensor: Tensor) -> list[Any]:
    """Return what identifies samples (N, ...): shape, dtype and a hash of some of them."""
    rows = tensor[_scattered(len(tensor), _SAMPLES).to(tensor.device)].detach().cpu().double()
    return [tuple(tensor.shape), str(tensor.dtype), hashlib.sha256(rows.contiguous().numpy().tobytes()).hexdigest()]


def _of_schedule(scheduler: Any) -> str:
    """Return the fingerprint of the noise schedule, whichever sampler uses it."""
    config, alphas = scheduler.config, getattr(scheduler, "alphas_cumprod", None)
    levels = None if alphas is None else alphas.detach().cpu().double()
    return _digest(config.get("prediction_type"), config.get("num_train_timesteps"), levels)


def _of_adapters(networks: list[nn.Module]) -> str | None:
    """Return the fingerprint of the active adapters, or None without any."""
    parts: list[Any] = []
    for network in networks:
        for path, layer in network.named_modules():
            if not hasattr(layer, "base_layer") or getattr(layer, "disable_adapters", False):
                continue
            for adapter in getattr(layer, "active_adapters", ()):
                tensors = [(n, t) for n, t in layer.named_parameters() if adapter in n.split(".")]
                scale = getattr(layer, "scaling", {}).get(adapter)
                parts += [(path, adapter, scale)] if tensors else []
                parts += [part for name, tensor in tensors for part in _parts(name, tensor)]
    return _digest(*parts) if parts else None


def _of_attachment(attachment: Attachment) -> str:
    masker, strength = attachment.masker, attachment.strength
    tensors = [part for name, tensor in sorted(masker.tensors().items()) for part in _parts(name, tensor)]
    settings = (type(masker).__name__, masker.settings, attachment.seed, None if callable(strength) else strength)
    return _digest(settings, *tensors)
