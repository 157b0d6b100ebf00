"""buckets.py: paths of Google Cloud Storage behave and fail as those of a file system do."""

import json
import os
from pathlib import Path

import pytest
from gcs import bucket, gcs_server  # noqa: F401
from gcsfs.retry import HttpError

from biomedlm_jax import buckets, cli
from biomedlm_jax.buckets import BucketPath, as_path, is_bucket
from biomedlm_jax.errors import InputError
from biomedlm_jax.files import AppendedText, read_json, write_json
from biomedlm_jax.integrity import SUMS, damage
from biomedlm_jax.outputs import atomic_directory, local_copy, recover_directory

pytestmark = pytest.mark.usefixtures("gcs_server")


def test_local_paths_stay_those_of_pathlib(tmp_path):
    assert type(as_path("a/b")) is type(Path("a/b"))
    assert as_path(tmp_path) == tmp_path
    assert not is_bucket(tmp_path)


@pytest.mark.parametrize("spelling", ["gs://b/run", "GS://b/run/", "gs://b//run", "gs://b/./run"])
def test_a_bucket_is_one_in_every_spelling(spelling):
    path = as_path(spelling)
    assert isinstance(path, BucketPath)
    assert str(path) == "gs://b/run"
    assert path == as_path(path) == as_path(spelling).absolute()
    assert str(path / "model" / "7") == "gs://b/run/model/7"
    assert (path.name, str(path.parent), str(path.with_name("x"))) == ("run", "gs://b", "gs://b/x")


@pytest.mark.parametrize("wrong", ["gs://", "gs://b/../c", Path("gs://b/run")])
def test_what_is_no_path_of_a_bucket_is_refused(wrong):
    with pytest.raises(InputError, match="gs:"):
        as_path(wrong)


@pytest.mark.parametrize("use", [Path, os.fspath, os.path.realpath, open])
def test_it_is_never_taken_for_a_local_path(use):
    with pytest.raises(TypeError):
        use(as_path("gs://b/run"))


def test_methods_are_those_of_pathlib(bucket, tmp_path):  # noqa: F811
    """The same calls on a local directory and in a bucket give the same."""

    def outcome(root):
        (root / "d/e").mkdir(parents=True, exist_ok=True)
        (root / "d/a.json").write_text("é\n", encoding="utf-8")
        (root / "d/e/b").write_bytes(bytes(range(256)) * 9)
        paths = [root / name for name in ("d", "d/a.json", "d/e", "d/e/b", "none", "d/a")]
        yield [(path.exists(), path.is_file(), path.is_dir()) for path in paths]
        yield sorted(path.name for path in (root / "d").iterdir())
        yield sorted(path.name for path in (root / "d").glob("*.json"))
        yield list((root / "none").glob("*"))
        yield (root / "d/a.json").read_text(encoding="utf-8"), (root / "d/a.json").suffix
        yield (root / "d/e/b").stat().st_size
        with (root / "d/e/b").open("rb", buffering=100) as file:
            yield file.read(7), file.seek(-3, os.SEEK_END), file.read(), file.read()
            yield file.seek(250), file.read(300), file.tell()
        (root / "d/e").rename(root / "d/f")
        yield (root / "d/e").exists(), (root / "d/f/b").is_file()
        (root / "d/a.json").unlink()
        (root / "d/a.json").unlink(missing_ok=True)
        for read in (Path.read_bytes, Path.unlink, Path.stat):
            with pytest.raises(FileNotFoundError, match=r"d/a\.json"):
                getattr(root / "d/a.json", read.__name__)()

    for here, there in zip(outcome(tmp_path), outcome(as_path(bucket)), strict=True):
        assert here == there


def test_an_object_is_created_once(bucket):  # noqa: F811
    path = BucketPath(f"{bucket}/lock")
    path.create(b"first")
    with pytest.raises(FileExistsError):
        path.create(b"second")
    assert path.read_bytes() == b"first"


def test_json_reads_back(bucket):  # noqa: F811
    write_json(f"{bucket}/run/a.json", {"a": "é"})
    assert read_json(f"{bucket}/run/a.json") == {"a": "é"}
    with pytest.raises(InputError, match=f"no such file: {bucket}/run/b.json"):
        read_json(f"{bucket}/run/b.json")


def test_lines_are_never_doubled_or_lost(bucket, monkeypatch):  # noqa: F811
    monkeypatch.setattr("biomedlm_jax.files.REWRITE_SECONDS", 3600.0)
    path = as_path(bucket) / "metrics.jsonl"
    first = AppendedText(path)
    first.append("1")  # at once; what follows waits
    first.append("2")
    assert path.read_text() == "1\n"
    first.flush()
    assert path.read_text() == "1\n2\n"
    first.append("3")
    first.close()
    again = AppendedText(path)
    again.append("4")
    again.close()
    assert path.read_text() == "1\n2\n3\n4\n"


