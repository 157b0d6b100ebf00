"""Find the documents of a corpus that share the longest spans with a text.

    biomedlm trace --corpus=corpus/ --build --workers=2
    biomedlm trace --corpus=corpus/ --text="The incidence of the disease in women" --html=trace.html
    biomedlm trace --corpus=corpus/ --file=answer.txt

The first writes a suffix array of each shard into corpus.trace/ beside the corpus (extra `trace`),
and continues after an interruption. The others read the text from --text, --file or standard input
and print it with its spans coloured, and the documents of the longest ones. A span is a run of
words of the text that a document has, too; case and punctuation do not count. It shows where words
occur, not where a model learned them. `biomedlm generate --trace=corpus/` traces an answer.
"""

import dataclasses
import sys
from pathlib import Path

from biomedlm_jax.commands.shared_flags import Flags
from biomedlm_jax.corpus import trace, trace_view
from biomedlm_jax.corpus.progress import progress_line
from biomedlm_jax.errors import InputError, counted

FLAGS = Flags("json")
CORPUS = "Directory of a corpus that biomedlm build-corpus wrote."
FLAGS.define("corpus", None, CORPUS, required=True)
FLAGS.define("build", False, "Write the indexes of the corpus, and trace no text.")
FLAGS.define("workers", 1, "Processes that build, one shard each.", least=1)
FLAGS.define("text", None, "Text to trace; default: that of --file, or of standard input.")
FLAGS.define("file", None, "File with the text, in UTF-8.")
FLAGS.define("least", trace.LEAST_WORDS, "Words of a span, at least.", least=1)
FLAGS.define("documents", trace.DOCUMENTS, "Documents to print of each span.", least=1)
FLAGS.define("html", None, "File to write a page of the trace to.")
FLAGS.define("overwrite", False, "Replace the file that --html names.")


def run(options: Flags) -> None:
    """Build the indexes, or trace a text and print it."""
    given = [name for name in ("text", "file") if options[name].value is not None]
    if options.build:
        of_text = ("text", "file", "least", "documents", "html", "json", "overwrite")
        if present := [name for name in of_text if options[name].present]:
            raise InputError(f"got --{present[0]} with --build, which traces no text; leave it out")
        with progress_line() as show:
            totals = trace.build_indexes(
                options.corpus,
                workers=options.workers,
                progress=lambda done, of: show(f"{done:,} of {counted(of, 'shard')}"),
            )
        print(f"{counted(totals['documents'], 'document')}, {counted(totals['words'], 'word')}")
        print(f"wrote {trace.index_folder(Path(options.corpus))}")
        return
    if options["workers"].present:
        raise InputError("got --workers without --build, where it has no effect; leave it out")
    if len(given) == 2:
        raise InputError("got --text and --file; expected one of them")
    if options.html and Path(options.html).is_file() and not options.overwrite:
        raise InputError(f"{options.html} exists; name another file, or pass --overwrite")
    if options["overwrite"].present and not options.html:
        raise InputError("got --overwrite without --html; expected both")
    tracer = trace.Tracer(options.corpus)
    traced = tracer.trace(_text(options), **options.pick("least", "documents"))
    trace_view.print_trace(traced, options.html)
    options.write_json(dataclasses.asdict(traced))


def _text(options: Flags) -> str:
    place = options.file or ("standard input" if options.text is None else "--text")
    try:
        if options.file is not None:
            text = Path(options.file).read_text(encoding="utf-8-sig")
        else:
            text = sys.stdin.read() if options.text is None else options.text
        text.encode("utf-8")  # bytes of an argument that are not UTF-8 become half surrogates
    except FileNotFoundError:
        raise InputError(f"no such file: {options.file}") from None
    except UnicodeError:
        raise InputError(f"{place}: got bytes that are not UTF-8; expected UTF-8") from None
    return text
