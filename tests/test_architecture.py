"""The architecture: import floors, unique file names, mirrored tests, names, and sizes."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

import biomedlm_jax

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "biomedlm_jax"
# Each floor imports from lower ones only.
FLOORS = (
    ("errors", "allocator"),
    ("buckets",),
    ("streams", "integrity"),
    ("files", "settings", "chips", "mesh", "distributed", "outputs", "html_page"),
    ("agreement",),
    ("corpus", "model"),
    ("training",),
    ("interop",),
    ("generation",),
    ("qa", "serving"),
    ("finetuning",),
    ("planning", "quickstart", "benchmarks"),
    ("commands",),
    ("cli",),
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
# Test files of no single module.
CROSS_CUTTING = {"architecture", "docs", "end_to_end", "notebooks", "scripts"}
CROSS_CUTTING_FOLDER = "faults"  # so are all in it
# The most lines of each wing: a wing that must grow says so here.
LINES = {
    ("model",): 2_350,
    ("training",): 3_540,
    ("corpus",): 9_460,
    ("generation",): 2_285,
    ("serving",): 635,
    ("interop",): 3_815,
    ("qa", "finetuning"): 8_590,
    ("planning",): 1_105,
    ("cli", "commands"): 2_185,
}
# GPT-2's names of itself, of its settings and of its tensors.
GPT2_NAMES = re.compile(
    r"gpt-?2|\b(n_(embd|layer|head|inner|ctx|positions)|w[tp]e|c_(attn|proj|fc)|ln_[12f]|lm_head)\b",
    re.IGNORECASE,
)
# Names that a reader cannot guess a meaning from.
VAGUE_NAMES = {"found", "asks", "asked", "said", "told", "tells", "knows", "heard"}


def wing(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports, anywhere in the file."""
    names = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import; name the whole module"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_are_from_lower_floors(path):
    here = wing(path)
    for name in imports(path):
        assert name.split(".")[0] not in ("configs", "scripts", "tests"), f"{path} imports {name}"
        if name.startswith("biomedlm_jax."):
            there = name.split(".")[1]
            if there in biomedlm_jax.__all__:
                assert FLOOR[here] >= FLOOR["planning"], f"{path} imports the public names"
            elif there != here:
                assert FLOOR[there] < FLOOR[here], f"{path} imports {name}, which is not below it"


def test_every_wing_has_a_floor():
    assert {wing(path) for path in FILES} == set(FLOOR)


def test_only_batches_import_jax_in_the_corpus():
    for path in (PACKAGE / "corpus").glob("*.py"):
        libraries = {name.split(".")[0] for name in imports(path)}
        assert path.name == "batches.py" or not libraries & {"jax", "flax", "optax"}, path


def test_only_mesh_names_mesh_axes():
    for path in FILES:
        axes = {
            argument.value
            for node in ast.walk(tree(path))
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("PartitionSpec", "P")
            for argument in node.args
            if isinstance(argument, ast.Constant)
        }
        assert path.name == "mesh.py" or not axes, f"{path} names the mesh axes {axes}"


def test_file_names_are_unique():
    # A command is named after what it calls.
    counts = Counter(path.stem for path in FILES if wing(path) != "commands")
    repeated = {name for name, count in counts.items() if count > 1}
    assert repeated <= {"config", "report"}


def test_every_module_has_its_test_file_and_no_other_exists():
    tests = ROOT / "tests"
    mirrored = {path.relative_to(PACKAGE).with_name(f"test_{path.name}") for path in FILES}
    existing = {path.relative_to(tests) for path in tests.rglob("test_*.py")}
    existing = {path for path in existing if path.parts[0] != CROSS_CUTTING_FOLDER}
    cross_cutting = {Path(f"test_{name}.py") for name in CROSS_CUTTING}
    assert sorted(map(str, mirrored - existing)) == [], "modules without tests"
    assert sorted(map(str, existing - mirrored - cross_cutting)) == [], "tests without a module"


def test_a_family_is_one_file_and_one_row():
    """Beside the family's file and its row, GPT-2's module and names occur nowhere."""
    # A class of tokenizers is called GPT2Tokenizer. The others choose a family for a config.
    allowed = {
        "model/gpt2.py",
        "model/llama.py",
        "model/families.py",
        "interop/gguf_vocabulary.py",  # names of llama.cpp
        "corpus/huggingface_tokenizer.py",
    }
    allowed |= {"quickstart/config.py", "commands/bench.py"}
    allowed |= {"quickstart/quickstart.py", "commands/quickstart.py"}
    named = []
    for path in FILES:
        if str(path.relative_to(PACKAGE)) in allowed or wing(path) == "benchmarks":
            continue
        whole = tree(path)
        docstrings = {
            node.body[0].value
            for node in ast.walk(whole)
            if hasattr(node, "body") and isinstance(node.body, list) and node.body
            if isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(whole):
            if isinstance(node, ast.ImportFrom | ast.Import):
                text = ast.unparse(node) if "huggingface_tokenizer" not in ast.unparse(node) else ""
            elif isinstance(node, ast.Constant) and node not in docstrings:
                text = node.value if isinstance(node.value, str) else ""
            else:
                continue
            if GPT2_NAMES.search(text):
                named.append(f"{path.relative_to(ROOT)}:{node.lineno}: {text[:60]}")
    assert named == []


def test_names_have_a_meaning():
    vague = []
    for path in (*FILES, *(ROOT / "tests").rglob("*.py")):
        for node in ast.walk(tree(path)):
            # Of variables, arguments, attributes, functions, classes and imports. The names of
            # tests are sentences.
            fields = (
                getattr(node, field, None) for field in ("id", "arg", "attr", "name", "asname")
            )
            names = [name for name in fields if isinstance(name, str)]
            words = {word for name in names for word in name.lower().split("_")}
            if words & VAGUE_NAMES and not names[0].startswith("test_"):
                line = getattr(node, "lineno", "import")
                vague.append(f"{path.relative_to(ROOT)}:{line}: {names[0]}")
    assert vague == []


def test_sizes():
    lines = Counter()
    for path in PACKAGE.rglob("*.py"):
        lines[wing(path)] += path.read_text(encoding="utf-8").count("\n")
    too_long = {
        " + ".join(wings): sum(lines[name] for name in wings)
        for wings, most in LINES.items()
        if sum(lines[name] for name in wings) > most
    }
    assert too_long == {}


def test_bad_input_has_one_exception():
    """A command ends with code 2 for InputError only, so a check may not raise its base class."""
    bad = {"ValueError", "FileNotFoundError", "FileExistsError", "NotADirectoryError"}
    for path in FILES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                name = getattr(node.exc.func, "id", "")
                assert name not in bad, f"{path}:{node.lineno} raises {name}; raise InputError"