def test_a_line_that_could_not_be_written_is_written_later(bucket, monkeypatch):  # noqa: F811
    monkeypatch.setattr("biomedlm_jax.files.REWRITE_SECONDS", 0.0)
    text = AppendedText(as_path(bucket) / "events.jsonl")

    def fail(*_, **__):
        raise HttpError({"code": 503, "message": "try again"})

    with monkeypatch.context() as patch:
        patch.setattr(text.path._fs, "pipe_file", fail)
        with pytest.raises(OSError, match="try again"):
            text.append("1")
    text.append("2")
    text.close()
    assert text.path.read_text() == "1\n2\n"


def _fill(directory, content: str) -> None:
    (directory / "weights").mkdir()
    (directory / "weights/m.bin").write_bytes(content.encode() * 9)
    write_json(directory / "config.json", {"content": content})
    (directory / content).write_text(content)


def _replaceable(path) -> bool:
    return (path / "config.json").exists()


def test_a_directory_is_replaced_whole_or_not_at_all(bucket, monkeypatch):  # noqa: F811
    """The program is killed before every request that writes; a reader never gets a mixture."""
    options = {"replaceable": _replaceable, "overwrite": True}
    killed, number = True, 0
    while killed:
        target = as_path(bucket) / f"model-{number}"
        with atomic_directory(target, **options) as new:
            _fill(new, "old")
        calls = []

        def kill(original, at=number, calls=calls):
            def call(*arguments, **given):
                calls.append(None)
                if len(calls) > at:
                    raise KeyboardInterrupt
                return original(*arguments, **given)

            return call

        with monkeypatch.context() as patch:
            for name in ("copy_to", "unlink", "rmtree", "write_bytes"):
                patch.setattr(BucketPath, name, kill(getattr(BucketPath, name)))
            try:
                with atomic_directory(target, **options) as new:
                    _fill(new, "new")
                killed = False
            except KeyboardInterrupt:
                pass
        before = (target / SUMS).exists() and not damage(target)
        recover_directory(target)
        assert damage(target) == []
        content = read_json(target / "config.json")["content"]
        assert {*target.sizes()} == {SUMS, "weights/m.bin", "config.json", content}
        assert before or content == "new"  # a mixture has no SHA256SUMS
        assert [path.name for path in target.parent.glob(f".{target.name}.*")] == []
        number += 1
    assert content == "new"
    assert number > 10


def test_a_local_copy_is_named_as_the_bucket_and_removed(bucket):  # noqa: F811
    write_json(f"{bucket}/m/config.json", {})
    write_json(f"{bucket}/m/sub/other.json", {})
    with local_copy(f"{bucket}/m", lambda name: name == "config.json") as folder:
        assert [path.name for path in folder.iterdir()] == ["config.json"]
    assert not folder.exists()
    message = f"{bucket}/m/x is wrong"
    with pytest.raises(InputError, match=message), local_copy(f"{bucket}/m") as folder:
        raise InputError(f"{folder}/x is wrong")


def test_without_gcsfs_one_line_names_the_extra(monkeypatch, capsys):
    buckets._storage.cache_clear()
    monkeypatch.setattr(buckets, "find_spec", lambda name: None)
    assert cli.main(["export-hf", "--model=gs://b/run", "--out=x"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "pip install 'biomedlm-jax[gcs]'" in error


@pytest.mark.parametrize("error", ["http", "connection", "forbidden", "bad"])
def test_errors_of_the_storage_are_one_line_and_retryable(bucket, monkeypatch, capsys, error):  # noqa: F811
    raised = {
        "http": HttpError({"code": 503, "message": "unavailable"}),
        "connection": ConnectionRefusedError(111, "unavailable"),
        "forbidden": OSError("Forbidden: b\nunavailable"),
        "bad": ValueError("Bad Request: unavailable"),
    }[error]

    def fail(*_, **__):
        raise raised

    monkeypatch.setattr(as_path(bucket)._fs, "info", fail)
    assert cli.main(["export-hf", f"--model={bucket}/run", "--out=x"]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "unavailable" in message
    assert f"{bucket}/run" in message


def test_a_bucket_that_is_not_there_is_bad_input(bucket):  # noqa: F811
    with pytest.raises(InputError, match="there is no bucket absent-bucket, or not for"):
        write_json("gs://absent-bucket/run/config.json", {})
    assert not as_path("gs://absent-bucket/run").exists()


def test_marks_of_empty_folders_are_no_files(bucket):  # noqa: F811
    fs = as_path(bucket)._fs
    fs.pipe_file(f"{bucket}/d/", b"")  # as the web console makes one
    write_json(f"{bucket}/d/a.json", json.loads("{}"))
    assert [path.name for path in as_path(f"{bucket}/d").iterdir()] == ["a.json"]
    assert [*as_path(f"{bucket}/d").sizes()] == ["a.json"]
