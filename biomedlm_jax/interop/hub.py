"""Download from the Hugging Face Hub: `hf://owner/name` names a repository."""

from pathlib import Path

from biomedlm_jax.buckets import as_path
from biomedlm_jax.errors import InputError

SCHEME = "hf://"
PATTERNS = ["*.json", "*.jinja", "*.safetensors", "merges.txt", "pytorch_model*.bin", "README.md"]
PATTERNS += ["*.model", "vocab.txt"]  # tokenizers that are refused, not overlooked


def download(source: str | Path) -> Path:
    """Return `source` as a path; `hf://owner/name[@revision]` is downloaded to the Hub's cache.

    `.bin` files are left out if there are safetensors. With HF_HUB_OFFLINE=1 the cache alone is
    read. Raises InputError for a malformed name, one that the Hub does not have or show, or a file
    that the cache lacks; OSError for a download that fails.
    """
    if not str(source).startswith(SCHEME):
        return as_path(source)
    import huggingface_hub

    name, _, revision = str(source).removeprefix(SCHEME).partition("@")
    if name.count("/") != 1:
        raise InputError(f"got {source!r}; expected {SCHEME}owner/name[@revision]")
    safe, offline = set(), huggingface_hub.is_offline_mode()
    try:
        if not offline:  # model_info fails at once without a network; list_repo_files tries again
            info = huggingface_hub.HfApi().model_info(name, revision=revision or None, timeout=10)
            files = {file.rfilename for file in info.siblings or ()}
            safe = {"model.safetensors", "model.safetensors.index.json"} & files
        ignored = ["*/*", *(["*.bin", "*.bin.index.json"] if safe else [])]
        return Path(
            huggingface_hub.snapshot_download(
                name,
                revision=revision or None,
                allow_patterns=PATTERNS,
                ignore_patterns=ignored,
                local_files_only=offline,
            )
        )
    except Exception as error:  # of the client, of httpx or of the system
        text = f"could not download {source}: {' '.join(str(error).split())}"
        absent = huggingface_hub.errors.RepositoryNotFoundError  # gated ones are of this kind, too
        known = isinstance(error, absent | huggingface_hub.errors.RevisionNotFoundError)
        raise (InputError if known or offline else OSError)(text) from error
