"""What users may rely on, and that all of it is documented."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import effsam2_ray
from effsam2_ray import cli

PACKAGE = Path(effsam2_ray.__file__).parent
MODULES = sorted([*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "jobs").glob("*.py")])


def test_package_exports():
    assert sorted(effsam2_ray.__all__) == [
        "Config",
        "EffSam2Error",
        "ImageError",
        "LabelledImage",
        "Labeller",
        "Mask",
        "Prompts",
        "Rle",
        "load_preset_file",
        "preset_config",
    ]
    for name in effsam2_ray.__all__:
        assert getattr(effsam2_ray, name).__name__ == name


def test_unknown_export_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Labeler'"):
        effsam2_ray.Labeler  # noqa: B018


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE.parent)))
def test_everything_public_is_documented(path: Path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "the module has no docstring"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for method in node.body:
                if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef) and not method.name.startswith("_"):
                    assert ast.get_docstring(method), f"{node.name}.{method.name} has no docstring"


def test_every_command_can_be_called():
    modules = {path.stem for path in (PACKAGE / "commands").glob("*.py")} - {"__init__", "arguments", "data_set"}
    assert {command.__name__.rpartition(".")[2] for command in cli.COMMANDS} == modules


def test_package_says_that_it_is_typed():
    assert (PACKAGE / "py.typed").is_file()


@pytest.mark.parametrize(
    ("words", "number"), [([], None), (["--num-cluster-actors", "auto"], None), (["--num-cluster-actors", "3"], 3)]
)
def test_the_number_of_clustering_actors_may_be_left_open(words, number):
    parsed = cli._parser().parse_args(["label", "in", "--output", "out", *words])
    assert parsed.num_cluster_actors == number
