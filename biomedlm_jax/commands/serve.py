"""Serve a model on this computer to clients of OpenAI's API.

    biomedlm serve --model=run
    biomedlm serve --model=chat --port=8001 --batch_size=16

The server answers at http://127.0.0.1:8000/v1 until Ctrl-C, with the texts of `biomedlm generate`.
Requests that arrive together are decoded together if they have the same temperature, stop strings
and other options. The server has no password and is for this computer. Answers are not medical
advice.
"""

import signal
import sys
from pathlib import Path

from biomedlm_jax.commands.shared_flags import Flags
from biomedlm_jax.corpus.chat_template import BUILT_IN
from biomedlm_jax.errors import InputError

FLAGS = Flags("model")
HOST = "Address to listen at. Another than this computer's own is open to all who reach it."
FLAGS.define("host", "127.0.0.1", HOST)
FLAGS.define("port", 8000, "Port to listen at; 0: any that is free.", least=0)
HOSTS = "Names of this server in addition to localhost, 127.0.0.1 and --host, comma-separated."
FLAGS.define("allowed_hosts", [], HOSTS)
FLAGS.define("name", None, "Name of the model in requests; default: its directory's.")
TEMPLATE = "Chat template: a name of the tokenizer, or {}, or a .jinja file; default: its own."
FLAGS.define("template", None, TEMPLATE.format(", ".join(BUILT_IN)))
FLAGS.define("batch_size", 8, "Answers decoded at once, and of one request, at most.", least=1)
FLAGS.define("max_waiting", 64, "Requests that wait at most; others get status 429.", least=1)
FLAGS.define("max_prompt_tokens", None, "Tokens of a prompt at most.", kind=int, least=1)
FLAGS.define("max_new_tokens", None, "Tokens of an answer at most.", kind=int, least=1)
FLAGS.define("max_body_bytes", 1_000_000, "Bytes of a request at most.", least=1)
FLAGS.define("timeout", 300, "Seconds of a request at most, with waiting.", least=1)
FLAGS.add("dtype", "mesh")


def run(options: Flags) -> None:
    """Load the model, and serve it until a signal arrives."""
    try:
        from biomedlm_jax.serving import server
    except ModuleNotFoundError as error:
        fix = "pip install 'biomedlm-jax[serve]'"
        raise InputError(f"{error.name} is not installed; fix: {fix}") from None
    from biomedlm_jax.allocator import keep_freed_memory
    from biomedlm_jax.generation.generator import NOTICE
    from biomedlm_jax.training.stopping import Interrupted, interrupted_by_signals

    with interrupted_by_signals(), server.listen(options.host, options.port) as bound:
        keep_freed_memory()
        names = ("template", "batch_size", "max_waiting", "max_prompt_tokens", "max_new_tokens")
        limits = options.pick(*names, "max_body_bytes", "timeout")
        name = options.name or Path(options.model).absolute().name
        own = server.load_server(options.model, name=name, **limits, **options.loading())
        print(NOTICE, file=sys.stderr)
        if options.host not in server.LOCAL:
            reach = "other computers can reach this server, which has no password"
            print(f"warning: got --host={options.host}: {reach}", file=sys.stderr)
        host, port = bound.getsockname()[:2]
        host = f"[{host}]" if ":" in host else host
        bound.listen()  # clients that connect from now on are answered
        print(f"{name}: http://{host}:{port}/v1 (Ctrl-C ends)", file=sys.stderr, flush=True)
        hosts = [*server.LOCAL, options.host, *options.allowed_hosts]
        server.Web(own, hosts).run(sockets=[bound])
        # It ends by a signal only, and raises it again, unless the process began by ignoring it.
        raise Interrupted(signal.SIGINT)
