"""inputs.py: the flags select the same documents as the library's arguments."""

import json

from biomedlm_jax.commands import inputs
from biomedlm_jax.commands.shared_flags import Flags
from biomedlm_jax.corpus.documents import Skipped


def test_the_flags_select_documents(tmp_path):
    for name, subset in (("a", "Github"), ("b", "PubMed Central"), ("c", "PubMed Abstracts")):
        record = {"title": name, "meta": {"body": "x"}, "kind": {"name": subset}}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(record) + "\n{\n")
    values = Flags()
    inputs.define_flags(values)
    paths = [tmp_path / f"{name}.jsonl" for name in "abc"]
    arguments = [f"--input={paths[0]},{paths[1]}", f"--input={paths[2]}", "--on_error=skip"]
    arguments += ["--text_field=title,meta.body", "--subset_field=kind.name"]
    values(["", *arguments, "--subsets=PubMed Central,PubMed Abstracts"])
    skipped = Skipped()
    assert inputs.input_paths(values) == paths
    texts = [document.text for document in inputs.read_input(values, skipped)]
    assert texts == ["b\n\nx", "c\n\nx"]
    assert (skipped.bad, skipped.subsets) == (3, {"Github": 1})
