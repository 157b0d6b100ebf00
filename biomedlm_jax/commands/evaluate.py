"""Score a model on biomedical questions and write a report with intervals.

    biomedlm evaluate --model=RUN --task=medqa --path=DIR --split=dev --out=REPORT
    biomedlm evaluate --model=RUN --harness_tasks=NAME --harness_directory=DIR --out=RESULTS

A language model is scored by option letters and by option texts; a fine-tuned model by its head.
REPORT gets items.jsonl, report.json, report.md and a plot for each way of scoring. The second form
runs tasks of lm-evaluation-harness (extra `harness`) whose YAML files are in DIR. All devices work;
several processes are started as for `biomedlm pretrain`.
"""

import functools

from absl import flags

from biomedlm_jax.commands import shared_flags

FLAGS = flags.FlagValues()
define = functools.partial(shared_flags.define, FLAGS)
shared_flags.define_model(FLAGS, repeated=True)
define("task", None, "medqa, medmcqa, pubmedqa, bioasq, mmlu, mmlu:SUBJECT or jsonl:FILE.")
define("path", None, "File of the task, or directory of its files.")
define("format", "", "Format of the files, such as questions, if their names do not decide it.")
define("split", None, "Split to score; default: the one in the file's name, or the task's last.")
MODES = ("auto", "letter", "option", "classifier")
define("mode", "auto", "Way of scoring; auto: all that fit the model.", choices=MODES)
define("shots", 0, "Answered questions before each question, with --mode=letter.", least=0)
define("fold", 0, "Fold of PubMedQA, 0 to 9.", least=0)
define("on_error", "raise", "Stop at a bad question, or skip it.", choices=("raise", "skip"))
define("baseline", None, "Report of another model on the same questions, for a paired test.")
define("batch_tokens", 4096, "Tokens of a batch on one device.", least=64)
define("harness_tasks", [], "Tasks of lm-evaluation-harness to run instead, separated by commas.")
define("harness_directory", None, "Directory of the YAML files of --harness_tasks.")
shared_flags.define_out(FLAGS, "the report")
shared_flags.define_mesh(FLAGS)
shared_flags.define_processes(FLAGS)


def run(options: flags.FlagValues) -> None:
    """Evaluate and print the table of results."""
    if bool(options.task) == bool(options.harness_tasks):
        raise ValueError("give either --task, or --harness_tasks and --harness_directory")
    import jax

    from biomedlm_jax.qa import report
    from biomedlm_jax.qa.evaluation import evaluate

    with shared_flags.joined(options):
        common = {"batch_tokens": options.batch_tokens, "overwrite": options.overwrite}
        common["mesh"] = shared_flags.make_mesh(options)
        if options.harness_tasks:
            from biomedlm_jax.qa.harness import evaluate_tasks

            tasks = {"tasks": options.harness_tasks, "task_directory": options.harness_directory}
            evaluate_tasks(options.model, options.out, **tasks, **common)
            text = ""
        else:
            names = [
                "task",
                "path",
                "format",
                "split",
                "mode",
                "shots",
                "fold",
                "on_error",
                "baseline",
            ]
            given = {name: options[name].value for name in names}
            summaries = evaluate(options.model, options.out, **given, **common)
            text = report.markdown(*summaries) if len(summaries) == 1 else report.table(summaries)
        if jax.process_index() == 0:
            print(f"{text}\nwrote {options.out}".lstrip())
