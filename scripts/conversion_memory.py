"""Measure the memory that importing and exporting a model takes.

    python scripts/conversion_memory.py --megabytes=300 --shards=4

Makes a random Llama of about so many MB in float32, in shards, converts it into a run directory and
back, each in a process of its own, and prints the peak of resident memory, less that of the same
with a tiny model, as a multiple of the float32 weights.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  registers bfloat16 with numpy
import numpy as np

from biomedlm_jax.interop.shards import write_tensors
from biomedlm_jax.interop.weights import file_name, tensor_shapes
from biomedlm_jax.model.families import abstract_model, config_to_hf
from biomedlm_jax.model.llama import LlamaConfig

# Prints the peak in KiB: the memory that the interpreter has taken since its own start.
CHILD = """
import resource, sys
from biomedlm_jax.cli import main
code = main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(code)
"""


def write_model(path: Path, config: LlamaConfig, *, shards: int, dtype: str) -> int:
    """Write a random model as a Hugging Face directory; return its bytes in float32."""
    shapes = tensor_shapes(abstract_model(config))
    shapes = {file_name(name, config): shape for name, shape in shapes.items()}
    numbers = sum(int(np.prod(shape)) for shape in shapes.values())
    random = np.random.default_rng(0)

    def values(name: str) -> np.ndarray:
        return (0.02 * random.standard_normal(shapes[name], np.float32)).astype(dtype)

    path.mkdir()
    size = 1 + np.dtype(dtype).itemsize * numbers // shards
    dtypes = dict.fromkeys(shapes, dtype)
    write_tensors(path, shapes, values, max_shard_size=size, dtypes=dtypes)
    (path / "config.json").write_text(json.dumps({**config_to_hf(config), "torch_dtype": dtype}))
    return 4 * numbers


def peak(*arguments: str) -> int:
    """Run a command in a process of its own; return its peak of resident memory in bytes."""
    command = [sys.executable, "-c", CHILD, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed: {done.stderr}")
    return 1024 * int(done.stdout.split()[-1])


def measure(
    folder: Path, config: LlamaConfig, *, shards: int, dtype: str
) -> tuple[int, dict[str, int]]:
    """Return the bytes of a model in float32, and the peak of each conversion."""
    size = write_model(folder / "source", config, shards=shards, dtype=dtype)
    out = f"--dtype={'source' if dtype != 'float32' else dtype}"
    conversions = {
        "import-hf": (f"--source={folder / 'source'}", f"--out={folder / 'run'}"),
        "export-hf": (f"--model={folder / 'run'}", f"--out={folder / 'export'}", out),
    }
    return size, {name: peak(name, *flags) for name, flags in conversions.items()}


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Print and return the multiple of each conversion."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=300, help="float32 weights of the model")
    parser.add_argument("--shards", type=int, default=4, help="files of weights")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    options = parser.parse_args(arguments)
    tiny = LlamaConfig(vocab_size=512, width=64, layers=2, heads=4, context_length=64)
    # A layer has 12.85 million parameters, the two vocabulary matrices 8.2 each.
    layers = max(1, round((options.megabytes / 4 - 16.4) / 12.85))
    shape: dict[str, Any] = {"vocab_size": 8_000, "width": 1_024, "heads": 16, "mlp_width": 2_816}
    large = LlamaConfig(**shape, layers=layers, context_length=64)
    given = {"shards": options.shards, "dtype": options.dtype}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("tiny", "large"):
            (Path(folder) / name).mkdir()
        _, constant = measure(Path(folder) / "tiny", tiny, **given)
        size, peaks = measure(Path(folder) / "large", large, **given)
    print(f"{size / 1e6:,.0f} MB of float32 weights, from {options.dtype}, {options.shards} shards")
    result = {}
    for name, most in peaks.items():
        result[name] = (most - constant[name]) / size
        of_tiny = f"{most / 1e6:,.0f} MB, a tiny model {constant[name] / 1e6:,.0f} MB"
        print(f"{name}: {result[name]:.2f} times the weights ({of_tiny})")
    return result


if __name__ == "__main__":
    main()
