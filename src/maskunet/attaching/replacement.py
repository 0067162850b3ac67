"""Replace a layer's forward, and follow gradient checkpointing.

Other libraries wrap `forward` too: accelerate's offload keeps the wrapped one in `_old_forward`, and diffusers' hooks
keep a chain in `_diffusers_hook`. A replacement must be innermost, where weights are on the device and in the dtype of
the computation, and removable in any order. So it replaces the layer's own forward wherever that is stored, and `remove`
looks for it in every such attribute.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

Context = Callable[[], contextlib.AbstractContextManager[None]]


def _forward_attributes(module: nn.Module) -> list[tuple[Any, str]]:
    """Objects and attributes that can hold the innermost forward of a module, innermost first."""
    chain = getattr(module, "_diffusers_hook", None)
    attributes: list[tuple[Any, str]] = [(reference, "forward") for reference in getattr(chain, "_fn_refs", [])]
    if hasattr(module, "_hf_hook") and hasattr(module, "_old_forward"):
        attributes.append((module, "_old_forward"))
    return [*attributes, (module, "forward")]


class Replacement:
    """A function that replaces a layer's own forward.

    Args:
        module: the layer.
        wrap: returns the replacement of the layer's own forward.
    """

    def __init__(self, module: nn.Module, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        self.module = module
        owner, name = _forward_attributes(module)[0]
        self.original: Callable[..., Any] = getattr(owner, name)
        self.function = functools.update_wrapper(wrap(self.original), self.original)
        setattr(owner, name, self.function)

    def remove(self) -> None:
        """Restore the layer's own forward, wherever the replacement is now."""
        for owner, name in _forward_attributes(self.module):
            if getattr(owner, name) is self.function:
                setattr(owner, name, self.original)
        forward = self.module.__dict__.get("forward")
        if getattr(forward, "__func__", None) is type(self.module).forward:
            del self.module.forward  # uncovers the class's own forward


def follow_checkpointing(modules: Iterable[nn.Module], capture: Callable[[], Context]) -> None:
    """Make gradient checkpointing recompute in the state of the first computation.

    Args:
        modules: modules that may checkpoint.
        capture: called at the first computation; returns the context of the further ones.
    """
    for module in modules:
        checkpoint = module.__dict__.get("_gradient_checkpointing_func")
        if checkpoint is None or hasattr(checkpoint, "followed"):
            continue
        module._gradient_checkpointing_func = _Following(checkpoint, capture)  # type: ignore[assignment]


class _Following:
    """A checkpointing function that recomputes in the state of the first computation.

    Args:
        checkpoint: the function that it replaces.
        capture: see `follow_checkpointing`.
    """

    def __init__(self, checkpoint: Callable[..., Any], capture: Callable[[], Context]) -> None:
        self.followed, self.capture = checkpoint, capture

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        context = self.capture()

        def run(*inner: Any) -> Any:
            with context():
                return function(*inner)

        return self.followed(run, *args)


def leave_checkpointing(modules: Iterable[nn.Module]) -> None:
    """Undo `follow_checkpointing`.

    Args:
        modules: the same modules.
    """
    for module in modules:
        checkpoint = module.__dict__.get("_gradient_checkpointing_func")
        if hasattr(checkpoint, "followed"):
            module._gradient_checkpointing_func = checkpoint.followed  # type: ignore[union-attr,assignment]
