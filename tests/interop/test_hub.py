from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest

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
