"""The floors of the house: imports only go down, and no room crosses into configs or tests."""

import ast
from pathlib import Path

import pytest

import biomedlm_jax

PACKAGE = Path(__file__).parents[1] / "biomedlm_jax"
FLOORS = {
    "files": 0,
    "allocator": 0,
    "chips": 0,
    "mesh": 0,
    "processes": 0,
    "corpus": 1,
    "model": 1,
    "training": 2,
    "interop": 3,  # above training: it reads and writes run directories
    "generation": 4,
    "qa": 5,  # above generation: the harness plug-in generates, too
    "longform": 6,
    "planning": 6,
    "quickstart": 6,
    "benchmarks": 6,
    "commands": 7,
    "cli": 8,
}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def imports(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively; name the whole module"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(name: str) -> str:
    return name.split(".")[1].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in imports(path):
        assert name.split(".")[0] not in ("configs", "scripts", "tests"), f"{path} imports {name}"
        if name.startswith("biomedlm_jax."):
            there = room(name)
            if there in biomedlm_jax.__all__:
                assert FLOORS[here] >= 5, f"{here} imports the public face"
            elif there != here:
                assert FLOORS[there] < FLOORS[here], f"{here} imports {name}, which is not below it"


def test_every_room_has_a_floor():
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES}
    assert rooms == set(FLOORS)


def test_the_corpus_is_free_of_jax_but_for_batches():
    for path in (PACKAGE / "corpus").glob("*.py"):
        if path.name != "batches.py":
            assert not {n for n in imports(path) if n.split(".")[0] in ("jax", "flax", "optax")}


def test_mesh_axes_are_named_in_one_file():
    for path in FILES:
        literals = {
            node.value
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("PartitionSpec", "P")
            for node in node.args
            if isinstance(node, ast.Constant)
        }
        assert path.name == "mesh.py" or not literals, f"{path} names mesh axes {literals}"
