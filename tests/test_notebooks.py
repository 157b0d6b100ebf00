"""Every notebook runs from top to bottom, in an empty directory, and is kept without outputs."""

from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
# What each one prints, and how many plots it shows at least.
SAID = {
    "01_pretrain_and_export.ipynb": (
        "largest difference of logits below 1e-4: True",
        "equal greedy text: True",
    ),
    "02_question_answering.ipynb": (),
    "03_generation.ipynb": (
        "beam search does not sample",
        "programs compiled by each call: [2, 0, 0, 0, 2, 0]",
    ),
}
PLOTS = {
    "01_pretrain_and_export.ipynb": 2,
    "02_question_answering.ipynb": 1,
    "03_generation.ipynb": 2,
}
nbformat = pytest.importorskip("nbformat", reason="nbformat is in the extra `dev`")


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.name)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def test_there_are_notebooks():
    assert NOTEBOOKS


def test_it_is_valid_and_kept_without_outputs(notebook):
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)


def test_it_runs(notebook, request, tmp_path, monkeypatch):
    name = request.node.callspec.params["notebook"].name
    nbclient = pytest.importorskip("nbclient", reason="nbclient is in the extra `dev`")
    pytest.importorskip("ipykernel", reason="ipykernel is in the extra `dev`")
    pytest.importorskip("matplotlib", reason="matplotlib is in the extra `dev`")
    monkeypatch.setenv("XLA_FLAGS", "")  # a kernel of its own, on the devices there are
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [output for output in outputs if output.output_type == "error"]
    text = "".join(output.get("text", "") for output in outputs)
    assert [line for line in SAID[name] if line not in text] == []
    shown = [kind for output in outputs for kind in output.get("data", {})]
    assert shown.count("image/png") >= PLOTS[name]
