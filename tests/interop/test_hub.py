from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalTokenNotFoundError

from biomedlm_jax.errors import InputError
from biomedlm_jax.integrity import damage
from biomedlm_jax.interop import hub


@pytest.fixture
def requests(monkeypatch):
    """The requests to a Hub that is not reached; the repository holds `files`."""
    requests = {"files": ["config.json", "pytorch_model.bin"]}

    def download(name, **options):
        requests.update(name=name, **options)
        return "/cache/model"

    def info(self, name, **options):
        files = [SimpleNamespace(rfilename=file) for file in requests["files"]]
        return SimpleNamespace(siblings=files)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", info)
    return requests


def test_a_path_stays_a_path(requests):
    assert hub.download("some/where") == Path("some/where")
    assert "name" not in requests


def test_a_repository_is_downloaded(requests):
    assert hub.download("hf://owner/name@v1") == Path("/cache/model")
    assert (requests["name"], requests["revision"]) == ("owner/name", "v1")
    assert "*.bin" not in requests["ignore_patterns"]


def test_safetensors_spare_the_pickles(requests):
    requests["files"].append("model.safetensors")
    hub.download("hf://owner/name")
    assert "*.bin" in requests["ignore_patterns"]
    assert requests["revision"] is None


def test_malformed_name(requests):
    with pytest.raises(ValueError, match=r"got 'hf://name'; expected hf://owner"):
        hub.download("hf://name")


def test_a_download_that_fails(monkeypatch):
    def fail(self, name, **_):
        raise OSError("no\nroute")

    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    with pytest.raises(OSError, match="could not download hf://owner/name: no route"):
        hub.download("hf://owner/name")


def test_an_unreachable_hub_is_tried_once(monkeypatch, caplog):
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(OSError, match=r"could not download hf://owner/name: .*refused"):
        hub.download("hf://owner/name")
    assert "Retry" not in caplog.text


def test_offline_mode_reads_the_cache_alone(requests, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: True)
    monkeypatch.delattr(huggingface_hub.HfApi, "model_info")
    assert hub.download("hf://owner/name") == Path("/cache/model")
    assert requests["local_files_only"] is True


class FakeApi:
    """A Hub with one repository, which notes the calls."""

    calls: ClassVar[list] = []
    private, error = False, None

    def __init__(self, token=None):
        assert token is True  # the client's own place

    def create_repo(self, repo, **options):
        if self.error:
            raise self.error
        self.calls.append(("create_repo", repo, options))

    def repo_info(self, repo):
        return SimpleNamespace(private=self.private)

    def create_branch(self, repo, **options):
        self.calls.append(("create_branch", repo, options))

    def upload_folder(self, *, folder_path, allow_patterns, **options):
        everything = {str(p.relative_to(folder_path)) for p in Path(folder_path).rglob("*")}
        assert everything == {*allow_patterns}
        self.calls.append(("upload_folder", options["repo_id"], options["revision"]))
        return SimpleNamespace(commit_url="https://hub/owner/name/commit/1")


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(FakeApi, "calls", [])
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
    return FakeApi


def with_licence(directory):
    card = directory / "README.md"
    card.write_text(card.read_text().replace("---\n", "---\nlicense: apache-2.0\n", 1))
    return directory


def test_an_export_is_uploaded_in_one_commit(fake, release):
    with pytest.raises(InputError, match=r"states no licence; add a line such as license: apache"):
        hub.push(release, "owner/name")
    assert fake.calls == []
    (with_licence(release) / "model-q8_0.gguf").write_bytes(b"GGUF")
    assert damage(release)
    assert hub.push(release, "owner/name", revision="v2").endswith("/commit/1")
    assert [call[:2] for call in fake.calls] == [
        (name, "owner/name") for name in ("create_repo", "create_branch", "upload_folder")
    ]
    assert fake.calls[0][2] == {"private": False, "exist_ok": True}
    assert (fake.calls[1][2]["branch"], fake.calls[2][2]) == ("v2", "v2")
    assert damage(release) == []  # SHA256SUMS has the new card's hash
    with pytest.raises(InputError, match="owner/name exists and is public"):
        hub.push(release, "owner/name", private=True)
    fake.private = True
    hub.push(release, "owner/name", private=True)
    fake.private = False


def test_damaged_and_foreign_directories_are_not_uploaded(fake, release, tmp_path):
    with_licence(release)
    config = release / "config.json"
    before = config.read_bytes()
    for change, message in (
        (lambda: (release / "notes.txt").write_text("x"), r"notes\.txt is not in SHA256SUMS"),
        (lambda: (release / "notes.txt").unlink(), None),
        (lambda: config.write_bytes(before + b" "), r"config\.json was changed after"),
        (lambda: config.write_bytes(before), None),
        (lambda: (release / "README.md").unlink(), r"has no README\.md, the model card"),
        (lambda: (release / "SHA256SUMS").unlink(), "has no SHA256SUMS to compare"),
        (lambda: config.unlink(), "is no Hugging Face directory; export it: biomedlm export-hf"),
    ):
        change()
        if message:
            with pytest.raises(InputError, match=message):
                hub.upload_plan(release)
    with pytest.raises(InputError, match="expected a local directory"):
        hub.upload_plan(tmp_path / "none")
    for name in ("name", "a/b/c", "owner/na me", "https://x/y"):
        with pytest.raises(InputError, match="expected owner/name"):
            hub.push(release, name)
    assert fake.calls == []


def http_error(status):
    response = SimpleNamespace(status_code=status, headers={}, request=None)
    error = OSError("no\nentry")
    error.response = response
    return error


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (LocalTokenNotFoundError("x"), InputError, "log in: hf auth login"),
        (http_error(403), InputError, "could not upload to owner/name: no entry"),
        (http_error(503), OSError, "could not upload to owner/name: no entry"),
        (ConnectionError("no\nroute"), OSError, "could not upload to owner/name: no route"),
    ],
)
def test_an_upload_that_fails_is_one_line(fake, release, monkeypatch, error, kind, message):
    monkeypatch.setattr(FakeApi, "error", error)
    with pytest.raises(kind, match=message) as caught:
        hub.push(with_licence(release), "owner/name")
    assert type(caught.value) is kind


def test_no_token_and_no_network(release, monkeypatch, tmp_path):
    """With the real client."""
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match="there is no token of the Hub; log in: hf auth login"):
        hub.push(with_licence(release), "owner/name")
    monkeypatch.setenv("HF_TOKEN", "hf_made_up")
    with pytest.raises(OSError, match=r"could not upload to owner/name: .*refused") as caught:
        hub.push(release, "owner/name")
    assert "hf_made_up" not in str(caught.value)
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set; unset it"):
        hub.push(release, "owner/name")
