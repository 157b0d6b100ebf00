"""Versions: records with one PMID, PMCID or DOI are one article, of which one record is the newest.

An identifier that articles with different PMIDs share, such as the DOI of a supplement with
hundreds of abstracts, identifies none of them.
"""

from pathlib import Path
from typing import Any

import numpy as np

from biomedlm_jax.corpus.parts import DELETION, HAS_BODY
from biomedlm_jax.corpus.segments import Segments
from biomedlm_jax.corpus.sorted_runs import (
    FACTOR,
    Rows,
    groups,
    load,
    read_range,
    repeated,
    save,
    select,
)

# Identifiers, and those that must not differ between records that share one.
IDENTIFIERS = {"pmid": (), "pmcid": ("pmid",), "doi": ("pmid", "pmcid")}
NODES = ("record", "kind", "version")  # columns of what a join finds


def identifier_rows(segments: Segments, name: str, first: int, end: int) -> Rows:
    """Return the rows of the records of segments that have an identifier."""
    rows = segments.columns(first, end, ("kind", "version", *dict.fromkeys((*IDENTIFIERS, name))))
    rows = select(rows, rows[name] != 0)
    columns = {column: rows[column] for column in (*NODES, *IDENTIFIERS[name])}
    return {"key": rows[name].astype(np.uint64) * FACTOR, **columns}


def join_identifiers(
    work: Path, name: str, runs: int, number: int, within: tuple[int, int]
) -> dict[str, Any]:
    """Write the links of records with one identifier, the records, and those a deletion removes."""
    rows = read_range(work, name, runs, within, (*NODES, *IDENTIFIERS[name]))
    gone = _deleted(rows) if name == "pmid" else np.empty(0, np.uint32)
    rows = repeated(select(rows, rows["kind"] & DELETION == 0))
    group = rows["group"]
    same = group[1:] == group[:-1]
    for other in IDENTIFIERS[name]:
        same &= ~_ambiguous(group, rows[other])[1:]
    links = np.stack([rows["record"][:-1][same], rows["record"][1:][same]])
    linked = np.zeros(len(group) + 1, bool)
    linked[:-1][:-1] |= same
    linked[1:-1] |= same
    nodes = select(rows, linked[:-1])
    for what, values in {"links": links, "gone": gone, **{c: nodes[c] for c in NODES}}.items():
        save(work / f"{name}-joined-{number:06d}-{what}.npy", values)
    return {"name": f"{name}-joined-{number:06d}", "nodes": len(nodes["record"])}


def _deleted(rows: Rows) -> np.ndarray:
    """Return which records, documents or not, a later deletion removes."""
    rows = repeated(select(rows, rows["kind"] & HAS_BODY == 0))
    group, these = rows["group"], rows["record"].astype(np.int64)
    deletion = (rows["kind"] & DELETION) != 0
    last = np.full(group.max(initial=0) + 1, -1, np.int64)
    np.maximum.at(last, group[deletion], these[deletion])
    return rows["record"][~deletion & (these < last[group])]


def _ambiguous(group: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return for each row whether the rows of its group have several values, 0 not counted."""
    largest = np.zeros(group.max(initial=0) + 1, values.dtype)
    smallest = np.full_like(largest, np.iinfo(values.dtype).max)
    known = values != 0
    np.maximum.at(largest, group[known], values[known])
    np.minimum.at(smallest, group[known], values[known])
    return (largest > smallest)[group]


def choose_versions(work: Path, joined: list[str], task: int, tasks: int) -> str:
    """Write which records of some components are not the newest, and return the file's name.

    The arrays are "old" with "newest", and "covered" with "text", the full text's record.
    """
    label, gone = load(work / "label.npy"), load(work / "gone.npy")
    reason = load(work / "reason-versions.npy")
    parts = []
    for name in joined:
        records = load(work / f"{name}-record.npy")
        mine = (label[records] % tasks == task) & ~gone[records]
        parts.append({column: load(work / f"{name}-{column}.npy")[mine] for column in NODES})
    rows = {column: np.concatenate([part[column] for part in parts]) for column in NODES}
    nodes, once = np.unique(rows["record"], return_index=True)
    version, body = rows["version"][once], (rows["kind"][once] & HAS_BODY) != 0
    component, kept = label[nodes], reason[nodes] == 0
    order = np.lexsort((nodes, version, body, component))
    nodes, component, body, kept = (
        values[order].copy() for values in (nodes, component, body, kept)
    )
    # The newest of the citations and of the full texts of each article: the filters may have
    # refused it, and then there is none.
    last = np.append((component[1:] != component[:-1]) | (body[1:] != body[:-1]), True)
    last = last[: len(nodes)]
    newest = nodes[last][np.searchsorted(np.flatnonzero(last), np.arange(len(nodes)))]
    old = (nodes != newest) & kept
    article, full = groups(component), body & kept & ~old
    text_of = np.full(article.max(initial=0) + 1, -1, np.int64)
    text_of[article[full]] = nodes[full]
    covered = ~body & kept & ~old & (text_of[article] >= 0)
    name = f"versions-{task:06d}"
    save(work / f"{name}-old.npy", np.stack([nodes[old], newest[old]]))
    save(work / f"{name}-covered.npy", np.stack([nodes[covered], text_of[article[covered]]]))
    return name
