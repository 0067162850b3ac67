r"""Other forms of logits than a product of low rank, trained as the ablations train.

    python -m benchmarks.mask_forms      # an hour on one core; docs/results/mask_forms.{json,md}

All take the same condition h_b (B, 64); each is a low-rank masker whose entries come from smaller tables:

.. math:: S_{ij} = U_{p(i)} \operatorname{diag}(c) V_{q(j)}^T + \beta V_{q(j)}^T + U_{p(i)} \alpha + a_{p(i)} + b_{q(j)}

- rows: p(i) = i without the terms in j, so that whole outputs are kept or dropped;
- rows and columns: without the product, so that a weight has one term per row and one per column;
- heads: the rows of one head of q, k, v share an entry, and so do the columns of out that read it;
- blocks of 4 or 8: p(i) = i // n, q(j) = j // n;
- shared: layers of one shape in a block share U and V; a, b and the modulation belong to the layer;
- hashed: the layers of a block take all entries from two tables of 64 rows, one for outputs, one for inputs, at random.

Finished cells are saved in runs/mask_forms; rows of docs/results/ablations.json with the same settings are reused.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.records import RESULTS, read_record, save_record
from benchmarks.studies.ablations import REFERENCE, AblationConfig, Variant, cell_name, cells_folder, run_ablations
from benchmarks.studies.report import ablations_markdown
from maskunet.allocator import keep_freed_memory
from maskunet.files import make_folder, save_json
from maskunet.machine import machine
from maskunet.maskers import BlockInput, ConditionalMasker, LayerMask, LowRankMaskerConfig, Masker, build_masker
from maskunet.maskers.conditional import ConditionalConfig, layer_key
from maskunet.maskers.forms import FactoredLogits
from maskunet.network import BlockSpec, LayerSpec
from maskunet.relaxation import derive_seed
from maskunet.settings import choice, integer

FORMS = ("rows", "rows-and-columns", "heads", "blocks-4", "blocks-8", "shared", "hashed")
TABLE = 64  # rows of a hashed table


@dataclass(frozen=True)
class FormConfig(ConditionalConfig):
    """Settings of a form.

    Args:
        form: one of `FORMS`.
        heads: number of heads of an attention layer.
        targets, initial_logit, tau, rank, hidden, use_timestep, use_sample: as in `LowRankMaskerConfig`.
    """

    form: str = choice(*FORMS)
    heads: int = integer(4, at_least=1)
    rank: int = integer(16, at_least=2)
    hidden: int = integer(64, at_least=1)


class _Table(nn.Module):
    """Entries of the rows or columns of a weight: factors (N, r - 1) and a term (N,)."""

    def __init__(self, entries: int, rank: int, term: float, spread: float) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.randn(entries, rank - 1) * spread)
        self.term = nn.Parameter(torch.full((entries,), term))


class _Form(nn.Module):
    """The logits of one layer: the entries of its rows and columns, and the terms of its form."""

    def __init__(self, layer: LayerSpec, config: FormConfig, outputs: _Table, inputs: _Table, index: Any) -> None:
        super().__init__()
        self.shape, self.outputs, self.inputs = layer.shape, outputs, inputs
        self.register_buffer("rows", index[0], persistent=False)
        self.register_buffer("columns", index[1], persistent=False)
        is_output = layer.name.endswith("to_out.0")
        self.product = config.form not in ("rows", "rows-and-columns", "heads")
        self.by_row = config.form != "heads" or not is_output
        self.by_column = config.form != "rows" and (config.form != "heads" or is_output)
        # Without one side's term, the other side starts at the whole initial logit.
        self.start = 0.0 if self.by_row and self.by_column else config.initial_logit / 2

    def forward(self, modulation: Tensor) -> FactoredLogits:
        scale, row, column = modulation.chunk(3, -1)  # c - 1, alpha, beta
        u, v = self.outputs.factors[self.rows], self.inputs.factors[self.columns]
        weights = torch.zeros(len(modulation), *u.shape, dtype=u.dtype, device=u.device)
        if self.product:
            weights = weights + u * (scale + 1)[:, None]
        if self.by_column:
            weights = weights + column[:, None]
        offsets = torch.full((len(modulation), len(u), 1), self.start, dtype=u.dtype, device=u.device)
        if self.by_row:
            offsets = offsets + u @ row[:, :, None] + self.outputs.term[self.rows][:, None]
        right = torch.cat([v, v.new_ones(len(v), 1)], -1)
        terms = self.inputs.term[self.columns] if self.by_column else torch.zeros_like(v[:, 0])
        return FactoredLogits((torch.cat([weights, offsets], -1), right), terms, self.shape)


class _Block(nn.Module):
    def __init__(self, block: BlockSpec, config: FormConfig) -> None:
        super().__init__()
        self.temb_proj = nn.Linear(block.temb_channels, config.hidden, bias=False)
        self.sample_proj = nn.Linear(block.in_channels, config.hidden)
        self.modulation = nn.Linear(config.hidden, 3 * (config.rank - 1) * len(block.layers), bias=False)
        nn.init.zeros_(self.modulation.weight)
        self.names, self.layers = [x.name for x in block.layers], nn.ModuleDict()
        hashed: dict[str, _Table] = {}
        shared: dict[Any, nn.Parameter] = {}
        spread = 1 / math.sqrt(config.rank)
        for layer in block.layers:
            index = _index(layer, config)
            tables = []
            for side, entries in zip(("rows", "columns"), index):
                # The product starts at zero, its gradient does not; without it the rows' factors carry the condition.
                is_zero = config.form not in ("rows", "rows-and-columns", "heads") and side == "rows"
                make = partial(
                    _Table, rank=config.rank, term=config.initial_logit / 2, spread=0.0 if is_zero else spread
                )
                if config.form == "hashed":
                    tables.append(hashed.setdefault(side, make(TABLE)))
                    continue
                table = make(int(entries.max()) + 1)
                if config.form == "shared":
                    table.factors = shared.setdefault((side, layer.shape), table.factors)
                tables.append(table)
            self.layers[layer_key(layer.name, block.name)] = _Form(layer, config, *tables, index)

    def forward(self, inputs: BlockInput) -> dict[str, LayerMask]:
        parts = [inputs.hidden_states] if inputs.skip is None else [inputs.hidden_states, inputs.skip]
        z = self.sample_proj(torch.cat([part.mean((2, 3)) for part in parts], 1)) + self.temb_proj(inputs.temb)
        modulations = self.modulation(F.relu(z)).chunk(len(self.names), -1)
        return {n: f(m) for n, f, m in zip(self.names, self.layers.values(), modulations, strict=True)}


def _index(layer: LayerSpec, config: FormConfig) -> tuple[Tensor, Tensor]:
    """Return the entry of each row and of each column."""
    sizes = layer.shape[0], layer.weights // layer.shape[0]
    if config.form.startswith("blocks-"):
        width = int(config.form.removeprefix("blocks-"))
        return tuple(torch.arange(n) // width for n in sizes)  # type: ignore[return-value]
    if config.form == "heads":
        is_output = layer.name.endswith("to_out.0")
        rows, columns = (torch.arange(n) * config.heads // n for n in sizes)
        return (torch.zeros_like(rows), columns) if is_output else (rows, torch.zeros_like(columns))
    if config.form == "hashed":
        entries = []
        for side, n in zip(("rows", "columns"), sizes):
            generator = torch.Generator().manual_seed(derive_seed("hashed", layer.name, side))
            entries.append(torch.randint(TABLE, (n,), generator=generator))
        return entries[0], entries[1]
    columns = torch.zeros(sizes[1], dtype=torch.long) if config.form == "rows" else torch.arange(sizes[1])
    return torch.arange(sizes[0]), columns


class FormMasker(ConditionalMasker):
    """A masker of one of the forms."""

    config_class: ClassVar[type[FormConfig]] = FormConfig

    def build_block(self, block: BlockSpec) -> nn.Module:
        """Return the networks of one block."""
        return _Block(block, self.config)

    def tensors(self) -> dict[str, Tensor]:
        """Return the state dict with each shared tensor once, as safetensors requires."""
        unique = dict(self.named_parameters())
        return {name: tensor for name, tensor in self.state_dict().items() if name in unique}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Load what `tensors` returned; the other names of a shared tensor may be missing."""
        missing = self.load_state_dict(tensors, strict=False).missing_keys
        assert not set(missing) & set(dict(self.named_parameters())), missing


