"""The Hugging Face Hub: download `hf://owner/name`, upload an export."""

import re
from pathlib import Path

from biomedlm_jax.buckets import as_path, is_bucket
from biomedlm_jax.errors import InputError
from biomedlm_jax.integrity import SUMS, damage, has_sums, write_sums
from biomedlm_jax.interop.directories import ADAPTER, is_hugging_face
from biomedlm_jax.interop.modelcard import stated_licence

CARD = "README.md"
SCHEME = "hf://"
PATTERNS = ["*.json", "*.jinja", "*.safetensors", "merges.txt", "pytorch_model*.bin", CARD]
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


def upload_plan(directory: str | Path) -> dict[str, int]:
    """Return the files of an export that `push` sends, with their sizes in bytes.

    These are the files in SHA256SUMS, that file, README.md, and GGUF files. Raises InputError if
    the directory is no Hugging Face directory or adapter, differs from SHA256SUMS (but for the
    model card, which may be edited), or has no model card with a licence. Uses no network.
    """
    directory = as_path(directory)
    if is_bucket(directory) or not directory.is_dir():
        raise InputError(f"expected a local directory of an export, got {directory}")
    if not (is_hugging_face(directory) or (directory / ADAPTER).exists()):
        fix = f"export it: biomedlm export-hf --model={directory} --out=DIR"
        raise InputError(f"{directory} is no Hugging Face directory; {fix}")
    if not has_sums(directory):
        fix = f"export it: biomedlm export-hf --model={directory} --out=DIR"
        raise InputError(f"{directory} has no {SUMS} to compare its files with; {fix}")
    if problems := damage(directory, of=lambda name: not _may_change(name)):
        fix = "remove what does not belong there, or export again"
        raise InputError(f"{directory}: {problems[0]}; {fix}")
    if not (directory / CARD).exists():
        raise InputError(f"{directory} has no {CARD}, the model card; export it again")
    if stated_licence(directory) is None:
        fix = f"add a line such as license: apache-2.0 to the front of {directory / CARD}"
        raise InputError(f"the model card states no licence; {fix}")
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.stat().st_size for path in sorted(files)}


def _may_change(name: str) -> bool:
    return name == CARD or (name.endswith(".gguf") and "/" not in name)


def push(
    directory: str | Path, repo: str, *, private: bool = False, revision: str | None = None
) -> str:
    """Upload an export to the repository `owner/name` of the Hub in one commit; return its URL.

    The repository and the branch `revision` are made if they do not exist. The client of the Hub
    takes the token from its own place. SHA256SUMS gets the hash of a model card that was edited.
    Raises what `upload_plan` raises; InputError for a malformed name, a missing token, a repository
    that may not be written, or is public in spite of `private`; OSError if the upload fails.
    """
    check_repository(repo)
    import huggingface_hub
    from huggingface_hub import errors

    names = [*upload_plan(directory)]
    if damage(as_path(directory)):
        write_sums(as_path(directory))
    if huggingface_hub.is_offline_mode():
        raise InputError("HF_HUB_OFFLINE is set; unset it to upload")
    api = huggingface_hub.HfApi(token=True)  # the token of `hf auth login` or of HF_TOKEN
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        if private and not api.repo_info(repo).private:
            got = f"--private, and the repository {repo} exists and is public"
            raise InputError(f"got {got}; leave out --private, or choose another name")
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=directory,
            revision=revision,
            allow_patterns=names,
            commit_message="Upload an export of biomedlm_jax",
        )
    except InputError:
        raise
    except errors.LocalTokenNotFoundError:
        raise InputError("there is no token of the Hub; log in: hf auth login") from None
    except Exception as error:  # of the client, of httpx or of the system
        text = f"could not upload to {repo}: {' '.join(str(error).split())}"
        status = getattr(getattr(error, "response", None), "status_code", None)
        refused = isinstance(error, errors.HFValidationError) or status in (400, 401, 403, 404)
        raise (InputError if refused else OSError)(text) from error
    return str(commit.commit_url)


def check_repository(repo: str) -> None:
    """Raise InputError unless `repo` is owner/name."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo, re.ASCII):
        raise InputError(f"got --repo={repo}; expected owner/name")
