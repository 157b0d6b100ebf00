from pathlib import Path

import huggingface_hub
import pytest

from biomedlm_jax.interop import hub


@pytest.fixture
def asked(monkeypatch):
    """What was asked of the Hub, which is not reached; the repository holds `files`."""
    asked = {"files": ["config.json", "pytorch_model.bin"]}

    def download(name, **options):
        asked.update(name=name, **options)
        return "/cache/model"

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(
        huggingface_hub.HfApi, "list_repo_files", lambda self, name, **_: asked["files"]
    )
    return asked


def test_a_path_stays_a_path(asked):
    assert hub.local("some/where") == Path("some/where")
    assert "name" not in asked


def test_a_repository_is_downloaded(asked):
    assert hub.local("hf://owner/name@v1") == Path("/cache/model")
    assert (asked["name"], asked["revision"]) == ("owner/name", "v1")
    assert "*.bin" not in asked["ignore_patterns"]


def test_safetensors_spare_the_pickles(asked):
    asked["files"].append("model.safetensors")
    hub.local("hf://owner/name")
    assert "*.bin" in asked["ignore_patterns"]
    assert asked["revision"] is None


def test_a_name_that_is_none(asked):
    with pytest.raises(ValueError, match=r"got 'hf://name'; expected hf://owner"):
        hub.local("hf://name")


def test_a_download_that_fails(monkeypatch):
    def fail(self, name, **_):
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", fail)
    with pytest.raises(ValueError, match="could not download hf://owner/name: no route"):
        hub.local("hf://owner/name")