def build_form(unet: nn.Module, config: ConditionalConfig, *, seed: int) -> Masker:
    """Build the masker of a row, one of the library's or a `FormMasker`."""
    if isinstance(config, FormConfig):
        return FormMasker.for_unet(unet, config, seed=seed)
    return build_masker(unet, config, seed=seed)


#: The rows of the study.
VARIANTS: dict[str, Variant] = {
    REFERENCE: Variant(),
    "low rank, r = 16": Variant(LowRankMaskerConfig()),
    "low rank, r = 16, at 0.5 of the rate": Variant(LowRankMaskerConfig(), 0.5),
    # One seed each; three for the form closest to low rank in gain.
    **{name: Variant(FormConfig(form=name), seeds=None if name == "shared" else 1) for name in FORMS},
}


def reuse_ablations(work: Path, config: AblationConfig) -> None:
    """Copy the cells of the ablations' record into this study's folder, if their settings are the same."""
    record = read_record(RESULTS / "ablations.json")
    folder = cells_folder(work, config)
    if record.get("config") != asdict(config) or folder.exists():
        return
    cells = {
        f"cells/{cell_name(n, s)}": c for n in ("base", *VARIANTS) for s, c in enumerate(record["cells"].get(n, []))
    }
    for name, cell in (cells | {f"snapshots/{c['step']:06d}": c for c in record["snapshots"]}).items():
        path = folder / f"{name}.json"
        make_folder(path.parent)
        save_json(cell, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/mask_forms"), help="folder of finished cells")
    parser.add_argument("--seeds", type=int, default=3, help="training seeds")
    parser.add_argument("--only", nargs="+", help="rows to run, by name")
    parser.add_argument("--no-write", action="store_true", help="write nothing to docs/results")
    args = parser.parse_args()
    keep_freed_memory()
    config = AblationConfig(seeds=args.seeds)
    reuse_ablations(args.work, config)
    log = partial(print, flush=True)
    record = run_ablations(args.work, config, names=args.only, variants=VARIANTS, build=build_form, log=log) | {
        "machine": machine()
    }
    table = ablations_markdown(record)
    print(table)
    if not args.no_write:
        save_record(record, RESULTS / "mask_forms.json", "Other forms of logits", table)


if __name__ == "__main__":
    main()
