"""Download from the Hugging Face Hub: `hf://owner/name` names a repository."""

from pathlib import Path

SCHEME = "hf://"
PATTERNS = ["*.json", "*.jinja", "*.safetensors", "merges.txt", "pytorch_model*.bin", "README.md"]


def local(source: str | Path) -> Path:
    """Return `source` as a path; `hf://owner/name[@revision]` is downloaded to the Hub's cache.

    `.bin` files are left out if there are safetensors. Raises ValueError for a malformed name, or
    a download that fails.
    """
    if not str(source).startswith(SCHEME):
        return Path(source)
    import huggingface_hub

    name, _, revision = str(source).removeprefix(SCHEME).partition("@")
    if name.count("/") != 1:
        raise ValueError(f"got {source!r}; expected {SCHEME}owner/name[@revision]")
    try:
        files = huggingface_hub.HfApi().list_repo_files(name, revision=revision or None)
        safe = {"model.safetensors", "model.safetensors.index.json"} & set(files)
        ignored = ["*/*", *(["*.bin", "*.bin.index.json"] if safe else [])]
        return Path(
            huggingface_hub.snapshot_download(
                name, revision=revision or None, allow_patterns=PATTERNS, ignore_patterns=ignored
            )
        )
    except Exception as error:  # of the client, of httpx or of the system
        raise ValueError(f"could not download {source}: {error}") from error
