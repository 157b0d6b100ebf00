"""Train the byte-level BPE tokenizer of the published recipe on a corpus.

    biomedlm train-tokenizer --input=corpus/ --vocab_size=28896 --out=tokenizer/

The directory it writes loads in transformers (AutoTokenizer) and in every later command.
"""

import sys
from collections import Counter

import absl.flags as absl

from biomedlm_jax.corpus import documents, tokenizer

FLAGS = absl.FlagValues()
absl.DEFINE_multi_string(
    "input",
    None,
    "files, directories or globs, by commas or in repeated flags; " + documents.KNOWN,
    flag_values=FLAGS,
    required=True,
)
absl.DEFINE_string("text_field", "text", "text of a JSON line: meta.text, title,body", FLAGS)
absl.DEFINE_list("subsets", [], "keep only JSON lines of these subsets, by commas", FLAGS)
absl.DEFINE_string("subset_field", "meta.pile_set_name", "subset of a JSON line", FLAGS)
absl.DEFINE_enum("on_error", "raise", documents.ON_ERROR, "stop at a bad line or skip it", FLAGS)
absl.DEFINE_integer("vocab_size", 28_896, "entries, <|endoftext|> last", flag_values=FLAGS)
absl.DEFINE_string("out", None, "directory to write", FLAGS, required=True)
absl.DEFINE_bool("overwrite", False, "replace the tokenizer in --out", FLAGS)


def run(flags: absl.FlagValues) -> None:
    """Train, save, and say what came out."""
    tokenizer.check_output(flags.out, overwrite=flags.overwrite)
    skipped, size = documents.Skipped(), Counter()
    corpus = documents.read_documents(
        [path for paths in flags.input for path in paths.split(",")],
        text_field=flags.text_field,
        subsets=flags.subsets,
        subset_field=flags.subset_field,
        on_error=flags.on_error,
        skipped=skipped,
    )

    def texts():
        for document in corpus:
            size.update(documents=1, bytes=len(document.text.encode("utf-8")))
            yield document.text

    progress = sys.stderr.isatty()
    trained = tokenizer.train_tokenizer(
        texts(), vocab_size=flags.vocab_size, show_progress=progress
    )
    tokenizer.save_tokenizer(trained, flags.out, overwrite=flags.overwrite)
    whole = [term for term in tokenizer.TERMS if len(tokenizer.pieces(trained, term)) == 1]
    print(f"corpus     {size['documents']:,} documents, {size['bytes']:,} bytes")
    print(f"skipped    {skipped}")
    print(f"tokenizer  {trained.get_vocab_size():,} entries, {tokenizer.tokenizer_hash(trained)}")
    print(f"terms      {len(whole)} of {len(tokenizer.TERMS)} whole: {', '.join(whole) or 'none'}")
    print(f"wrote      {flags.out}")
