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
intervals (1,000 resamples, seed 0). Requires the package `rouge-score`.
"""

import argparse
import collections
import json
import math
import re
from collections.abc import Callable, Sequence

import numpy as np
from rouge_score.rouge_scorer import RougeScorer

KINDS = ("rouge1", "rouge2", "rougeL")


def read_lines(path: str) -> list[dict]:
    """Return the objects of a JSONL file."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


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


def score(references: Sequence[str], answers: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Return mean, low and high of each ROUGE kind."""
    scorer = RougeScorer(list(KINDS), use_stemmer=True)
    scores = [scorer.score(r, a) for r, a in zip(references, answers, strict=True)]
    picks = np.random.default_rng(0).integers(0, len(answers), (1_000, len(answers)))
    result = {}
    for kind in KINDS:
        values = np.array([100 * one[kind].fmeasure for one in scores])
        low, high = np.percentile(values[picks].mean(1), [2.5, 97.5])
        result[kind] = (values.mean(), low, high)
    return result


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

    lines = read_lines(options.predictions)
    sources, references = ([line[name] for line in lines] for name in ("source", "target"))
    baselines = {}
    if all("answer" in line for line in lines):
        baselines["fine-tuned model"] = [line["answer"] for line in lines]
    baselines["source"] = sources
    baselines["first sentence or subject of the source"] = [first_sentence(s) for s in sources]
    if options.constant:
        baselines[f'"{options.constant}"'] = [options.constant] * len(lines)
    if options.train:
        group = options.group_field or options.source_field
        train = read_lines(options.train)
        held_out = {line[group] for line in train if line[options.source_field] in set(sources)}
        train = [line for line in train if line[group] not in held_out]
        nearest = nearest_target(
            [line[options.source_field] for line in train],
            [line[options.target_field] for line in train],
        )
        baselines["target of the nearest training source"] = [nearest(s) for s in sources]

    print("| answer | ROUGE-1 | ROUGE-2 | ROUGE-L | words |\n|---|---|---|---|---|")
    for name, answers in baselines.items():
        cells = [
            f"{m:.1f} ({low:.1f} to {high:.1f})"
            for m, low, high in score(references, answers).values()
        ]
        words = np.mean([len(answer.split()) for answer in answers])
        print(f"| {name} | {' | '.join(cells)} | {words:.1f} |")


if __name__ == "__main__":
    main()
