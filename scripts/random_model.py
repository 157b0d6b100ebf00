"""Write a run directory with random weights, for measurements that need no training.

    python scripts/random_model.py --config=configs/pretrain.py:biomedlm_2_7b --out=random

The run has `config.json`, one checkpoint at step 0, and with --tokenizer=DIR a tokenizer. Every
command that takes `--model` accepts it. The config must set the vocabulary size, the context length
and the EOS id; `--set layers=8 width=384` changes its sizes.
"""

import argparse
import runpy
from pathlib import Path

import jax

from biomedlm_jax.corpus.tokenizer import load_tokenizer, save_tokenizer
from biomedlm_jax.files import write_json
from biomedlm_jax.model.families import make_config
from biomedlm_jax.training.checkpoint import save_model
from biomedlm_jax.training.state import random_model


def main() -> None:
    """Read the flags and write the run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="FILE:VARIANT of a pre-training config")
    parser.add_argument("--set", nargs="*", default=[], help="NAME=NUMBER, sizes of the model")
    parser.add_argument("--out", required=True, type=Path, help="a new directory")
    parser.add_argument("--tokenizer", help="directory of a tokenizer to copy")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights")
    options = parser.parse_args()

    path, _, variant = options.config.partition(":")
    get_config = runpy.run_path(path)["get_config"]
    fields = (get_config(variant) if variant else get_config()).model
    sizes = {name: int(size) for name, _, size in (one.partition("=") for one in options.set)}
    config = make_config({**fields.to_dict(), **sizes})

    options.out.mkdir(parents=True)
    write_json(options.out / "config.json", {"model": config.to_json()})
    if options.tokenizer:
        save_tokenizer(load_tokenizer(options.tokenizer), options.out)
    save_model(options.out, jax.jit(lambda: random_model(config, seed=options.seed))())


if __name__ == "__main__":
    main()
