"""Imports point one way; only the pipeline imports ray, only the model layer imports sam2 and segment_anything."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "effsam2_ray"
MODULES = sorted(PACKAGE.rglob("*.py"))


def imported_names(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def imports(path: Path, package: str) -> bool:
    return any(name == package or name.startswith(package + ".") for name in imported_names(path))


def test_every_module_was_found():
    assert len(MODULES) > 30


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_pipeline_imports_ray(path: Path):
    if imports(path, "ray"):
        assert path.is_relative_to(PACKAGE / "pipeline")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_model_layer_imports_the_models(path: Path):
    if imports(path, "sam2") or imports(path, "segment_anything"):
        assert path.is_relative_to(PACKAGE / "model")


LAYERS = [
    ["errors", "config", "uris"],
    [
        "attention",
        "rle",
        "masks",
        "distances",
        "spanning_tree",
        "device_tree",
        "clustering",
        "medoids",
        "prompts",
        "cluster_prompts",
    ],
    ["candidates", "merging", "nms", "filters", "results", "postprocess", "metrics"],
    ["model"],
    ["fingerprint", "images", "storage", "inputs", "schema", "output"],
    ["labeller"],
    ["demo", "show"],
    ["datasets", "runs", "evaluation", "benchmark", "numerics", "planning", "probe"],
    ["pipeline"],
    ["commands"],
    ["cli", "__main__"],
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
# The shared layer of arrays is flat, and so are the files: within one row any order goes, as long as there is no cycle.
EXCEPTIONS = {("model", "storage")}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if parts == ("__init__",):
        return
    assert parts[0] in RANK, f"{parts[0]} has no place in LAYERS"
    for name in imported_names(path):
        if name.startswith("effsam2_ray."):
            target = name.split(".")[1]
            allowed = RANK[target] <= RANK[parts[0]] or (parts[0], target) in EXCEPTIONS
            assert allowed, f"{'.'.join(parts)} imports {target}, which lies above it"


def test_labeller_loads_without_ray():
    code = "import sys, effsam2_ray; effsam2_ray.Labeller; assert 'ray' not in sys.modules, 'ray was imported'"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
