"""Files of maskers, local or on the hub: `save`, `push`, `load`, and their model card."""

from .files import CONFIG, WEIGHTS, load, masker_class, masker_names, push, read_config, register, save
from .finite import first_not_finite, require_finite
from .model_card import hub_id, write_card

__all__ = [
    "CONFIG",
    "WEIGHTS",
    "first_not_finite",
    "hub_id",
    "load",
    "masker_class",
    "masker_names",
    "push",
    "read_config",
    "register",
    "require_finite",
    "save",
    "write_card",
]
