"""Score a model on biomedical questions and write a report with intervals.

    biomedlm evaluate --model=RUN --task=medqa --path=DIR --split=dev --out=REPORT

A language model is scored by the options' letters and by their text; a fine-tuned one by its head.
Several --model are one model with several seeds. --baseline names another model's report on the
same questions, for a paired test. REPORT gets items.jsonl, report.json, report.md and a plot.

    biomedlm evaluate --model=RUN --harness_tasks=NAME --harness_directory=DIR --out=RESULTS

runs tasks of lm-evaluation-harness (extra `harness`) whose YAML files lie in DIR.
"""

from absl import flags

FLAGS = flags.FlagValues()
flags.DEFINE_multi_string("model", None, "Run or Hugging Face directory.", flag_values=FLAGS)
flags.DEFINE_string("task", None, "medqa, pubmedqa, jsonl:FILE ...", flag_values=FLAGS)
flags.DEFINE_string("path", None, "The task's file or directory.", flag_values=FLAGS)
flags.DEFINE_string("split", None, "Default: the task's last one.", flag_values=FLAGS)
flags.DEFINE_string("mode", "auto", "letter, option, classifier or auto.", flag_values=FLAGS)
flags.DEFINE_integer("shots", 0, "Answered questions before it (letter).", 0, flag_values=FLAGS)
flags.DEFINE_integer("fold", 0, "Fold of PubMedQA.", 0, flag_values=FLAGS)
flags.DEFINE_string("on_error", "raise", "Bad questions: raise or skip.", flag_values=FLAGS)
flags.DEFINE_string("baseline", None, "Another model's report.", flag_values=FLAGS)
flags.DEFINE_integer("batch_tokens", 4096, "Per device and batch.", 64, flag_values=FLAGS)
flags.DEFINE_list("harness_tasks", [], "Instead of --task.", flag_values=FLAGS)
flags.DEFINE_string("harness_directory", None, "Their YAML files.", flag_values=FLAGS)
flags.DEFINE_string("out", None, "Directory of the report.", flag_values=FLAGS)
flags.DEFINE_bool("overwrite", False, "Replace an older report.", flag_values=FLAGS)
flags.mark_flags_as_required(["model", "out"], flag_values=FLAGS)


def run(options: flags.FlagValues) -> None:
    """Print the table, and where the rest is."""
    if bool(options.task) == bool(options.harness_tasks):
        raise ValueError("give either --task, or --harness_tasks and --harness_directory")
    common = {"batch_tokens": options.batch_tokens, "overwrite": options.overwrite}
    if options.harness_tasks:
        from biomedlm_jax.qa.harness import evaluate_tasks

        tasks = {"tasks": options.harness_tasks, "task_directory": options.harness_directory}
        evaluate_tasks(options.model, options.out, **tasks, **common)
    else:
        from biomedlm_jax import evaluate
        from biomedlm_jax.qa import report

        names = ("task", "path", "split", "mode", "shots", "fold", "on_error", "baseline")
        asked = {name: options[name].value for name in names}
        summaries = evaluate(options.model, options.out, **asked, **common)
        one = len(summaries) == 1
        print(report.markdown(summaries[0]) if one else report.table(summaries))
    print(f"wrote {options.out}")
