"""Score a model on biomedical questions and write a report with intervals.

    biomedlm evaluate --model=RUN --task=medqa --path=DIR --split=dev --out=REPORT
    biomedlm evaluate --model=RUN --harness_tasks=sciq --num_fewshot=5 --limit=100 --out=RESULTS

A language model is scored by option letters and by option texts; a fine-tuned model by its head.
REPORT gets items.jsonl, report.json, report.md and a plot for each way of scoring; after an
interruption the same command resumes from REPORT.partial. The second form
runs tasks of lm-evaluation-harness (extra `harness`), its own or those of --harness_directory, and
writes its results_*.json. Offline, its data sets come from the `datasets` cache. All devices work;
several processes are started as for `biomedlm pretrain`.
"""

from biomedlm_jax.commands.shared_flags import Flags
from biomedlm_jax.errors import InputError

FLAGS = Flags("models", "out")
FLAGS.define("task", None, "medqa, medmcqa, pubmedqa, bioasq, mmlu, mmlu:SUBJECT or jsonl:PATH.")
FLAGS.define("path", None, "File of the task, or directory of its files.")
FLAGS.define("format", "", "Format of the files; default: the one that their names decide.")
SPLIT = "Split to score; default: that in a file's name, or the last one in a directory."
FLAGS.define("split", None, SPLIT)
MODES = ("auto", "letter", "option", "classifier")
FLAGS.define("mode", "auto", "Way of scoring; auto: all that fit the model.", choices=MODES)
FLAGS.define("shots", 0, "Answered questions before each question, with --mode=letter.", least=0)
FLAGS.define("fold", 0, "Which tenth of PubMedQA's training questions is dev, 0 to 9.", least=0)
FLAGS.define("on_error", "raise", "Stop at a bad question, or skip it.", choices=("raise", "skip"))
BASES = ("auto", "0", "1")
FLAGS.define("label_base", "auto", "Number of the first option in the file.", choices=BASES)
FLAGS.define("twins", "keep", "Questions with two equal options.", choices=("keep", "skip"))
FLAGS.define("baseline", None, "Report of another model on the same questions, for a paired test.")
DEV = "This model's report on dev, to fit a temperature and a threshold to abstain."
FLAGS.define("calibrate", None, DEV)
RISK = "Share of wrong dev answers that the threshold of --calibrate allows (default 0.2)."
FLAGS.define("risk", None, RISK, kind=float, least=0)
ORDERS = "Orders of the options to show, the file's and random ones, for the position bias."
FLAGS.define("orders", 1, ORDERS, least=1)
FLAGS.define("batch_tokens", 4096, "Tokens of a batch on one device.", least=64)
FLAGS.define("harness_tasks", [], "Tasks of lm-evaluation-harness instead, comma-separated.")
FLAGS.define("harness_directory", None, "Directory of YAML files of more --harness_tasks.")
SHOTS = "Answered questions before each question, in place of the harness task's."
FLAGS.define("num_fewshot", None, SHOTS, kind=int, least=0)
LIMIT = "Only the first questions of each task: a number, or below 1 a fraction of them."
FLAGS.define("limit", None, LIMIT, kind=float, least=0)
SAMPLES = 'Questions of harness tasks: JSON such as {"sciq": [0, 7]}, or a file.'
FLAGS.define("samples", None, SAMPLES)
QUESTIONS = ("path", "format", "split", "mode", "shots", "fold", "on_error", "baseline")
UNSAFE = "confirm_run_unsafe_code"
FLAGS.define(UNSAFE, False, "Run the code that the model writes for harness tasks of programs.")
QUESTIONS += ("calibrate", "risk", "orders", "label_base", "twins")
HARNESS = ("harness_directory", "num_fewshot", "samples", UNSAFE)
FLAGS.add("mesh", "dtype", "processes")


def run(options: Flags) -> None:
    """Evaluate and print the table of results."""
    if bool(options.task) == bool(options.harness_tasks):
        raise InputError("give either --task, or --harness_tasks")
    used, others = ("harness_tasks", QUESTIONS) if options.harness_tasks else ("task", HARNESS)
    if given := [name for name in others if options[name].present]:
        raise InputError(f"got --{given[0]} with --{used}, where it has no effect; leave it out")
    import jax

    from biomedlm_jax.qa.evaluation import evaluate
    from biomedlm_jax.qa.presentation import markdown, table

    with options.multiprocess_run():
        common = {**options.pick("batch_tokens", "overwrite"), **options.loading()}
        if options.harness_tasks:
            from biomedlm_jax.qa.harness_tasks import evaluate_tasks

            tasks = options.pick("num_fewshot", "limit", "samples", UNSAFE)
            tasks |= {"tasks": options.harness_tasks, "task_directory": options.harness_directory}
            evaluate_tasks(options.model, options.out, **tasks, **common)
            text = ""
        else:
            given = options.pick("task", "path", "format", "split", "mode", "shots", "fold")
            given |= options.pick("on_error", "label_base", "twins", "baseline", "limit")
            given |= options.pick("calibrate", "risk", "orders")
            summaries = evaluate(options.model, options.out, **given, **common)
            text = markdown(*summaries) if len(summaries) == 1 else table(summaries)
        if jax.process_index() == 0:
            print(f"{text}\nwrote {options.out}".lstrip())
