import pytest

from biomedlm_jax.cli import main
from biomedlm_jax.integrity import SUMS, write_sums


@pytest.fixture
def directory(tmp_path):
    path = tmp_path / "release"
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(bytes(100))
    write_sums(path)
    return path


def test_a_whole_directory(directory, capsys):
    assert main(["verify", str(directory)]) == 0
    assert capsys.readouterr().out == ".: 2 files are whole\n"
    assert main(["verify", f"--directory={directory}"]) == 0


def test_damage_is_named_on_both_outputs(directory, capsys):
    (directory / "config.json").write_text("[]")
    assert main(["verify", str(directory)]) == 2
    out, error = capsys.readouterr()
    assert out == ".: DAMAGED: config.json was changed after it was written\n"
    assert error == f"biomedlm verify: error: {directory} is damaged in 1 part: .\n"


def test_hashes_of_a_directory_of_an_earlier_version(directory, capsys):
    (directory / SUMS).unlink()
    assert main(["verify", str(directory)]) == 2
    assert "SHA256SUMS is missing; biomedlm verify --write_sums" in capsys.readouterr().out
    assert main(["verify", str(directory), "--write_sums"]) == 0
    assert capsys.readouterr().out == ".: SHA256SUMS is written\n"
    assert main(["verify", str(directory)]) == 0


def test_no_directory(tmp_path, capsys):
    assert main(["verify", str(tmp_path / "none")]) == 2
    assert "no such directory" in capsys.readouterr().err
    assert main(["verify"]) == 2
    assert "--directory is required" in capsys.readouterr().err


def test_the_directory_may_stand_after_a_flag(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("a")
    assert main(["verify", "--write_sums", str(tmp_path)]) == 0
    assert capsys.readouterr().out == ".: SHA256SUMS is written\n"
    assert main(["verify", str(tmp_path)]) == 0
