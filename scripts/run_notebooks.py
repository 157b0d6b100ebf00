"""Execute notebooks on the CPU and store them with their outputs.

    python scripts/run_notebooks.py                       # all of notebooks/
    python scripts/run_notebooks.py notebooks/01_pretrain_and_export.ipynb

Each notebook runs in a new temporary directory, whose path is removed from the outputs. Requires
the extra `dev`.
"""

import os
import sys
import tempfile
from pathlib import Path

import nbclient
import nbformat


def main() -> None:
    """Run the notebooks that the arguments name, or all."""
    if any(argument in ("-h", "--help") for argument in sys.argv[1:]):
        print(__doc__)
        return
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["PYTHONWARNINGS"] = "ignore"  # warnings contain paths of this machine
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)  # 03 measures compilation
    notebooks = Path(__file__).parents[1] / "notebooks"
    for path in map(Path, sys.argv[1:] or sorted(notebooks.glob("*.ipynb"))):
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as directory:
            nbclient.NotebookClient(
                notebook,
                timeout=600,
                record_timing=False,
                coalesce_streams=True,
                resources={"metadata": {"path": directory}},
            ).execute()
        for output in (output for cell in notebook.cells for output in cell.get("outputs", ())):
            if output.output_type == "stream":
                output.text = output.text.replace(f"{directory}{os.sep}", "")
        nbformat.write(notebook, path)
        print(f"stored {path} with its outputs", flush=True)


if __name__ == "__main__":
    main()
