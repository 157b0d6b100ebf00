"""Requests of several clients in one batch."""

import queue
import threading
import time

import pytest

from biomedlm_jax.errors import InputError
from biomedlm_jax.generation import decoding
from biomedlm_jax.generation.generator import Generator, generate
from biomedlm_jax.generation.options import Options
from biomedlm_jax.interop.huggingface import load
from biomedlm_jax.serving import batcher as batchers
from biomedlm_jax.serving.batcher import Batcher, Job, Row

PROMPTS = ["the kinase binds", "a trial", "what is a trial of the drug", "Below"]


@pytest.fixture(scope="module")
def world(directories):
    model, tokenizer = load(directories["gpt"])
    return model, tokenizer, Generator(model, tokenizer)


@pytest.fixture
def running(world):
    batcher = Batcher(world[2], rows=8, most=4)
    yield batcher
    batcher.close()


@pytest.fixture
def sizes(monkeypatch):
    """The number of rows of each batch."""
    real, made = decoding.decode, []

    def decode(decoder, prompts, **options):
        made.append(len(prompts))
        return real(decoder, prompts, **options)

    monkeypatch.setattr(decoding, "decode", decode)
    return made


def make(generator, text: str, *, limit=8, stream=False, **options):
    events, settings = queue.Queue(), Options(**options)
    (ids,) = generator.encode([text], Options(max_new_tokens=limit))
    rows = [Row(ids, limit) for _ in range(settings.samples)]
    return Job(rows, settings, events.put, stream), events


def test_one_batch_has_the_texts_of_each_alone(world, running, sizes):
    """Seeds, numbers of samples and limits differ within a batch."""
    model, tokenizer, generator = world
    given = [(3, 1, 8), (4, 2, 5), (3, 3, 12), (9, 1, 1)]
    jobs = []
    for text, (seed, samples, limit) in zip(PROMPTS, given, strict=True):
        options = {"seed": seed, "samples": samples, "temperature": 0.9, "top_p": 0.95}
        jobs.append((make(generator, text, limit=limit, **options), text, options, limit))
        assert running.submit(jobs[-1][0][0])
    running.start()
    for (job, events), text, options, limit in jobs:
        assert events.get(timeout=60) is None
        expected = generate(model, tokenizer, [text], max_new_tokens=limit, **options)
        assert [row.text for row in job.rows] == expected
        assert all(len(row.tokens) == limit for row in job.rows if row.finish == "length")
    assert sizes[0] == 7


def test_other_options_wait_for_the_next_batch(world, running, sizes):
    model, tokenizer, generator = world
    given = [{}, {"temperature": 0.5}, {"stop": ("e",)}, {}]
    jobs = [make(generator, text, **one) for text, one in zip(PROMPTS, given, strict=True)]
    assert all(running.submit(job) for job, _ in jobs)
    assert not running.submit(jobs[0][0])  # four wait
    running.cancel(jobs[1][0])
    assert running.submit(jobs[1][0]) is True  # it was given a place, which it gives back
    running.cancel(jobs[1][0])
    running.start()
    ended = [events.get(timeout=60) for number, (_, events) in enumerate(jobs) if number != 1]
    assert ended == [None] * 3
    assert sizes == [2, 1]
    for (job, _), text, one in zip(jobs, PROMPTS, given, strict=True):
        if "temperature" not in one:
            expected = generate(model, tokenizer, [text], max_new_tokens=8, **one)
            assert job.rows[0].text == expected[0]
    assert jobs[1][1].empty()


def test_why_an_answer_ended(world, running):
    model, tokenizer, generator = world
    whole = generate(model, tokenizer, [PROMPTS[0]], max_new_tokens=8)[0]
    job, events = make(generator, PROMPTS[0], stop=(whole[2:4],), stream=True)
    running.submit(job)
    running.start()
    pieces = []
    while (event := events.get(timeout=60)) is not None:
        pieces.append(event[1])
    assert "".join(pieces) == job.rows[0].text == whole[: whole.index(whole[2:4])]
    assert job.rows[0].finish == "stop"
    ids = generator.answers([job.rows[0].prompt], Options(max_new_tokens=8))[0][0].tokens
    job, events = make(generator, PROMPTS[0], ends=(ids[3],))
    running.submit(job)
    assert events.get(timeout=60) is None
    assert (job.rows[0].finish, job.rows[0].tokens) == ("stop", ids[: ids.index(ids[3]) + 1])
    job, events = make(generator, PROMPTS[0])
    running.submit(job)
    assert events.get(timeout=60) is None
    assert (job.rows[0].finish, job.rows[0].text) == ("length", whole)


def test_nan_of_one_request_is_its_own(world, running, monkeypatch, capsys):
    model, tokenizer, generator = world
    bad, real = generator.encode([PROMPTS[1]], Options(max_new_tokens=8))[0], decoding.decode

    def decode(decoder, prompts, **options):
        if bad in prompts:
            raise InputError("the logits are NaN")
        return real(decoder, prompts, **options)

    monkeypatch.setattr(decoding, "decode", decode)
    jobs = [make(generator, text) for text in PROMPTS[:3]]
    for job, _ in jobs:
        running.submit(job)
    running.start()
    ends = [events.get(timeout=60) for _, events in jobs]
    assert [str(end) for end in ends] == ["None", "the logits are NaN", "None"]
    assert capsys.readouterr().err == "error: the logits are NaN\n"
    expected = generate(model, tokenizer, [PROMPTS[2]], max_new_tokens=8)
    assert jobs[2][0].rows[0].text == expected[0]


def test_an_abandoned_request_stops(world, running, monkeypatch):
    """It gives its place in the batch back after a few steps, and closing does too."""
    generator, steps, begun = world[2], [], threading.Event()
    real = decoding.decode

    def decode(decoder, prompts, *, watch, **options):
        def slow(rows):
            steps.append(len(rows[0]))
            begun.set()
            time.sleep(0.02)
            return watch(rows)

        return real(decoder, prompts, watch=slow, **options)

    monkeypatch.setattr(decoding, "decode", decode)
    monkeypatch.setattr(batchers, "MOST_STEPS", 1)
    job, events = make(generator, PROMPTS[0], limit=80)
    running.submit(job)
    running.start()
    assert begun.wait(60)
    running.cancel(job)
    after, events_after = make(generator, PROMPTS[1], limit=80)
    begun.clear()
    running.submit(after)
    assert begun.wait(60)
    assert len(steps) < 40
    assert events.empty()
    running.close()
    assert str(events_after.get(timeout=60)) == "the server is stopping"
