# SPDX-License-Identifier: Apache-2.0
"""Imports go one way: ops <- scans <- layers <- models <- data, metrics <- cli; models do not know each other."""

import ast
from pathlib import Path

import pytest

from vlmamba.models.remote_code import SHIM

ROOT = Path(__file__).parents[1]
ORDER = ["ops", "scans", "layers", "models", "data", "assets", "metrics", "cli"]
# rooms that stand beside the order up to the command: they import nothing of ours
ALONE = {"metrics"}
# these two tie the rooms together: the public names with the Auto registration, and conversion by family name
TOP = {"__init__", "auto", "convert", "version"}


def imports(path: Path) -> set[str]:
    """Every module that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def own(path: Path) -> set[str]:
    """Those of them that are this repository's."""
    return {name for name in imports(path) if name.split(".")[0] in ("vlmamba", "training", "eval", "tests")}


# the file that leads from a model's folder to the package is no part of the package
FILES = sorted(path for path in (ROOT / "vlmamba").rglob("*.py") if path.stem != SHIM)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_only_from_rooms_before_it(path):
    room = path.relative_to(ROOT / "vlmamba").with_suffix("").parts[0]
    if room in TOP:
        return
    allowed = ORDER[: ORDER.index(room) + 1]
    if room == "cli":
        allowed += [*TOP]
    if room in ALONE:
        allowed = [room]
    for name in own(path):
        package, *rest = name.split(".")
        assert package == "vlmamba", f"{path} imports {name}"
        # the bare package gives everything: only the command may take it
        assert rest[0] in allowed if rest else room == "cli", f"{path} imports {name}"


@pytest.mark.parametrize("path", sorted((ROOT / "vlmamba" / "models").rglob("*.py")), ids=lambda p: p.stem)
def test_a_family_imports_no_other(path):
    family = path.relative_to(ROOT / "vlmamba" / "models").parts[0]
    for name in own(path):
        if name.startswith("vlmamba.models."):
            other = name.split(".")[2]
            shared = (ROOT / "vlmamba" / "models" / f"{other}.py").exists()
            assert shared or other == family, f"{path} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_the_ops_scan(path):
    """No second scan: the state's recurrence is written nowhere outside the ops."""
    if "ops" in path.parts:
        return
    scanners = ("mamba_ssm", "causal_conv1d", "mambapy", "torch._higher_order_ops")
    assert not [name for name in imports(path) if name.startswith(scanners)]
    called = {node.func.attr for node in ast.walk(ast.parse(path.read_text())) if is_method_call(node)}
    assert not called & {"cumsum", "logcumsumexp", "cumprod", "associative_scan"}


def is_method_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
