"""Execute notebooks and store them with their outputs.

    python scripts/run_notebooks.py                       # all of notebooks/
    python scripts/run_notebooks.py notebooks/01_pretrain_and_export.ipynb

Each notebook runs in a new temporary directory. Requires the extra `dev`.
"""

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
    notebooks = Path(__file__).parents[1] / "notebooks"
    for path in map(Path, sys.argv[1:] or sorted(notebooks.glob("*.ipynb"))):
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as directory:
            nbclient.NotebookClient(
                notebook,
                timeout=600,
                record_timing=False,
                resources={"metadata": {"path": directory}},
            ).execute()
        nbformat.write(notebook, path)
        print(f"stored {path} with its outputs")


if __name__ == "__main__":
    main()
