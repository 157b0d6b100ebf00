"""The notebook runs from top to bottom, and shows what it says it shows."""

import json
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "03_generation.ipynb"


def test_the_notebook_runs(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "clear its outputs"
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    said = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    text = "".join(output.get("text", "") for output in said)
    assert "beam search draws nothing" in text
    assert "programs compiled by each call: [2, 0, 0, 0, 2, 0]" in text
    shown = [kind for output in said for kind in output.get("data", {})]
    assert shown.count("image/png") == 2
    assert "text/html" in shown
    # A sentence is likelier than its words in another order.
    plain, shuffled = json.loads(text.strip().splitlines()[-1])
    assert plain < 0.7 * shuffled
