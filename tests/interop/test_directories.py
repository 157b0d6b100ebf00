import json

import pytest

from biomedlm_jax.interop.directories import HUGGING_FACE, RUN, building, kind_of, model_config


def fill(path, **config):
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_kinds(tmp_path):
    assert kind_of(fill(tmp_path / "a", model={})) == RUN
    assert kind_of(fill(tmp_path / "b", model_type="gpt2")) == HUGGING_FACE
    with pytest.raises(ValueError, match="neither a model group"):
        kind_of(fill(tmp_path / "c", other=1))
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        kind_of(tmp_path)
    with pytest.raises(FileNotFoundError, match="hf download stanford-crfm/BioMedLM --local-dir"):
        kind_of("stanford-crfm/BioMedLM")
    (tmp_path / "c" / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        kind_of(tmp_path / "c")


def test_execution_is_this_machines(tmp_path):
    model = {"vocab_size": 300, "layers": 2, "width": 8, "heads": 2, "attention": "splash"}
    run = fill(tmp_path / "run", model=model)
    assert model_config(run).attention == "auto"
    assert model_config(run, remat="full").remat == "full"
    with pytest.raises(ValueError, match="what can be set on loading is compute_dtype"):
        model_config(run, layers=3)
    with pytest.raises(ValueError, match=r"model\.depth, which is unknown"):
        model_config(fill(tmp_path / "odd", model={**model, "depth": 2}))


def test_directory_appears_whole(tmp_path):
    path = tmp_path / "deep" / "new"
    with building(path, kind=RUN, overwrite=False) as new:
        (new / "file").write_text("x")
        assert not path.exists()
    assert [p.name for p in path.iterdir()] == ["file"]
    assert [p.name for p in path.parent.iterdir()] == ["new"]


def test_nothing_is_lost_when_it_fails(tmp_path):
    path = fill(tmp_path / "old", model={})

    def fail(target):
        with building(target, kind=RUN, overwrite=True) as draft:
            (draft / "half").write_text("x")
            raise RuntimeError

    for target in (path, tmp_path / "new"):
        with pytest.raises(RuntimeError):
            fail(target)
    assert [p.name for p in tmp_path.iterdir()] == ["old"]
    assert [p.name for p in path.iterdir()] == ["config.json"]


def test_old_comes_back_when_the_last_rename_fails(tmp_path, monkeypatch):
    path = fill(tmp_path / "old", model={"width": 1})
    real = type(path).rename

    def rename(self, target):
        if self.name.endswith(".new"):
            raise OSError("disk gone")
        return real(self, target)

    monkeypatch.setattr(type(path), "rename", rename)
    with pytest.raises(OSError, match="disk gone"), building(path, kind=RUN, overwrite=True):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["old"]
    assert json.loads((path / "config.json").read_text()) == {"model": {"width": 1}}


def test_only_the_same_kind_is_overwritten(tmp_path):
    run = fill(tmp_path / "run", model={})
    with pytest.raises(FileExistsError, match="pass --overwrite"):
        building(run, kind=RUN, overwrite=False).__enter__()
    with pytest.raises(FileExistsError, match="something else than a Hugging Face directory"):
        building(run, kind=HUGGING_FACE, overwrite=True).__enter__()
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="something else than a run directory"):
        building(home, kind=RUN, overwrite=True).__enter__()
    with pytest.raises(NotADirectoryError, match="is a file"):
        building(home / "thesis.txt", kind=RUN, overwrite=True).__enter__()
    with building(run, kind=RUN, overwrite=True) as new:
        (new / "only").write_text("x")
    assert [p.name for p in run.iterdir()] == ["only"]


def test_empty_directory_and_link_are_filled(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    with building(tmp_path / "link", kind=RUN, overwrite=False) as new:
        (new / "file").write_text("x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "empty" / "file").exists()
