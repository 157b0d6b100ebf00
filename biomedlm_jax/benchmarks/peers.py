"""Transformers' models as peers: "hf ATTENTION ...", and "torch ATTENTION ..." in training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from biomedlm_jax.benchmarks.rounds import torch_device
from biomedlm_jax.errors import InputError

OPTIONS = ("static", "compile")
UNCACHED = ("compile",)  # where no side has a cache of keys and values


def check_hf(name: str, options: Sequence[str] = OPTIONS) -> list[str]:
    """Return the words of a peer's name after hf; InputError for a name of another form."""
    words = name.split()
    if words[:1] != ["hf"] or len(words) < 2 or set(words[2:]) - {*options}:
        form = " ".join(["hf ATTENTION", *(f"[{option}]" for option in options)])
        only = "; only generate has a cache that can be static" if "static" in words else ""
        raise InputError(
            f"got the peer {name!r}; expected '{form}', where ATTENTION is transformers' "
            f"attn_implementation, such as sdpa or eager{only}"
        )
    return words[1:]


def read_hf(path: str | Path, **options: Any) -> Any:
    """Return transformers' causal language model of a directory, read without a progress bar."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(path, **options)


def load_hf(name: str, path: str, *, dtype: str) -> Any:
    """Return transformers' model of a Hugging Face directory, for inference, on torch's device.

    With `compile` in the name, torch.compile compiles it at its first calls.
    """
    import torch

    kernel, *options = check_hf(name)
    model = read_hf(path, attn_implementation=kernel, dtype=getattr(torch, dtype))
    model = model.to(torch_device()).eval()
    if "compile" in options:
        mode = "reduce-overhead" if torch.cuda.is_available() else "default"
        model.forward = torch.compile(model.forward, mode=mode, fullgraph=True)
    return model


def check_torch(name: str) -> None:
    """Raise InputError unless `name` is that of a training peer."""
    words = name.split()
    if words[:1] != ["torch"] or len(words) < 2 or set(words[2:]) - {"fused", "compile"}:
        raise InputError(
            f"got the peer {name!r}; expected 'torch ATTENTION [fused] [compile]', where "
            "ATTENTION is transformers' attn_implementation, such as sdpa or eager"
        )
