"""The imports of the package: from the floors below only, and each heavy library in one file alone."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import lrp_compress

PACKAGE = Path(lrp_compress.__file__).parent
# From the ground up; a file imports from files before it on its floor and from the floors below. A folder counts as one
# entry, within which imports make no circle.
FLOORS = [
    ["support", "config"],
    ["tracking", "networks", "agents"],
    ["environments", "deployment"],
    ["compression"],
    ["pictures", "training", "stages", "pipeline"],
    ["search", "reporting"],
    ["commands", "__main__", "train", "play", "firmware", "report", "api"],
]
ONLY_IMPORTER = {
    "ai_edge_litert": "deployment.files.converters",
    "ale_py": "environments.atari",
    "executorch": "deployment.files.converters",
    "huggingface_hub": "agents.sources",
    "litert_torch": "deployment.files.converters",
    "mlflow": "tracking",
    "onnx": ("agents.onnx_files", "networks.onnx_reading", "deployment", "tracking.models"),
    "optuna": ("search", "compression.tuning"),
    "sb3_contrib": "training",
    "stable_baselines3": "training",
    "torchao": "deployment.files.converters",
    "zennit": "compression.attribution",
}


def modules() -> dict[str, Path]:
    """Modules of the package by dotted name below it; ``__init__`` files are only docstrings or the version."""
    paths = [path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in paths}


def imports(path: Path) -> set[str]:
    """Full names of the modules a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def own(path: Path) -> set[str]:
    known = modules()
    return {name for full in imports(path) if (name := full.removeprefix("lrp_compress.")) in known and name != full}


def place(module: str) -> tuple[int, int]:
    entry = module.split(".")[0]
    for floor, entries in enumerate(FLOORS):
        if entry in entries:
            return floor, entries.index(entry)
    raise AssertionError(f"{module} stands on no floor; give it one in FLOORS")


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_come_from_below(module: str):
    for imported in own(modules()[module]):
        assert place(imported) <= place(module), f"{module} imports {imported}, which stands above it"


def test_imports_make_no_circle():
    graphlib.TopologicalSorter({module: own(path) for module, path in modules().items()}).prepare()


def test_heavy_libraries_have_one_importer():
    for module, path in modules().items():
        for library in {name.split(".")[0] for name in imports(path)} & set(ONLY_IMPORTER):
            places = ONLY_IMPORTER[library]
            allowed = (places,) if isinstance(places, str) else places
            assert f"{module}.".startswith(tuple(f"{place}." for place in allowed)), f"{module} imports {library}"


def test_packages_are_empty():
    for path in PACKAGE.rglob("*/__init__.py"):
        assert not imports(path), path


def test_the_package_imports_what_it_offers_only_when_used():
    code = "import sys, lrp_compress; print({'torch', 'hydra', 'numpy'} & set(sys.modules) or dir(lrp_compress))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(sorted([*lrp_compress.__all__, "__version__"]))


def test_the_command_line_starts_without_heavy_libraries():
    heavy = {"torch", "mlflow", "zennit", "ale_py", "numpy"}
    code = f"import sys, lrp_compress.commands.cli; print(*{heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
