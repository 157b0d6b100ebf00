"""Train the byte-level BPE tokenizer of the published recipe on a corpus.

    biomedlm train-tokenizer --input=corpus/ --vocab_size=28896 --out=tokenizer/

transformers (AutoTokenizer) and every later command load the directory --out.
"""

import sys
import time

from biomedlm_jax.commands.shared_flags import Flags
from biomedlm_jax.corpus import comparison, documents, term_lists, tokenizer
from biomedlm_jax.corpus.progress import report_regularly
from biomedlm_jax.errors import counted
from biomedlm_jax.outputs import atomic_directory

FLAGS = Flags("input", "out")
FLAGS.define("vocab_size", 28_896, "Entries; the last one is <|endoftext|>.")


def run(options: Flags) -> None:
    """Train, save and print a summary; report progress on standard error."""
    start, terminal = time.monotonic(), sys.stderr.isatty()
    skipped, count, size, phase = documents.Skipped(), 0, 0, "reading"
    corpus = options.read_input(skipped)

    def texts():
        nonlocal count, size, phase
        for document in corpus:
            count += 1
            size += len(document.text.encode("utf-8"))
            yield document.text
        phase = "merging pairs"

    def report() -> None:
        elapsed = time.monotonic() - start
        line = f"{elapsed:.0f} s  {phase}: {counted(count, 'document')}, {size / 1e6:,.1f} MB"
        clear = "\r\x1b[K" if terminal else ""  # the progress bar of `tokenizers` is on this line
        print(f"{clear}{line}", file=sys.stderr, flush=True)

    output = {"replaceable": tokenizer.holds_tokenizer, "overwrite": options.overwrite}
    with atomic_directory(options.out, **output) as new:
        with report_regularly(report):
            settings = {"vocab_size": options.vocab_size, "show_progress": terminal}
            trained = tokenizer.train_tokenizer(texts(), **settings)
        tokenizer.save_tokenizer(trained, new)
    all_terms = [*term_lists.published_splits().splits]
    whole = comparison.whole_terms(trained, all_terms)
    terms = f"{len(whole)} of {len(all_terms)} are one token"
    print(f"corpus     {counted(count, 'document')}, {counted(size, 'byte')}")
    print(f"skipped    {skipped}")
    print(f"tokenizer  {trained.get_vocab_size():,} entries, {tokenizer.tokenizer_hash(trained)}")
    print(f"terms      {terms}: {', '.join(whole) or 'none'}")
    print(f"wrote      {options.out} in {time.monotonic() - start:.0f} s")
