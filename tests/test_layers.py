"""The package's layers: a module imports only from lower floors, read from its source."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "maskunet"

# From the ground up; docs/architecture.md prints this list. Packages (or single modules) of one floor do not import each
# other, nor anything above them.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "exports", "version", "allocator", "machine", "distributed", "generators", "moving"),
    ("relaxation", "settings", "files", "pretrained", "network", "quantised", "model_files"),
    ("operators", "targets", "diffusion", "metrics", "images", "plotting", "pipelines"),
    ("checkpoint", "rewards", "shapes", "charts"),
    ("maskers", "data"),
    ("attaching",),
    ("sampling", "zoo"),
    ("training", "searching", "syngen", "merging"),
    ("evaluation",),
    ("analysis",),
    ("ui",),
    ("cli",),
    ("__main__",),
)


def floor(module: str) -> int:
    for i, names in enumerate(FLOORS):
        if module.split(".")[0] in names:
            return i
    raise AssertionError(f"{module} has no floor; add its package to FLOORS")


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


def test_packages_import_only_from_lower_floors() -> None:
    wrong = []
    for module, path in modules().items():
        package = module.split(".")[0]
        for imported in imports(module, path):
            other = imported.split(".")[0]
            if other != package and floor(imported) >= floor(module):
                wrong.append(f"{module} (floor {floor(module)}) imports {imported} (floor {floor(imported)})")
    assert not wrong, "\n".join(wrong)


def test_modules_of_a_package_import_each_other_in_one_direction() -> None:
    """No circle anywhere, imports inside functions included."""
    known = modules()
    edges = {module: {i for i in imports(module, path) if i in known} for module, path in known.items()}
    # A package's __init__ only collects the names of its modules, which may import one another through it from outside.
    edges = {module: {i for i in found if not module.startswith(i + ".")} for module, found in edges.items()}
    for module in known:
        if known[module].name == "__init__.py":
            edges[module] = {i for i in edges[module] if not i.startswith(module + ".")}
    while edges:
        leaves = {module for module, found in edges.items() if not found & edges.keys()}
        assert leaves, f"a circle among {sorted(edges)}"
        edges = {module: found for module, found in edges.items() if module not in leaves}


def test_loading_the_zoo_imports_no_recipe() -> None:
    known = modules()
    loading = {m: p for m, p in known.items() if m.split(".")[0] == "zoo" and not m.startswith("zoo.recipe")}
    assert not [m for m, p in loading.items() if any(i.startswith("zoo.recipe") for i in imports(m, p))]


def test_hooks_are_registered_in_one_file() -> None:
    words = ("register_forward_pre_hook(", "register_forward_hook(", "register_hook(")
    users = {name for name, path in modules().items() if any(word in path.read_text() for word in words)}
    assert users == {"attaching.attachment"}


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
    long = {name: n for name, path in modules().items() if (n := len(path.read_text().splitlines())) > 300}
    assert not long


def test_test_files_have_names_of_their_own() -> None:
    """pytest cannot collect two files of one name."""
    names = [path.name for path in (PACKAGE.parents[1] / "tests").rglob("test_*.py")]
    assert sorted(set(names)) == sorted(names)
