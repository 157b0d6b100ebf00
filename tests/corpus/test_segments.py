import json

import numpy as np

from biomedlm_jax.corpus import parts
from biomedlm_jax.corpus.filters import Filters
from biomedlm_jax.corpus.parts import MapSettings, make_part
from biomedlm_jax.corpus.segments import TIMES, Segments, open_segments, write_shard
from biomedlm_jax.corpus.signatures import Banding, shingles
from biomedlm_jax.corpus.sources import Source, TextRecords
from biomedlm_jax.integrity import damage
from biomedlm_jax.streams import read_lines

BANDING = Banding.of(0.8)
TEXTS = [f"Text {n} has some words and more of them" for n in range(70)]


def made(tmp_path, monkeypatch):
    """Two parts, of 50 and of 20 texts, in segments of 15."""
    monkeypatch.setattr(parts, "SEGMENT", 15)
    settings = MapSettings(Filters(), TextRecords(), BANDING)
    entries = []
    for number, texts in enumerate((TEXTS[:50], TEXTS[50:])):
        file, folder = tmp_path / f"{number}.jsonl", tmp_path / f"part{number}"
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        part = make_part(folder, Source(f"s{number}", "text", ()), [file], settings)
        entries.append((number, folder, part))
    return entries


def test_records_are_numbered_through_all_parts(tmp_path, monkeypatch):
    segments = Segments(made(tmp_path, monkeypatch), BANDING.bands)
    assert segments.sizes == [15, 15, 15, 5, 15, 5]
    assert segments.starts.tolist() == [0, 15, 30, 45, 50, 65, 70]
    assert segments.sources == [0, 0, 0, 0, 1, 1]
    assert segments.of(3) == slice(45, 50)
    rows = segments.columns(1, 5, ["text_bytes"])
    assert rows["record"].tolist() == [*range(15, 65)]
    assert rows["text_bytes"].tolist() == [len(text) for text in TEXTS[15:65]]
    segments.write(tmp_path)
    again = open_segments(tmp_path)
    assert (again.sources, again.folders) == (segments.sources, segments.folders)
    assert len(again) == len(TEXTS)
    for record in (0, 14, 15, 49, 50, 69):
        assert segments.document(record)["text"] == TEXTS[record]
    assert segments.shingles(50).tolist() == shingles(TEXTS[50]).tolist()
    lines = segments.lines(4, np.array([2, 0]))
    assert [json.loads(line)["text"] for line in lines] == [TEXTS[52], TEXTS[50]]


def test_a_shard_has_its_rows_in_order_and_later_passes_have_other_ids(tmp_path, monkeypatch):
    entries, file = made(tmp_path, monkeypatch), tmp_path / "documents.jsonl.zst"
    folder = entries[0][1]
    times = np.zeros(70, np.int32)
    times[[15, 16, 18, 20]], times[[2, 7]] = 1, 3
    times.tofile(tmp_path / TIMES)
    content = [(0, folder, 1, 15, 0, 1), (0, folder, 1, 15, 2, 3), (2, folder, 0, 0, 1, 2)]
    described = write_shard(file, tmp_path, content)
    rows = [json.loads(line) for _, line in read_lines(file)]
    assert [row["text"] for row in rows] == [TEXTS[15], TEXTS[18], TEXTS[7]]
    assert [row["id"].endswith("#3") for row in rows] == [False, False, True]
    assert (described["name"], described["documents"]) == (file.name, 3)
    assert described["text_bytes"] == sum(len(row["text"]) for row in rows)
    assert described["bytes"] == file.stat().st_size
    assert not damage(folder)
