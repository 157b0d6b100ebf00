"""Every notebook runs from top to bottom in an empty directory and is stored with its outputs.

The test runs replace the cell tagged `parameters` by smaller sizes; `scripts/run_notebooks.py`
runs and stores the notebooks as they are.
"""

import ast
import os
import re
import time
from pathlib import Path

import pytest
from processes import Process

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
# Values of the cell tagged `parameters` in the test run.
SIZES = {
    "01_pretrain_and_export.ipynb": {"DOCUMENTS": 240, "STEPS": 8},
    "02_question_answering.ipynb": {"FAMILIES": 40, "DOCUMENTS": 600, "STEPS": 8, "EPOCHS": 1},
    "03_generation.ipynb": {"STEPS": 20},
    "04_plan_a_pod.ipynb": {"LAYERS": 2, "WIDTH": 256, "LENGTH": 256, "ROWS": 16},
    "05_efficiency.ipynb": {"LAYERS": 1, "ROUNDS": 1, "QUESTIONS": 2, "DETAILS": False},
}
# What each one prints, and how many plots it shows at least.
PRINTED = {
    "01_pretrain_and_export.ipynb": (
        "largest difference of logits below 1e-4: True",
        "equal greedy text: True",
    ),
    "02_question_answering.ipynb": (),
    "03_generation.ipynb": (
        "beam search does not sample",
        "programs compiled by each call: [2, 0, 0, 0, 2, 0]",
    ),
    "04_plan_a_pod.ipynb": ("8 x TPU v5 lite | attention kernel: splash", "fits: True"),
    "05_efficiency.ipynb": ("exit code 0", "all sides compute the same: True"),
}
PLOTS = {
    "01_pretrain_and_export.ipynb": 2,
    "02_question_answering.ipynb": 4,
    "03_generation.ipynb": 2,
    "04_plan_a_pod.ipynb": 3,
    "05_efficiency.ipynb": 1,
}
KERNEL = """
import matplotlib, os, runpy

os.setsid()
# The import, before the fork, chose another one.
matplotlib.rcParams["backend"] = "module://matplotlib_inline.backend_inline"
runpy.run_module("ipykernel_launcher", run_name="__main__")
"""
nbformat = pytest.importorskip("nbformat", reason="nbformat is in the extra `dev`")


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.name)
def path(request) -> Path:
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


def check_outputs(notebook, name: str) -> None:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [output for output in outputs if output.output_type == "error"]
    text = "".join(output.get("text", "") for output in outputs)
    assert [line for line in PRINTED[name] if line not in text] == []
    shown = [kind for output in outputs for kind in output.get("data", {})]
    assert shown.count("image/png") >= PLOTS[name]


def test_there_are_notebooks():
    assert NOTEBOOKS


def test_it_is_stored_with_its_outputs(notebook, path):
    nbformat.validate(notebook)
    check_outputs(notebook, path.name)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))  # one run from top to bottom


def test_its_outputs_are_small_and_name_no_directory_of_the_machine(notebook, path):
    assert path.stat().st_size < 1_000_000
    for output in (output for cell in notebook.cells for output in cell.get("outputs", ())):
        data = {k: v for k, v in output.get("data", {}).items() if not k.startswith("image/")}
        absolute = re.findall(r"(?<![\w.<])/\w[\w.-]*/", str([output.get("text", ""), data]))
        assert absolute == []


@pytest.mark.slow
def test_it_runs(notebook, path, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is in the extra `dev`")
    pytest.importorskip("ipykernel", reason="ipykernel is in the extra `dev`")
    from jupyter_client.provisioning import local_provisioner

    (cell,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", ()))
    assigned = [line.targets[0].id for line in ast.parse(cell.source).body]
    assert assigned == list(SIZES[path.name])
    cell.source = "\n".join(f"{name} = {value}" for name, value in SIZES[path.name].items())
    # The kernel has a process of its own, which compiles more than it computes.
    flags = {"XLA_FLAGS": os.environ["FAST_COMPILATION"]}

    def launch(command, *, cwd, **options):
        process = Process(["-c", KERNEL, *command[3:]], cwd=cwd, env=flags)
        while os.getpgid(process.pid) != process.pid:  # the client will send signals to the group
            time.sleep(0.01)
        return process

    monkeypatch.setattr(local_provisioner, "launch_kernel", launch)
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    check_outputs(notebook, path.name)
