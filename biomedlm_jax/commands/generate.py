"""Complete a prompt, a file of prompts, or prompts typed line by line; or chat.

    biomedlm generate --model=run --prompt="Myocardial infarction is" --max_new_tokens=64
    biomedlm generate --model=run --prompts=in.txt --out=out.jsonl --beams=5 --length_penalty=-0.5
    biomedlm generate --model=run
    biomedlm generate --model=run --chat --system="Answer in one sentence."
    biomedlm generate --model=run --messages=chats.jsonl --out=out.jsonl
    biomedlm generate --model=run --score="The heart has four chambers." --html=score.html

Defaults come from the model's generation_config.json. The same command resumes a file of prompts
or chats. A chat is rendered by the model's chat template, and its answers end at the template's
stop token. Every device answers its share of the prompts with a copy of the model; with
--tensor=N, N devices split a copy. Answers are not medical advice.
"""

from biomedlm_jax.commands.shared_flags import Flags
from biomedlm_jax.corpus.chat_template import BUILT_IN
from biomedlm_jax.generation.options import Options

FLAGS = Flags("model")
FLAGS.define("prompt", None, "Text to complete; default: read prompts from the terminal.")
FLAGS.define("prompts", None, "File of prompts: JSON lines, or .txt with one prompt a line.")
FLAGS.define("chat", False, "Converse: each line is a user's message, answered with its history.")
MESSAGES = "File of chats: JSON lines with messages, the last a user's, or with an instruction."
FLAGS.define("messages", None, MESSAGES)
TEMPLATE = "Chat template: a name of the tokenizer, or {}, or a .jinja file; default: its own."
FLAGS.define("template", None, TEMPLATE.format(", ".join(BUILT_IN)))
FLAGS.define("system", None, "System message that a chat begins with.")
OUT = "File to append the answers to --prompts or --messages to, as JSON lines."
FLAGS.define("out", None, OUT)
FLAGS.define("field", "prompt", "Field of a JSON line with the prompt.")
FLAGS.define("score", None, "Text to print the token probabilities of, instead of an answer.")
FLAGS.define("html", None, "File to write the coloured view of --score to.")
TRACE = "Corpus with indexes of biomedlm trace: print which documents share spans with an answer."
FLAGS.define("trace", None, TRACE)
FLAGS.define("overwrite", False, "Replace the file that --html names.")
TRUNCATE = "Prompt too long: an error, or remove tokens on its left (of a chat, the oldest turns)."
FLAGS.define("truncate", "error", TRUNCATE, choices=("error", "left"))
FLAGS.define("batch_size", 16, "Prompts or chats decoded at once.", least=1)
FLAGS.define("stats", False, "Print the speed; the answer is not streamed.")
FLAGS.define("notice", True, "Print the notice that answers are not medical advice.")
FLAGS.add("dtype", "mesh")
FLAGS.define_settings(Options, exclude=("ends", "max_length"))


def run(options: Flags) -> None:
    """Complete the prompts, or score the text."""
    from biomedlm_jax.generation import terminal

    settings = options.given_settings(Options)
    terminal.check_flags(options, settings)
    if options.score is not None:
        terminal.print_scores(options)
    else:
        terminal.answer(options, settings)
