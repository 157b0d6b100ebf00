"""List the evaluation questions that a corpus contains.

    biomedlm contamination --input=corpus/ --task=medqa=medqa/ --task=pubmedqa=pubmedqa/ --out=DIR
    biomedlm evaluate --model=RUN --task=medqa --path=medqa/ --out=REPORT \\
      --exclude=DIR/medqa-test.exclude-words.json

Compared are n-grams of 13 words (as for GPT-3) and of 50 characters (as for GPT-4): those of each
question, its context, its answer and its other options with those of each document. DIR gets
report.md and report.json, a file of each set with the counts, examples and documents of each
question, and lists of questions that `biomedlm evaluate --exclude` leaves out of a second score.
Memory grows with the questions, not with the corpus.
"""

from biomedlm_jax.commands.shared_flags import Flags
from biomedlm_jax.corpus.documents import DocumentReader
from biomedlm_jax.corpus.ngrams import LENGTHS
from biomedlm_jax.corpus.progress import progress_line
from biomedlm_jax.errors import InputError

FLAGS = Flags("input", "out", "json")
TASK = "Question set, TASK=PATH, or jsonl:PATH, with the tasks of biomedlm evaluate"
FLAGS.define("task", None, TASK, repeated=True, required=True)
FLAGS.define("format", "", "Format of the sets' files; default: the one that their names decide.")
SPLIT = "Split of all sets; default: that in a file's name, or the last one in a directory."
FLAGS.define("split", None, SPLIT)
FLAGS.define("fold", 0, "Which tenth of PubMedQA's training questions is dev, 0 to 9.", least=0)
BAD = "Stop at a bad question, or skip it."
BAD_FIX = "--on_bad_question=skip"
FLAGS.define("on_bad_question", "raise", BAD, choices=("raise", "skip"))
FLAGS.define("twins", "keep", "Questions with two equal options.", choices=("keep", "skip"))
FLAGS.define("words", LENGTHS["words"], "Words of an n-gram; 0: none of words.", least=0)
LENGTH = "Characters of an n-gram; 0: none of characters."
FLAGS.define("characters", LENGTHS["characters"], LENGTH, least=0)
PARTS = ["question", "context", "answer", "options"]
FLAGS.define("parts", PARTS, "Parts by which a question counts as contaminated.")
SHARE = "Share of a part's n-grams from which it counts; 0: one n-gram is enough."
FLAGS.define("share", 0.0, SHARE, least=0)
FLAGS.define("workers", 1, "Processes; the report does not depend on it.", least=1)


def run(options: Flags) -> None:
    """Write the report and print its tables; report progress on standard error."""
    from biomedlm_jax.qa import contamination as report

    lengths = {unit: length for unit, length in options.pick(*LENGTHS).items() if length}
    if not lengths:
        raise InputError("got --words=0 and --characters=0; expected n-grams of one at least")
    rule = report.Rule(tuple(options.parts), options.share)
    read = options.pick("format", "split", "fold", "twins") | {"on_error": options.on_bad_question}
    sets = []
    for value in options.task:
        task, path = (value, None) if value.startswith("jsonl:") else value.partition("=")[::2]
        if path == "":
            raise InputError(f"got --task={value}; expected TASK=PATH or jsonl:PATH")
        try:
            sets.append(report.read_set(task, path, **read))
        except InputError as error:  # --on_error is of the documents here
            fix = str(error).replace("--on_error=skip (config.task.on_error)", BAD_FIX)
            raise InputError(fix) from error
        print(report.print_line(sets[-1]))
    with progress_line() as show:
        written = report.contamination(
            sets,
            options.input_paths(),
            options.out,
            lengths=lengths,
            rule=rule,
            progress=lambda done, of: show(f"searched {done:,} of {of:,}"),
            **options.pick("workers", "overwrite"),
            reader=DocumentReader(**options.reading()),
        )
    options.write_json(written)
    print(f"{report.contamination_markdown(written)}\nwrote {options.out}")
