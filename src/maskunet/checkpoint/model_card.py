"""The model card of a masker: the hub's front matter, usage, recipe and settings."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..network import Network

_MERGEABLE = (
    " The masks are always the same, so `maskunet export` can also merge them into the weights, for programs that know "
    "nothing of masks."
)


def hub_id(name: str | None) -> str | None:
    """Return a name if it can be a repository "user/name"; None for a local folder, which nobody else can open.

    Args:
        name: name of a model or a data set.
    """
    if name is None or not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name) or Path(name).exists():
        return None
    return name


def write_card(
    masker: str,
    network: Network,
    settings: Mapping[str, Any],
    *,
    base_model: str | None = None,
    dataset: str | None = None,
    recipe: Mapping[str, str] | None = None,
    conditions: Sequence[str] = ("timestep", "sample"),
    replaced_guidance: float | None = None,
) -> str:
    """Return a masker's model card, Markdown with YAML front matter.

    Args:
        masker: name of the masker's class.
        network: the blocks and layers that it masks.
        settings: its settings, as JSON values.
        base_model: name of its base model; the front matter lists it if it is a hub id.
        dataset: name of its training data set; likewise.
        recipe: rows of the recipe table.
        conditions: what its masks depend on; nothing if they can be merged into the weights.
        replaced_guidance: scale of the guidance that the masks replace, or None.
    """
    layers, model, data = network.layers, hub_id(base_model), hub_id(dataset)
    header = ["---", "library_name: maskunet", "pipeline_tag: text-to-image"]
    if model:
        header += [f"base_model: {model}", "base_model_relation: adapter"]
    if data:
        header += ["datasets:", f"- {data}"]
    header += ["tags:", "- maskunet", "- text-to-image", "- diffusers", "---", ""]
    # Only the last part of a folder: its path is private.
    shown = model or (Path(base_model).name if base_model else None)
    name = shown or "the model it was made for"
    if model:
        import_line, call = "from diffusers import DiffusionPipeline", f'DiffusionPipeline.from_pretrained("{model}")'
    else:
        import_line, call = "from maskunet.pipelines import load_pipeline", f"load_pipeline({json.dumps(name)})"
    text = [
        f"# {masker} for {shown or 'a diffusion U-Net'}",
        "",
        f"Masks {network.weights:,} weights in {len(layers)} layers of the U-Net at every step and for every "
        f"sample; the weights themselves are untouched.{'' if conditions else _MERGEABLE}",
        "",
        *(
            [
                f"The masks do the work of classifier-free guidance of scale {replaced_guidance:g} in one call per step: "
                "sample with `guidance_scale=1`.",
                "",
            ]
            if replaced_guidance is not None
            else []
        ),
        "## Use",
        "",
        "```python",
        import_line,
        "import maskunet as mu",
        "",
        f"pipe = {call}",
        'mu.attach(pipe, mu.load("this folder or repository", pipe.unet))',
        f'image = pipe("a prompt"{", guidance_scale=1" if replaced_guidance is not None else ""}).images[0]',
        "```",
        "",
        "```bash",
        f'maskunet generate --model {json.dumps(name)} --masker "this folder or repository" --prompt "a prompt"',
        "```",
        "",
    ]
    if recipe:
        rows = [f"| {_cell(key)} | {_cell(value)} |" for key, value in recipe.items()]
        text += ["## Recipe", "", "| | |", "|---|---|", *rows, ""]
    values = json.dumps(_without_networks(settings), indent=2, default=str)
    text += ["## Settings", "", "```json", values, "```", ""]
    return "\n".join([*header, *text])


def _without_networks(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without the layers of each masker of a composition, which would fill pages."""
    shown = dict(settings)
    if isinstance(maskers := shown.get("maskers"), Mapping):
        shown["maskers"] = {name: {k: v for k, v in part.items() if k != "network"} for name, part in maskers.items()}
    return shown


def _cell(text: str) -> str:
    """Escape a text for a cell of a Markdown table."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|")
