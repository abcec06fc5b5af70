"""Imports point downwards only; this test is the architecture document that cannot go stale."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# each layer may import itself and the layers below it
LAYERS = [
    ["ahlm.__main__"],
    ["ahlm.ablate"],
    ["ahlm.ablation"],
    ["ahlm.train", "ahlm.convert", "ahlm.check"],
    ["ahlm.report"],
    ["ahlm.infer", "ahlm.evaluate"],
    ["ahlm.checkpoint", "ahlm.run_folder"],
    ["ahlm.localization", "ahlm.model", "ahlm.evaluation"],
    ["ahlm.data"],
    ["ahlm.arguments", "ahlm.timeline", "ahlm.files", "ahlm.config", "ahlm.errors", "ahlm.kernels"],
    ["ahlm._core"],
]
# and what more a part may not import
STRANGERS = {
    "ahlm.model": {"ahlm.localization"},
    "ahlm.localization": {"ahlm.model", "ahlm.data", "ahlm.evaluation"},
    "ahlm.evaluation": {"ahlm.model", "ahlm.localization", "ahlm.data"},
}


def unit(module: str) -> str:
    """The part of the package a module belongs to, as named in LAYERS."""
    return ".".join(module.split(".")[:2])


def imports(path: Path) -> set[str]:
    """Modules of ours that a file imports, `TYPE_CHECKING` blocks included, relative imports left out."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {
                f"{node.module}.{alias.name}" if node.module == "ahlm" else str(node.module) for alias in node.names
            }
    return {unit(name) for name in found if name.startswith("ahlm.")}


def layer(name: str) -> int:
    """Its index in LAYERS; raises where it has none."""
    return next(i for i, names in enumerate(LAYERS) if name in names)


@pytest.mark.parametrize("path", sorted((ROOT / "ahlm").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downwards(path: Path) -> None:
    own = unit(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    if own == "ahlm":
        return  # the package's lazy names
    lowest = layer(own)
    for other in imports(path):
        assert layer(other) >= lowest, f"{path} imports {other}, which stands above it"
        assert other not in STRANGERS.get(own, ()), f"{path} imports {other}"


def test_kernels_import_nothing_of_ours() -> None:
    """Nor from above their own folder; `cuda.py` asks ahlm where its library lies, `core.py` loads the core."""
    folder = ROOT / "kernels"
    for path in folder.rglob("*.py"):
        assert not imports(path), path
        depth = len(path.relative_to(folder).parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level <= depth, path
            elif isinstance(node, ast.Import) and any(alias.name == "ahlm" for alias in node.names):
                assert path.name == "cuda.py"


@pytest.mark.parametrize(
    "module",
    [
        *("ahlm", "ahlm.check", "ahlm.convert", "ahlm.evaluate", "ahlm.evaluation", "ahlm.localization"),
        *("ahlm.data.inspection", "ahlm.kernels.lcs"),
    ],
)
def test_starts_without_torch_and_numba(module: str) -> None:
    code = f"import sys, {module}; sys.exit(bool({{'torch', 'numba'}} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
