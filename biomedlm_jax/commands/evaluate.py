"""Score a model on biomedical questions and write a report with intervals.

    biomedlm evaluate --model=RUN --task=medqa --path=DIR --split=dev --out=REPORT
    biomedlm evaluate --model=RUN --harness_tasks=NAME --harness_directory=DIR --out=RESULTS

A language model is scored by option letters and by option texts; a fine-tuned model by its head.
REPORT gets items.jsonl, report.json, report.md and a plot for each way of scoring. The second form
runs tasks of lm-evaluation-harness (extra `harness`) whose YAML files are in DIR. All devices work;
several processes are started as for `biomedlm pretrain`.
"""

from absl import flags

from biomedlm_jax.commands import shared_flags

FLAGS = flags.FlagValues()
shared_flags.define_model(FLAGS, repeated=True)
for name, meaning in (
    ("task", "medqa, medmcqa, pubmedqa, bioasq, mmlu, mmlu:SUBJECT or jsonl:PATH."),
    ("path", "The task's file, or the directory of its files."),
    ("format", "Format of the files; default: the one that their names decide."),
    ("split", "Split to score; default: the one in the file's name, or the task's last one."),
    ("baseline", "Another model's report on the same questions, for a paired test."),
    ("harness_directory", "Directory of the YAML files of --harness_tasks."),
):
    flags.DEFINE_string(name, None, meaning, FLAGS)
flags.DEFINE_list("harness_tasks", [], "Harness tasks to run instead of --task.", FLAGS)
MODES = ["auto", "letter", "option", "classifier"]
flags.DEFINE_enum("mode", "auto", MODES, "What is scored; auto: all that fits.", FLAGS)
flags.DEFINE_enum("on_error", "raise", ["raise", "skip"], "What a bad question does.", FLAGS)
for name, default, least, meaning in (
    ("shots", 0, 0, "Answered questions before each question, for mode letter."),
    ("fold", 0, 0, "Which tenth of PubMedQA's training questions is dev, 0 to 9."),
    ("batch_tokens", 4096, 64, "Tokens of a batch on one device."),
):
    flags.DEFINE_integer(name, default, meaning, least, flag_values=FLAGS)
shared_flags.define_out(FLAGS, "the report")
shared_flags.define_mesh(FLAGS)
shared_flags.define_processes(FLAGS)


def run(options: flags.FlagValues) -> None:
    """Evaluate and print the results."""
    if bool(options.task) == bool(options.harness_tasks):
        raise ValueError("give either --task, or --harness_tasks and --harness_directory")
    import jax

    from biomedlm_jax.qa import report
    from biomedlm_jax.qa.evaluation import evaluate

    with shared_flags.joined(options):
        common = {"batch_tokens": options.batch_tokens, "overwrite": options.overwrite}
        common["mesh"] = shared_flags.make_mesh(options)
        text = ""
        if options.harness_tasks:
            from biomedlm_jax.qa.harness import evaluate_tasks

            tasks = {"tasks": options.harness_tasks, "task_directory": options.harness_directory}
            evaluate_tasks(options.model, options.out, **tasks, **common)
        else:
            names = ("path", "split", "mode", "shots", "fold", "on_error", "baseline", "task")
            given = {name: options[name].value for name in names}
            given["format"] = options.format or ""
            summaries = evaluate(options.model, options.out, **given, **common)
            text = report.markdown(*summaries) if len(summaries) == 1 else report.table(summaries)
        if jax.process_index() == 0:
            print(f"{text}\nwrote {options.out}".lstrip())
