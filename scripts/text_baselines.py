"""Score baselines that need no model beside the answers of a fine-tuned text model.

    python scripts/text_baselines.py --predictions=RUN/predictions.jsonl \
        --constant="What are the treatments for this?"
    python scripts/text_baselines.py --predictions=RUN/predictions.jsonl \
        --train=medquad.jsonl --source_field=question --target_field=answer --group_field=focus

Each line of the predictions is an object with the texts `source`, `target` and `answer`; without
`answer` only the baselines are scored. The baselines are the source itself, its first sentence (or
its subject line), one constant answer, and the target of the most similar training source. Similar
means the highest cosine similarity of word counts weighted by inverse document frequency.

Prints a Markdown table of ROUGE F-measures times 100 with Porter's stemmer and 95 % bootstrap
intervals (1,000 resamples, seed 0). With --group_field, the groups of the sources in --train are
resampled, as fine-tuning does.
"""

import argparse
import collections
import math
import re
from collections.abc import Callable, Sequence

import numpy as np

from biomedlm_jax.files import read_jsonl
from biomedlm_jax.finetuning.text_report import KINDS, text_report


def first_sentence(source: str) -> str:
    """Return the subject line of a message if it has one, else the first sentence."""
    subject = re.match(r"\s*SUBJECT:\s*(.+)", source)
    if subject:
        return subject[1].strip()
    return re.split(r"(?<=[.?!])\s|\n", source.strip())[0]


def nearest_target(sources: Sequence[str], targets: Sequence[str]) -> Callable[[str], str]:
    """Return a function from a text to the target of the most similar source."""
    words = [collections.Counter(re.findall(r"\w+", text.lower())) for text in sources]
    documents = collections.Counter(word for counts in words for word in counts)

    def vector(counts: collections.Counter) -> dict[str, float]:
        weights = {
            w: n * math.log(len(words) / documents[w]) for w, n in counts.items() if w in documents
        }
        norm = math.sqrt(sum(x * x for x in weights.values())) or 1.0
        return {word: weight / norm for word, weight in weights.items()}

    vectors = [vector(counts) for counts in words]

    def nearest(text: str) -> str:
        query = vector(collections.Counter(re.findall(r"\w+", text.lower())))
        scores = [sum(query[w] * v[w] for w in query.keys() & v.keys()) for v in vectors]
        return targets[int(np.argmax(scores))]

    return nearest


def main() -> None:
    """Read the flags and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--predictions", required=True, help="JSONL with source, target, answer")
    parser.add_argument("--constant", help="one answer for all sources")
    parser.add_argument("--train", help="JSONL from which the nearest source is taken")
    parser.add_argument("--source_field", default="source", help="source text in --train")
    parser.add_argument("--target_field", default="target", help="target text in --train")
    parser.add_argument("--group_field", help="field whose values never occur in both splits")
    options = parser.parse_args()

    lines = [line for _, line in read_jsonl(options.predictions)]
    sources, references = ([line[name] for line in lines] for name in ("source", "target"))
    baselines = {}
    if all("answer" in line for line in lines):
        baselines["fine-tuned model"] = [line["answer"] for line in lines]
    baselines["source"] = sources
    baselines["first sentence or subject of the source"] = [first_sentence(s) for s in sources]
    if options.constant:
        baselines[f'"{options.constant}"'] = [options.constant] * len(lines)
    groups = None
    if options.train:
        group = options.group_field or options.source_field
        train = [line for _, line in read_jsonl(options.train)]
        group_of = {line[options.source_field]: line[group] for line in train}
        groups = [group_of.get(source, source) for source in sources]
        train = [line for line in train if line[group] not in groups]
        nearest = nearest_target(
            [line[options.source_field] for line in train],
            [line[options.target_field] for line in train],
        )
        baselines["target of the nearest training source"] = [nearest(s) for s in sources]

    print("| answer | ROUGE-1 | ROUGE-2 | ROUGE-L | words |\n|---|---|---|---|---|")
    for name, answers in baselines.items():
        report = text_report(sources, references, answers, groups=groups)
        figures = [report[kind] for kind in KINDS]
        cells = [f"{f['mean']:.1f} ({f['low']:.1f} to {f['high']:.1f})" for f in figures]
        print(f"| {name} | {' | '.join(cells)} | {report['words']:.1f} |")


if __name__ == "__main__":
    main()
