"""The package's layers: a module imports only from lower floors, read from its source."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "maskunet"

# From the ground up. A module belongs to its longest matching prefix; modules of one floor do not import each other.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("exports",),
    ("errors", "relaxation", "allocator", "hooks", "freezing"),
    ("files", "machine", "plotting"),
    ("operators.triton_kernels",),
    (
        "operators.masked",
        "operators.packing",
        "targets",
        "trace",
        "metrics.distances",
        "metrics.geneval",
    ),
    ("operators.fused_gpu", "operators.tiles"),
    ("operators.choice",),
    ("operators.fused",),
    ("operators", "metrics", "shapes.vocabulary", "diffusion"),
    ("rewards.base", "rewards.preprocess", "rewards.head", "rewards.prompts", "rewards.files", "rewards.open_clip"),
    ("rewards.clip", "rewards.image_reward", "rewards.registry", "rewards.smoothing"),
    ("rewards.hpsv2", "rewards.similarity", "rewards.aesthetic"),
    ("rewards",),
    ("maskers.base", "maskers.authors", "shapes.scenes", "guidance.phrases", "guidance.maps"),
    ("maskers.conditional",),
    (
        "maskers.generator",
        "maskers.low_rank",
        "maskers.held",
        "maskers.table",
        "maskers.fixed",
        "maskers.schedule",
        "maskers.random",
        "shapes.drawing",
        "shapes.near_misses",
        "shapes.captions",
        "guidance.tokens",
    ),
    ("maskers", "shapes.judge", "shapes", "guidance.binding"),
    ("attachment", "data.cached", "card"),
    ("data.images",),
    ("data.encoding",),
    ("checkpoint", "data", "searching.residence"),
    (
        "searching.sampling",
        "training.base",
        "training.checkpoints",
        "training.config",
        "evaluation.generation",
        "evaluation.features",
        "evaluation.coco",
        "evaluation.intervals",
        "evaluation.blip_vqa",
    ),
    ("evaluation.shards", "evaluation.detectors", "evaluation.mask2former", "evaluation.scores"),
    (
        "training.accelerator",
        "training.methods",
        "training.sampler",
        "training.optimizer",
        "evaluation.comparison",
        "evaluation.folder",
    ),
    ("evaluation.geneval", "evaluation.t2i_compbench", "evaluation.benchmark"),
    (
        "training.validation",
        "training.recipe",
        "training.reward",
        "searching.config",
        "searching.step",
        "searching.reuse",
        "searching.live",
        "searching.rollout",
    ),
    ("searching.preparation", "searching.ascent", "searching.drafts"),
    ("searching.result",),
    ("searching.engine", "searching.rivals", "guidance.engine"),
    ("searching", "guidance"),
    ("training.trainer", "evaluation.searched"),
    ("training",),
    ("evaluation", "evaluation.report", "zoo.stage", "zoo.tokenizer"),
    ("zoo.autoencoder", "zoo.denoiser"),
    ("zoo.clip", "zoo.groups", "zoo.matcher", "zoo.relations"),
    ("zoo.reward", "zoo.matching"),
    ("zoo.recipe", "zoo"),
    ("rewards.shapes",),
    ("pipelines", "reproduce.report"),
    ("reproduce.world",),
    ("reproduce.table1", "reproduce.ablations", "reproduce.search"),
    ("reproduce.amortised",),
    ("reproduce.plots", "reproduce.search_report", "reproduce.amortised_report"),
    ("reproduce",),
    ("analysis.base", "analysis.layers"),
    ("analysis.subject", "analysis.distances"),
    ("analysis.stream",),
    (
        "analysis.random_masks",
        "analysis.density",
        "analysis.overlap",
        "analysis.magnitudes",
        "analysis.emergence",
        "analysis.embedding",
    ),
    ("analysis.registry",),
    ("analysis",),
    ("ui.words", "ui.folder", "ui.curve"),
    ("ui.models", "ui.asked"),
    ("ui.studio",),
    ("ui.parts",),
    ("ui.compare_tab", "ui.search_tab", "ui.analyses_tab"),
    ("ui.page",),
    ("ui.serve",),
    ("ui",),
    ("cli.pictures", "cli.info", "cli.convert", "cli.train", "cli.inputs"),
    ("cli.analyze", "cli.demo", "cli.reproduce", "cli.benchmark", "cli.search", "cli.ui"),
    ("cli.evaluate",),
    ("cli.main", "cli"),
    ("__main__",),
)

# Imports that look upwards on purpose, made inside a function: the methods that lead from a masker to its files.
LATE = {("maskers.base", "checkpoint")}


def floor(module: str) -> int:
    matches = [(len(name), i) for i, names in enumerate(FLOORS) for name in names if _within(module, name)]
    assert matches, f"{module} has no floor; add it to FLOORS"
    return max(matches)[1]


def _within(module: str, name: str) -> bool:
    return module == name or module.startswith(name + ".")


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if parts:
            found[".".join(parts)] = path
    return found


def imports(module: str, path: Path) -> set[str]:
    """Modules of the package that a module imports, at any depth of its source."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    known = set(modules())
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                base = package[: len(package) - node.level + 1]
                source = [*base, *(node.module.split(".") if node.module else [])]
            elif node.module and node.module.split(".")[0] == "maskunet":
                source = node.module.split(".")[1:]
            else:
                continue
            for alias in node.names:
                name = ".".join([*source, alias.name])
                found.add(name if name in known else ".".join(source))
        elif isinstance(node, ast.Import):
            found |= {n.name.removeprefix("maskunet.") for n in node.names if n.name.startswith("maskunet.")}
    return found - {"", module}


def test_modules_import_only_from_lower_floors() -> None:
    wrong = []
    for module, path in modules().items():
        for imported in imports(module, path):
            if imported in modules() and floor(imported) >= floor(module) and (module, imported) not in LATE:
                wrong.append(f"{module} (floor {floor(module)}) imports {imported} (floor {floor(imported)})")
    assert not wrong, "\n".join(wrong)


def test_hooks_are_registered_in_one_file() -> None:
    words = ("register_forward_pre_hook(", "register_forward_hook(", "register_hook(")
    users = {name for name, path in modules().items() if any(word in path.read_text() for word in words)}
    assert users == {"attachment"}


def test_no_forbidden_imports() -> None:
    """Packages whose registry builds break beside a CPU torch."""
    forbidden = {"torchvision", "timm", "open_clip", "fairscale", "lpips"}
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not {n.split(".")[0] for n in names} & forbidden, name


def test_only_the_inception_extra_needs_torchvision() -> None:
    project = tomllib.loads((PACKAGE.parents[1] / "pyproject.toml").read_text())["project"]
    extras = {"core": project["dependencies"]} | project["optional-dependencies"]
    names = {extra: {re.split(r"[\[<>=]", line)[0] for line in lines} for extra, lines in extras.items()}
    pull = {"torchvision", "torch-fidelity", "torchmetrics"}
    assert {extra for extra, found in names.items() if found & pull} == {"inception"}


def test_files_stay_short() -> None:
    long = {name: n for name, path in modules().items() if (n := len(path.read_text().splitlines())) > 320}
    assert not long
