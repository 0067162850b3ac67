"""Files of maskers, local or on the hub: `save`, `push`, `load`, and their model card."""

from .files import CONFIG, WEIGHTS, load, masker_class, masker_names, push, read_config, register, save
from .model_card import hub_id, write_card

__all__ = [
    "CONFIG",
    "WEIGHTS",
    "hub_id",
    "load",
    "masker_class",
    "masker_names",
    "push",
    "read_config",
    "register",
    "save",
    "write_card",
]
