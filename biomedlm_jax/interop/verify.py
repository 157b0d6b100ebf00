"""verify_hf(): does transformers compute what this library computes from the same directory?"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tokenizers import Tokenizer

from biomedlm_jax.interop.directories import HUGGING_FACE, kind_of, model_config
from biomedlm_jax.interop.heads import CHOICE, Head, load_finetuned, read_head
from biomedlm_jax.interop.huggingface import PAD, load
from biomedlm_jax.interop.tensorfiles import TensorFiles
from biomedlm_jax.model.config import ModelConfig
from biomedlm_jax.model.families import config_to_hf, family
from biomedlm_jax.model.heads import Scorer

TOLERANCE = 1e-4
TEXT = (
    "Photosynthesis and chromatography are words of the laboratory; myocardium and thrombin are "
    "words of the ward. We measured the cytotoxicity of nanoparticles in 24 mice (p < 0.05) and "
    "report the ECG of every animal."
)


def verify_hf(
    path: str | Path,
    *,
    run: str | Path | None = None,
    batch: int = 2,
    length: int | None = None,
    seed: int = 0,
    tolerance: float = TOLERANCE,
) -> dict:
    """Compare the outputs of a Hugging Face directory here and in transformers, in float32.

    Outputs are logits, or the scores of a fine-tuned model's head at the last token of each row.
    `batch` rows of random tokens, and one of text if there is a tokenizer, each of `length` tokens
    (by default 64, or all positions of a smaller model), go through this library and through
    transformers' `attn_implementation="eager"`; then through its default attention, with a warning
    if that computes another function. With `run`, the outputs of that run directory are compared
    as well. transformers has no class for choices: its trunk's states go through torch's Linear.

    Returns:
      A dict of figures, ready for JSON; differences are absolute differences of outputs.

    Raises:
      ValueError: a difference (except the default attention's) exceeds `tolerance`, or torch and
        transformers are not installed.
    """
    torch, transformers = _peers()
    if kind_of(path) != HUGGING_FACE:
        raise ValueError(f"{path} is a run directory; export it first, then pass it as --run")
    config, head = model_config(path), read_head(path)
    length = min(64, config.context_length) if length is None else length
    if batch < 1 or not 1 <= length <= config.context_length:
        raise ValueError(
            f"got batch={batch}, length={length}; expected at least 1 and at most the model's "
            f"{config.context_length} positions"
        )
    tokens, here = _outputs(
        path, head, lambda *of: _tokens(*of, batch=batch, length=length, seed=seed)
    )
    peer = _Peer(path, config, head, tokens)
    eager, _ = peer.outputs(attn_implementation="eager")
    foldable = _foldable(config)
    report = {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "jax": jax.__version__,
        "head": head and head.kind,
        **{name: value for name, (value, _) in foldable.items()},
        "rows": tokens.shape[0],
        "length": tokens.shape[1],
        "tolerance": tolerance,
        "largest_output": float(np.abs(eager).max()),
        "eager": _within(tolerance, path, here, eager, "those that transformers computes"),
    }
    del eager
    if run is not None:
        _, trained = _outputs(run, read_head(run), lambda *of: _known_tokens(tokens, run, *of))
        report["run"] = _within(tolerance, path, here, trained, f"those of {run}")
        del trained
    default, name = peer.outputs()
    report["default"] = {"attention": name, **_difference(here, default), "ignores": []}
    if report["default"]["max"] > tolerance:
        if foldable:
            without = {setting: folded for setting, (_, folded) in foldable.items()}
            other, _ = peer.outputs(attn_implementation="eager", **without)
            if _difference(default, other)["max"] <= tolerance:
                report["default"]["ignores"] = list(foldable)
        warnings.warn(_warning(report), RuntimeWarning, stacklevel=2)
    return report


class _Peer:
    """The directory as transformers loads it."""

    def __init__(
        self, path: str | Path, config: ModelConfig, head: Head | None, tokens: np.ndarray
    ):
        self._path, self._config, self._head, self._tokens = path, config, head, tokens

    def outputs(self, **options: Any) -> tuple[np.ndarray, str]:
        """Return logits or scores, and the name of the attention."""
        torch, transformers = _peers()
        choice = self._head is not None and self._head.kind == CHOICE
        loader = transformers.AutoModelForCausalLM
        if self._head is not None:
            loader = transformers.AutoModelForSequenceClassification
        if choice:
            loader = transformers.AutoModel
        model = loader.from_pretrained(self._path, **options).float().eval()
        with torch.no_grad():
            result = model(torch.from_numpy(self._tokens.astype(np.int64)))
            if choice:
                files = TensorFiles(self._path, self._config)
                weight, bias = (
                    torch.from_numpy(files.read(f"score.{name}")) for name in ("weight", "bias")
                )
                states = result.last_hidden_state[:, -1]
                values = torch.nn.functional.linear(states, weight, bias)[:, 0]
            else:
                values = result.logits
        return values.numpy(), str(getattr(model.config, "_attn_implementation", "unknown"))


def _foldable(config: ModelConfig) -> dict[str, tuple[Any, Any]]:
    """The settings of Hugging Face's config that folding would change: (value, value if folded)."""
    folded, _ = family(config.model_type).fold_attention_scale(config)
    now, then = config_to_hf(config), config_to_hf(folded)
    return {name: (now[name], then[name]) for name in now if now[name] != then[name]}


def _outputs(
    path: str | Path,
    head: Head | None,
    make_tokens: Callable[[ModelConfig, Tokenizer | None], np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens and float32 outputs of a directory; the model is freed on return."""
    # GPU and TPU would multiply in TF32 or bfloat16, which hides differences of the weights.
    execution = {"compute_dtype": "float32", "attention": "xla"}
    with jax.default_matmul_precision("highest"):
        if head is None:
            model, tokenizer = load(path, **execution)
        else:
            model, tokenizer, _ = load_finetuned(path, **execution)
        tokens = make_tokens(model.config, tokenizer)
        return tokens, np.asarray(_forward(model, tokens))


@jax.jit
def _forward(model, tokens_BxL):
    if isinstance(model, Scorer):
        return model(model.trunk.hidden(tokens_BxL)[:, -1])
    return model(tokens_BxL)


def _tokens(
    config: ModelConfig, tokenizer: Tokenizer | None, *, batch: int, length: int, seed: int
) -> np.ndarray:
    tokens = np.random.default_rng(seed).integers(0, config.vocab_size, (batch, length))
    if tokenizer is not None:
        ids = tokenizer.encode(TEXT).ids
        text = np.resize(ids, (1, length))  # repeated as often as it takes
        tokens = np.concatenate([tokens, text])
        # transformers scores the last token that is not padding.
        tokens[tokens == tokenizer.token_to_id(PAD)] = 0
    return tokens.astype(np.int32)


def _known_tokens(tokens: np.ndarray, path, config: ModelConfig, _) -> np.ndarray:
    if tokens.max() >= config.vocab_size:
        raise ValueError(f"{path} has a vocabulary of {config.vocab_size} only")
    return tokens


def _difference(a: np.ndarray, b: np.ndarray) -> dict:
    if a.shape != b.shape:
        raise ValueError(f"got outputs of shape {b.shape}; expected {a.shape}")
    difference = np.abs(a.astype(np.float32) - b.astype(np.float32))
    figures = {"max": float(difference.max()), "mean": float(difference.mean())}
    if difference.ndim == 3:
        per_position = difference.mean(axis=(0, 2))
        figures["mean_per_position"] = [float(f"{value:.3g}") for value in per_position]
    return figures


def _within(tolerance: float, path, here: np.ndarray, other: np.ndarray, whose: str) -> dict:
    difference = _difference(here, other)
    if not difference["max"] <= tolerance:  # so that nan is an error too
        raise ValueError(
            f"the outputs of {path} differ by up to {difference['max']:.3g} from {whose}; expected "
            f"at most {tolerance:g}; export the run again"
        )
    return difference


def _warning(report: dict) -> str:
    default, version = report["default"], report["transformers"]
    ignored = ", ".join(default["ignores"])
    verb = f"IGNORES {ignored}" if ignored else "computes ANOTHER FUNCTION"
    more = ", and equal those of a model without it" if ignored else ""
    return (
        f"transformers {version} {verb} by default ({default['attention']}): outputs differ by up "
        f'to {default["max"]:.3g}{more}; load with attn_implementation="eager", or export with '
        "--fold_attention_scale"
    )


def _peers():
    try:
        import torch
        import transformers
    except ModuleNotFoundError as error:
        raise ValueError(
            f"verify-hf compares with transformers, and {error.name} is not installed; "
            "pip install 'biomedlm-jax[hf]'"
        ) from None
    return torch, transformers
