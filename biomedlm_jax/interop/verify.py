"""verify_hf(): does transformers compute what this library computes from the same directory?"""

import warnings
from pathlib import Path

import jax
import numpy as np

from biomedlm_jax.interop.directories import HUGGING_FACE, kind_of, model_config
from biomedlm_jax.interop.huggingface import load

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
    """Compare the logits of a Hugging Face directory here and in transformers, in float32.

    `batch` rows of random tokens, and one of tokenised text where there is a tokenizer, each of
    `length` tokens (by default 64, or all positions of a smaller model), go through this library
    and through transformers' `attn_implementation="eager"`; then through its default attention,
    with a warning where that computes another function. With `run`, the logits of that run
    directory are compared as well.

    Returns:
      A dict of figures, ready for JSON; differences are absolute differences of logits.

    Raises:
      ValueError: a difference (but for the default attention's) exceeds `tolerance`, or torch and
        transformers are not installed.
    """
    torch, transformers = _peers()
    if kind_of(path) != HUGGING_FACE:
        raise ValueError(f"{path} is a run directory; export it first, and give it as --run")
    positions = model_config(path).context_length
    length = min(64, positions) if length is None else length
    if batch < 1 or not 1 <= length <= positions:
        raise ValueError(
            f"got batch={batch}, length={length}; both are at least 1, and the model has "
            f"{positions} positions"
        )
    config, tokens, here = _logits(path, batch=batch, length=length, seed=seed)
    flag = config.scale_attn_by_inverse_layer_idx

    def there(**options) -> tuple[np.ndarray, str]:
        model = transformers.AutoModelForCausalLM.from_pretrained(path, **options).float().eval()
        with torch.no_grad():
            logits = model(torch.from_numpy(tokens.astype(np.int64))).logits
        return logits.numpy(), str(getattr(model.config, "_attn_implementation", "unknown"))

    eager, _ = there(attn_implementation="eager")
    report = {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "jax": jax.__version__,
        "scale_attn_by_inverse_layer_idx": flag,
        "rows": tokens.shape[0],
        "length": tokens.shape[1],
        "tolerance": tolerance,
        "largest_logit": float(np.abs(eager).max()),
        "eager": _within(tolerance, path, here, eager, "those that transformers computes"),
    }
    del eager
    if run is not None:
        _, _, trained = _logits(run, batch=batch, length=length, seed=seed, tokens=tokens)
        report["run"] = _within(tolerance, path, here, trained, f"those of {run}")
        del trained
    default, name = there()
    report["default"] = {"attention": name, **_difference(here, default)}
    report["default"]["ignores_inverse_layer_scale"] = False
    if report["default"]["max"] > tolerance:
        if flag:
            without, _ = there(attn_implementation="eager", scale_attn_by_inverse_layer_idx=False)
            ignored = _difference(default, without)["max"] <= tolerance
            report["default"]["ignores_inverse_layer_scale"] = ignored
        warnings.warn(_loudly(report), RuntimeWarning, stacklevel=2)
    return report


def _logits(path, *, batch: int, length: int, seed: int, tokens: np.ndarray | None = None):
    """The config, tokens and float32 logits of a directory; the model is freed on return."""
    # GPU and TPU would multiply in TF32 or bfloat16, which says nothing about the weights.
    with jax.default_matmul_precision("highest"):
        model, tokenizer = load(path, compute_dtype="float32", attention="xla")
        if tokens is None:
            tokens = _tokens(model.config, tokenizer, batch=batch, length=length, seed=seed)
        elif tokens.max() >= model.config.vocab_size:
            raise ValueError(f"{path} has a vocabulary of {model.config.vocab_size} only")
        return model.config, tokens, np.asarray(_forward(model, tokens))


@jax.jit
def _forward(model, tokens):
    return model(tokens)


def _tokens(config, tokenizer, *, batch: int, length: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed).integers(0, config.vocab_size, (batch, length))
    if tokenizer is None:
        return random.astype(np.int32)
    ids = tokenizer.encode(TEXT).ids
    text = np.resize(ids, (1, length))  # repeated as often as it takes
    return np.concatenate([random, text]).astype(np.int32)


def _difference(a: np.ndarray, b: np.ndarray) -> dict:
    if a.shape != b.shape:
        raise ValueError(f"got logits of shape {b.shape}; expected {a.shape}")
    difference = np.abs(a.astype(np.float32) - b.astype(np.float32))
    per_position = difference.mean(axis=(0, 2))
    return {
        "max": float(difference.max()),
        "mean": float(difference.mean()),
        "mean_per_position": [float(f"{value:.3g}") for value in per_position],
    }


def _within(tolerance: float, path, here: np.ndarray, other: np.ndarray, whose: str) -> dict:
    difference = _difference(here, other)
    if not difference["max"] <= tolerance:  # so that nan is an error too
        raise ValueError(
            f"the logits of {path} differ by up to {difference['max']:.3g} from {whose}; expected "
            f"at most {tolerance:g}: the directory does not hold the function that it should"
        )
    return difference


def _loudly(report: dict) -> str:
    default, version = report["default"], report["transformers"]
    what = f"transformers {version} computes ANOTHER FUNCTION by default ({default['attention']})"
    by = f"logits differ by up to {default['max']:.3g}"
    if default["ignores_inverse_layer_scale"]:
        what = (
            f"transformers {version} IGNORES scale_attn_by_inverse_layer_idx by default "
            f"({default['attention']})"
        )
        by += ", and equal those of a model without it"
    advice = 'load with attn_implementation="eager", or export with --fold_attention_scale'
    return f"{what}: {by}; {advice}"


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
