import os
import subprocess
import sys
from pathlib import Path

CODE = """
from biomedlm_jax.cli import main
code = main(["plan", "--config=configs/tiny.py", "--topology=v5e:3x3"])
import jax
print(code, jax.config.jax_platforms)
"""


def test_planning_for_devices_elsewhere_looks_for_none_here():
    # In a process that is free to choose a platform; jax reads the choice when it is imported.
    environment = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env=environment,
        check=True,
    )
    assert done.stdout.split() == ["2", "cpu"], done.stderr
    assert "unknown topology 'v5e:3x3'; the shapes of v5e are" in done.stderr
