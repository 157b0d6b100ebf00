"""`biomedlm serve`: flags, addresses, and how it ends."""

import json
import re
import signal
import socket
import time
import urllib.request
from pathlib import Path

import jax
import pytest
from cases import mostly_slow
from processes import Process

from biomedlm_jax.cli import main
from biomedlm_jax.corpus.tokenizer import train_tokenizer
from biomedlm_jax.generation.generator import NOTICE
from biomedlm_jax.interop.huggingface import export_hf
from biomedlm_jax.model.gpt2 import GPT2, GPT2Config
from biomedlm_jax.serving import server


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    tokenizer = train_tokenizer(iter(["the kinase binds the receptor"] * 9), vocab_size=270)
    config = GPT2Config(vocab_size=270, context_length=512, layers=1, width=16, heads=2)
    model = GPT2(config, key=jax.random.key(0))
    return export_hf(model, tokenizer, tmp_path_factory.mktemp("models") / "release")


def test_addresses(release, capsys, monkeypatch):
    """Only this computer by default; a mesh of devices; a port in use is refused at once."""
    served = []

    def run(web, sockets):
        allowed = web.config.app.user_middleware[0].kwargs["allowed_hosts"]
        served.append((sockets[0].getsockname()[0], allowed))
        web.batcher.close()

    monkeypatch.setattr(server.Web, "run", run)
    assert main(["serve", f"--model={release}", "--port=0"]) == 130  # as for an ignored Ctrl-C
    output = capsys.readouterr()
    assert NOTICE in output.err
    assert re.search(r"^release: http://127\.0\.0\.1:\d+/v1 ", output.err, re.MULTILINE)
    assert "warning" not in output.err
    flags = ("--port=0", "--host=0.0.0.0", "--allowed_hosts=lab.example", "--tensor=2")
    assert main(["serve", f"--model={release}", *flags]) == 130
    assert "warning: got --host=0.0.0.0: other computers can reach" in capsys.readouterr().err
    local = [*server.LOCAL]
    assert served == [
        ("127.0.0.1", [*local, "127.0.0.1"]),
        ("0.0.0.0", [*local, "0.0.0.0", "lab.example"]),
    ]
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["serve", "--model=missing", f"--port={port}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"biomedlm serve: error: cannot listen at 127.0.0.1:{port}: Address already in use; "
        "fix: another --host or --port"
    )
    assert main(["serve", f"--model={release}", "--port=0", "--template=missing"]) == 2
    assert "no chat template 'missing'" in capsys.readouterr().err


@pytest.mark.parametrize("number", mostly_slow([signal.SIGINT, signal.SIGTERM], [signal.SIGINT]))
def test_a_signal_ends_it_with_its_code(release, number, tmp_path):
    """Also in the middle of a stream."""
    process = Process(["-m", "biomedlm_jax.cli", "serve", f"--model={release}", "--port=0"])
    try:
        address, log = None, Path(process._files[1])
        deadline = time.monotonic() + 60
        while not address and time.monotonic() < deadline:
            time.sleep(0.02)
            address = re.search(r"http://\S+", log.read_text())
        fields = {"model": "release", "prompt": "the", "max_tokens": 500, "stream": True}
        request = urllib.request.Request(
            f"{address[0]}/completions",
            json.dumps(fields).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert answer.readline().startswith(b"data: ")
            began = time.monotonic()
            process.send_signal(number)
            assert b"the server is stopping" in answer.read()
            _, errors = process.communicate(60)
        assert process.returncode == 128 + number
        assert errors.splitlines()[-1] == "biomedlm serve: interrupted"
        assert len(errors.splitlines()) == 3, errors
        assert time.monotonic() - began < 20
    finally:
        process.kill()
