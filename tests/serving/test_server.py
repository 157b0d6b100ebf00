"""The server over HTTP: concurrent streams, limits, clients that leave, and errors."""

import json
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from biomedlm_jax.errors import InputError
from biomedlm_jax.files import read_json, write_json
from biomedlm_jax.generation import decoding
from biomedlm_jax.generation.generator import NOTICE, generate
from biomedlm_jax.interop.huggingface import load
from biomedlm_jax.mesh import make_mesh
from biomedlm_jax.serving import batcher
from biomedlm_jax.serving.server import listen, load_server

WORDS = ("the", "a", "what", "is", "of", "drug", "trial", "Below")
FIELDS = {"model": "model", "prompt": "the kinase", "max_tokens": 8}


@pytest.fixture
def slow(monkeypatch):
    """Make every step take a while: `seconds` in the returned list, and what was decoded."""
    real, seconds, made = decoding.decode, [0.02], []

    def decode(decoder, prompts, *, watch, every, **options):
        made.append(0)

        def wait(rows):
            made[-1] += 1
            time.sleep(seconds[0])
            return watch(rows)

        return real(decoder, prompts, watch=wait, every=1, **options)

    monkeypatch.setattr(decoding, "decode", decode)
    return made


def post(address: str, body: bytes, **headers: str) -> tuple[int, dict]:
    headers = {"Content-Type": "application/json", **headers}
    request = urllib.request.Request(f"{address}/v1/completions", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        text = error.read().decode()
        return error.code, json.loads(text) if text.startswith("{") else {"text": text}


def test_eight_streams_at_the_same_time(served, directories, monkeypatch):
    sizes, real = [], decoding.decode

    def decode(decoder, prompts, **options):
        sizes.append(len(prompts))
        return real(decoder, prompts, **options)

    monkeypatch.setattr(decoding, "decode", decode)
    monkeypatch.setattr(batcher, "COLLECT", 0.5)
    prompts = [f"{word} kinase" for word in WORDS]

    def stream(prompt: str) -> str:
        chunks = served[2].completions.create(**{**FIELDS, "prompt": prompt}, stream=True)
        return "".join(chunk.choices[0].text for chunk in chunks)

    with ThreadPoolExecutor(8) as pool:
        texts = [*pool.map(stream, prompts)]
    assert sizes == [8]
    assert texts == generate(*load(directories["gpt"]), prompts, max_new_tokens=8)


def test_a_mesh(directories, serve):
    model, tokenizer = load(directories["gpt"])
    with serve(directories["gpt"], mesh=make_mesh(data=4, tensor=2)) as (_, _, client):
        answer = client.completions.create(**FIELDS, temperature=1, seed=2, n=2)
    options = {"max_new_tokens": 8, "temperature": 1.0, "seed": 2, "samples": 2}
    texts = generate(model, tokenizer, [FIELDS["prompt"]], **options)
    assert [choice.text for choice in answer.choices] == texts


def test_models_health_and_the_notice(served):
    assert [model.id for model in served[2].models.list()] == ["model"]
    with urllib.request.urlopen(f"{served[1]}/health") as answer:
        assert json.load(answer) == {"status": "ok", "waiting": 0, "notice": NOTICE}
    raw = served[2].completions.with_raw_response.create(**FIELDS)
    assert raw.headers["x-notice"] == NOTICE


def test_what_is_refused(served):
    body = json.dumps(FIELDS).encode()
    assert post(served[1], body)[0] == 200
    assert post(served[1], body, Host="rebound.example") == (400, {"text": "Invalid host header"})
    assert post(served[1], body, Host=f"localhost:{served[1].rpartition(':')[2]}")[0] == 200
    status, error = post(served[1], body, **{"Content-Type": "text/plain"})
    assert (status, error["error"]["type"]) == (415, "invalid_request_error")
    status, error = post(served[1], json.dumps({**FIELDS, "prompt": "a" * 4_000}).encode())
    assert (status, error["error"]["message"]) == (
        413,
        "the body has more than 4000 bytes; shorten it",
    )
    with pytest.raises(openai.NotFoundError, match="this server has 'model'"):
        served[2].completions.create(**{**FIELDS, "model": "gpt-4"})
    with pytest.raises(openai.BadRequestError, match="logprobs"):
        served[2].completions.create(**FIELDS, logprobs=1)
    with pytest.raises(openai.NotFoundError, match="POST /v1/embeddings: Not Found"):
        served[2].embeddings.create(model="model", input="a")
    with urllib.request.urlopen(f"{served[1]}/health") as answer:
        assert "access-control-allow-origin" not in answer.headers


def test_requests_that_wait_have_a_limit_and_give_their_place_back(directories, serve, slow):
    long = {**FIELDS, "max_tokens": 40}
    with serve(directories["gpt"], batch_size=1, max_waiting=1, timeout=2) as (own, _, client):
        client.completions.create(**FIELDS)  # compiles
        first = client.completions.create(**long, stream=True)
        next(first)
        with pytest.raises(openai.APITimeoutError):  # it leaves while it waits
            client.with_options(timeout=0.05).completions.create(**long)
        deadline = time.monotonic() + 5
        while own.batcher.waiting and time.monotonic() < deadline:
            time.sleep(0.02)
        with ThreadPoolExecutor() as pool:
            waits = pool.submit(client.completions.create, **FIELDS)
            while not own.batcher.waiting and time.monotonic() < deadline:
                time.sleep(0.005)
            with pytest.raises(openai.RateLimitError, match="1 requests wait already"):
                client.completions.create(**FIELDS)
            first.close()  # leaves in the middle of its stream
            assert waits.result().choices[0].finish_reason == "length"
        assert slow[1] < 40


def test_a_request_has_a_time_limit(directories, serve, slow):
    with serve(directories["gpt"], timeout=0.3) as (_, _, client):
        chunks = client.completions.create(**{**FIELDS, "max_tokens": 40}, stream=True)
        assert next(chunks).choices[0].text
        with pytest.raises(openai.APIError, match="the time of this request is over"):
            list(chunks)
        with pytest.raises(openai.InternalServerError, match="the time of this request is over"):
            client.completions.create(**{**FIELDS, "max_tokens": 40})


def test_nan_is_an_error_and_the_server_lives(directories, serve, capsys):
    with serve(directories["gpt"]) as (own, _, client):
        decoder = own.batcher.generator.decoder
        whole = decoder.leaves[:]
        decoder.leaves[:] = [leaf * float("nan") for leaf in whole]
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError, match="the logits are NaN at step 0"):
                client.completions.create(**FIELDS, stream=stream)
        decoder.leaves[:] = whole
        assert client.completions.create(**FIELDS).choices[0].finish_reason == "length"
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("error: the logits are NaN") for line in lines)


def test_what_cannot_be_served(directories):
    with listen("127.0.0.1", 0) as bound:
        bound.listen()
        port = bound.getsockname()[1]
        with pytest.raises(InputError, match="Address already in use; fix: another --host or"):
            listen("127.0.0.1", port)
    with pytest.raises(InputError, match="expected one up to 65535"):
        listen("127.0.0.1", 65_536)
    with pytest.raises(InputError, match=r"cannot listen at no\.such\.host:0"):
        listen("no.such.host", 0)
    settings = directories["gpt"] / "generation_config.json"
    before = read_json(settings)
    write_json(settings, {**before, "num_beams": 2})
    limits = dict.fromkeys(("template", "max_prompt_tokens", "max_new_tokens"))
    limits |= {"batch_size": 1, "max_waiting": 1, "max_body_bytes": 1, "timeout": 1}
    with pytest.raises(InputError, match="a server does not search beams"):
        load_server(directories["gpt"], name="model", **limits)
    write_json(settings, before)
