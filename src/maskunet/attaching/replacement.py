"""How hooks reach into a network: replacing a layer's computation, and following gradient checkpointing.

Other libraries wrap `forward` too: accelerate's offload keeps the wrapped one in `_old_forward`, diffusers' hooks keep a
chain in `_diffusers_hook`. A replacement must be innermost, where weights are in place and in the dtype of the
computation, and it must come off in any order. So it is put where the layer's own forward is found, and later looked for
wherever it has been moved to.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

Context = Callable[[], contextlib.AbstractContextManager[None]]


def _places(module: nn.Module) -> list[tuple[Any, str]]:
    """Where the innermost forward of a module can be, the innermost place first."""
    chain = getattr(module, "_diffusers_hook", None)
    places: list[tuple[Any, str]] = [(reference, "forward") for reference in getattr(chain, "_fn_refs", [])]
    if hasattr(module, "_hf_hook") and hasattr(module, "_old_forward"):
        places.append((module, "_old_forward"))
    return [*places, (module, "forward")]


class Replacement:
    """A function in the place of a layer's own forward.

    Args:
        module: the layer.
        make: given the layer's own forward, returns what is called instead.
    """

    def __init__(self, module: nn.Module, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        self.module = module
        owner, name = _places(module)[0]
        self.original: Callable[..., Any] = getattr(owner, name)
        self.function = functools.update_wrapper(make(self.original), self.original)
        setattr(owner, name, self.function)

    def remove(self) -> None:
        """Put the layer's own forward back, wherever the replacement is now."""
        for owner, name in _places(self.module):
            if getattr(owner, name) is self.function:
                setattr(owner, name, self.original)
        own = self.module.__dict__.get("forward")
        if getattr(own, "__func__", None) is type(self.module).forward:
            del self.module.forward  # as it was: the class's


def follow_checkpointing(modules: Iterable[nn.Module], capture: Callable[[], Context]) -> None:
    """Run what gradient checkpointing computes again in the state of its first time.

    Args:
        modules: modules that may checkpoint.
        capture: called at the first computation; its result gives the context for each further one.
    """
    for module in modules:
        checkpoint = module.__dict__.get("_gradient_checkpointing_func")
        if checkpoint is None or hasattr(checkpoint, "followed"):
            continue
        module._gradient_checkpointing_func = _following(checkpoint, capture)  # type: ignore[assignment]


def _following(checkpoint: Callable[..., Any], capture: Callable[[], Context]) -> Callable[..., Any]:
    def follow(function: Callable[..., Any], *args: Any) -> Any:
        context = capture()

        def run(*inner: Any) -> Any:
            with context():
                return function(*inner)

        return checkpoint(run, *args)

    follow.followed = checkpoint  # type: ignore[attr-defined]
    return follow


def leave_checkpointing(modules: Iterable[nn.Module]) -> None:
    """Undo `follow_checkpointing`."""
    for module in modules:
        checkpoint = module.__dict__.get("_gradient_checkpointing_func")
        if hasattr(checkpoint, "followed"):
            module._gradient_checkpointing_func = checkpoint.followed  # type: ignore[union-attr,assignment]
