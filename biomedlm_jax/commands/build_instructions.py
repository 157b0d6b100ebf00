"""Convert files of entities, relations, NLI pairs and classes to instructions.

    biomedlm build-instructions --task=ner --input=train.tsv --entity_type=Disease --out=ner.jsonl
    biomedlm build-instructions --task=nli --input=mli_train_v1.jsonl --out=nli.jsonl
    biomedlm build-instructions --task=relation --input=train.tsv --negative=false --out=re.jsonl

ner reads CoNLL files (a token a line, blank lines between sentences); relation a sentence with
marked entities and a label; nli sentence1, sentence2 and gold_label; classification text and label.
Those three are .tsv, .csv, .jsonl, .json or parquet. A line of --out has instruction, input, output
and what score-answers needs. The same input and flags write the same file.
"""

from collections import Counter
from pathlib import Path

from biomedlm_jax.commands.shared_flags import Flags
from biomedlm_jax.errors import InputError, counted

TASKS = ("ner", "relation", "nli", "classification")
FLAGS = Flags()
FLAGS.define("task", None, "What the files annotate.", choices=TASKS, required=True)
FLAGS.define("input", None, "File to convert, plain or compressed", repeated=True, required=True)
FLAGS.define("out", None, "File to write, JSON lines.", required=True)
FLAGS.define("overwrite", False, "Replace the file --out.")
FLAGS.define("dataset", "", "Name of the data in the scores; default: the task.")
SCHEME = "Scheme of the tags in the file, which is checked (ner)."
FLAGS.define("scheme", "iob2", SCHEME, choices=("iob2", "iob1", "bioes"))
ANSWER = "Output of ner: a line for each entity with type and text, or for each token with its tag."
FLAGS.define("answer", "spans", ANSWER, choices=("spans", "tags"))
FLAGS.define("entity_type", "", "Type of the entities where the tags have none: B, I, O (ner).")
COLUMNS = (
    "Names of all columns of a file without a header, in order. ner reads token and tag (default: "
    "the first and the last column), and start and end, offsets of a token in characters."
)
FLAGS.define("columns", [], COLUMNS)
FLAGS.define("text_field", "", "Field with the text; of nli two, separated by a comma.")
FLAGS.define("label_field", "", "Field with the label.")
MARKS = "Regular expression that finds a marked entity; default: @GENE$, <e1>, [E1], <<x>>, [[x]]."
FLAGS.define("marks", "", MARKS)
LABELS = (
    "All labels or types that may occur, separated by commas, in the order of the instruction; "
    "default: those of the input. Give the same for training and test files."
)
FLAGS.define("labels", [], LABELS)
NAME = "Another name for a label, such as CPR:4=inhibitor"
FLAGS.define("label_name", None, NAME, repeated=True)
FLAGS.define("negative", "", "Label for no relation, which F1 leaves out.")
FLAGS.define("paraphrases", False, "Choose one of several wordings for each example.")
FLAGS.define("seed", 0, "Seed of that choice.")
FLAGS.add("json")
ONLY = {  # flags of some tasks
    **dict.fromkeys(("scheme", "answer", "entity_type"), ("ner",)),
    **dict.fromkeys(("text_field", "label_field", "negative"), TASKS[1:]),
    "marks": ("relation",),
}


def run(options: Flags) -> None:
    """Convert, and print the counts."""
    from biomedlm_jax.files import write_jsonl
    from biomedlm_jax.finetuning.instructions import Layout, build_instructions
    from biomedlm_jax.finetuning.labelled import MARKS as KNOWN_MARKS

    for name, tasks in ONLY.items():
        if options[name].present and options.task not in tasks:
            got = f"got --{name} with --task={options.task}"
            raise InputError(f"{got}; it has an effect for {', '.join(tasks)} only")
    if options["seed"].present and not options.paraphrases:
        raise InputError("got --seed without --paraphrases, where it has no effect")
    check_new_file("out", options.out, overwrite=options.overwrite)
    names = [value.rpartition("=") for value in options.label_name or ()]
    old = Counter(one for one, _, _ in names)
    if not all(one and new for one, _, new in names) or max(old.values(), default=1) > 1:
        got = " ".join(f"--label_name={value}" for value in options.label_name)
        raise InputError(f"got {got}; expected OLD=NEW, once for each label")
    given = options.pick("task", "dataset", "answer", "scheme", "columns", "entity_type")
    given |= options.pick("text_field", "label_field", "labels", "negative", "paraphrases", "seed")
    given |= {"label_names": {one: new for one, _, new in names}}
    layout = Layout(marks=options.marks or KNOWN_MARKS, **given)
    rows, figures = build_instructions(options.input, layout)
    write_jsonl(options.out, rows, ensure_ascii=False)
    options.write_json(figures)
    noun = "entities" if options.task == "ner" else "examples"
    for label, count in figures["labels"].items():
        print(f"{noun} of {label}: {count:,}")
    if options.task == "ner":
        print(f"sentences without an entity: {figures['without_entity']:,}")
    if figures["contradictory"]:
        print(f"examples whose input has several outputs: {figures['contradictory']:,}")
    for reason, count in figures["left_out"].items():
        print(f"left out: {count:,} of {reason}")
    print(f"wrote {counted(figures['examples'], 'instruction')} to {options.out}")


def check_new_file(flag: str, path: str, *, overwrite: bool) -> None:
    """Raise InputError if a file to be written exists and may not be replaced."""
    if Path(path).is_dir():
        raise InputError(f"got --{flag}={path}, a directory; expected a file")
    if Path(path).is_file() and not overwrite:
        raise InputError(f"{path} exists; name another file, or pass --overwrite")
