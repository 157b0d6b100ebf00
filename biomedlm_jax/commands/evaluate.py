"""Score a model on biomedical questions and write a report with intervals.

    biomedlm evaluate --model=RUN --task=medqa --path=DIR --split=dev --out=REPORT
    biomedlm evaluate --model=RUN --versus=BASE --task=medqa --path=DIR --out=REPORT
    biomedlm evaluate --model=RUN --harness_tasks=sciq --num_fewshot=5 --limit=100 --out=RESULTS

A language model is scored by option letters and by option texts; a fine-tuned model by its head.
REPORT gets items.jsonl, report.json, report.md, report.html and a plot for each way of scoring;
after an interruption the same command resumes from REPORT.partial. The second form compares a model
with the base it came from. For each, the dev split chooses the way of scoring, with or without its
chat template; then the scored split is answered once. Its report has both accuracies with
intervals, a paired test, and the figures of all settings on dev. The third form runs tasks of
lm-evaluation-harness (extra `harness`), its own or those of --harness_directory, and
writes its results_*.json. Offline, its data sets come from the `datasets` cache. All devices work;
several processes are started as for `biomedlm pretrain`.
"""

from typing import Any

from biomedlm_jax.commands.shared_flags import Flags
from biomedlm_jax.errors import InputError

FLAGS = Flags("models", "out", "json")
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
BASE = "Run or Hugging Face directory of what the model was trained from, to compare it with."
FLAGS.define("versus", None, BASE)
ON_DEV = "With --versus: file or directory of questions to choose the settings on; default: --path."
FLAGS.define("dev_path", None, ON_DEV)
EVERY = (
    "With --versus: also score the split with every other setting, listed as not chosen; the best "
    "of several settings on the same questions looks better than it is on new ones."
)
FLAGS.define("all_settings", False, EVERY)
CHAT = "Put prompts into the chat template of the model's directory (--versus tries both)."
FLAGS.define("chat_template", False, CHAT)
DATE = "What a chat template prints as today, YYYY-MM-DD; default: today."
FLAGS.define("date", "", DATE)
DEV = "This model's report on dev, to fit a temperature and a threshold to abstain."
FLAGS.define("calibrate", None, DEV)
RISK = "Share of wrong dev answers that the threshold of --calibrate allows (default 0.2)."
FLAGS.define("risk", None, RISK, kind=float, least=0)
ORDERS = "Orders of the options to show, the file's and random ones, for the position bias."
FLAGS.define("orders", 1, ORDERS, least=1)
EXCLUDE = "List of biomedlm contamination: add a second score, without the questions in it."
FLAGS.define("exclude", None, EXCLUDE)
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
QUESTIONS += ("calibrate", "risk", "orders", "exclude", "label_base", "twins", "versus", "json")
WITH_VERSUS = ("dev_path", "all_settings")
WITHOUT_VERSUS = ("baseline", "calibrate", "risk", "orders", "exclude", "chat_template")
HARNESS = ("harness_directory", "num_fewshot", "samples", UNSAFE)
FLAGS.add("mesh", "dtype", "processes")


def run(options: Flags) -> None:
    """Evaluate and print the table of results."""
    if bool(options.task) == bool(options.harness_tasks):
        raise InputError("give either --task, or --harness_tasks")
    used, others = ("harness_tasks", QUESTIONS) if options.harness_tasks else ("task", HARNESS)
    if given := [name for name in others if options[name].present]:
        raise InputError(f"got --{given[0]} with --{used}, where it has no effect; leave it out")
    others = WITHOUT_VERSUS if options.versus else WITH_VERSUS
    if given := [name for name in others if options[name].present]:
        how = "with --versus, where it" if options.versus else "without --versus, where it"
        raise InputError(f"got --{given[0]} {how} has no effect; leave it out")
    if options["date"].present and not (options.versus or options.chat_template):
        got = "got --date without --chat_template or --versus, where it has no effect"
        raise InputError(f"{got}; leave it out")
    if options.versus and len(options.model) > 1:
        got = f"got {len(options.model)} --model with --versus"
        raise InputError(f"{got}; expected one model to compare with its base")
    import jax

    from biomedlm_jax.qa.evaluation import evaluate
    from biomedlm_jax.qa.presentation import markdown, table
    from biomedlm_jax.qa.versus import versus
    from biomedlm_jax.qa.versus_table import versus_markdown

    with options.multiprocess_run():
        common = {**options.pick("batch_tokens", "overwrite", "date"), **options.loading()}
        if options.harness_tasks:
            from biomedlm_jax.qa.harness_tasks import evaluate_tasks

            tasks = options.pick("num_fewshot", "limit", "samples", UNSAFE, "chat_template")
            tasks |= {"tasks": options.harness_tasks, "task_directory": options.harness_directory}
            evaluate_tasks(options.model, options.out, **tasks, **common)
            text = ""
        else:
            given = options.pick("task", "path", "format", "split", "mode", "shots", "fold")
            given |= options.pick("on_error", "label_base", "twins", "limit")
            if options.versus:
                given |= options.pick(*WITH_VERSUS)
                (model,), base = options.model, options.versus
                figures: Any = versus(model, base, options.out, **given, **common)
                text = versus_markdown(figures)
            else:
                given |= options.pick(*WITHOUT_VERSUS)
                figures = evaluate(options.model, options.out, **given, **common)
                text = markdown(*figures) if len(figures) == 1 else table(figures)
            if jax.process_index() == 0:
                options.write_json(figures)
        if jax.process_index() == 0:
            print(f"{text}\nwrote {options.out}".lstrip())
