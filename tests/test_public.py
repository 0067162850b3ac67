"""The public face: every name is there, and stays what it is whatever is imported first."""

from __future__ import annotations

import importlib
import pkgutil
import types

import maskunet as mu


def test_names_are_not_shadowed_by_modules() -> None:
    for module in pkgutil.walk_packages(mu.__path__, "maskunet."):
        if not module.name.endswith(("__main__", "triton_kernels")):  # the one needs triton
            importlib.import_module(module.name)
    for name in mu._PUBLIC:
        assert not isinstance(getattr(mu, name), types.ModuleType), name
    for name in mu._MODULES:
        assert isinstance(getattr(mu, name), types.ModuleType), name


def test_every_promised_name_is_there() -> None:
    promised = {"attach", "detach", "disabled", "record", "load", "train", "TrainConfig", "zoo", "relaxation"}
    promised |= {"MaskGenerator", "MaskGeneratorConfig", "MaskTable", "FixedMasks", "RandomMasks"}
    assert promised <= set(mu.__all__) == set(dir(mu))
    assert all(getattr(mu, name) is not None for name in mu.__all__)
