"""A server of a tiny model in this process, and the client of OpenAI."""

import contextlib
import threading
import time

import jax
import numpy as np
import pytest
from chats import save, text_of
from openai import OpenAI

from biomedlm_jax.corpus.chat_template import FILE
from biomedlm_jax.corpus.tokenizer import load_tokenizer
from biomedlm_jax.interop.huggingface import export_hf
from biomedlm_jax.model.families import make_model
from biomedlm_jax.model.gpt2 import GPT2Config
from biomedlm_jax.model.llama import LlamaConfig
from biomedlm_jax.serving.server import LOCAL, Web, listen, load_server

SIZES = {"vocab_size": 285, "context_length": 96, "layers": 1, "width": 32, "heads": 2}
SIZES |= {"eos_token_id": 279, "bos_token_id": 279}
CONFIGS = {
    "gpt": GPT2Config(**SIZES, initializer_range=0.4),
    "llama": LlamaConfig(**SIZES, key_value_heads=1, mlp_width=48, initializer_range=0.4),
}
LIMITS = {"batch_size": 8, "max_waiting": 8, "max_prompt_tokens": 60, "max_new_tokens": 40}
LIMITS |= {"max_body_bytes": 4_000, "timeout": 60, "template": None}


@pytest.fixture(scope="session")
def directories(tmp_path_factory):
    """Exports of random models that write ASCII; the second has a chat template."""
    folder = tmp_path_factory.mktemp("served")
    made = {}
    for kind, config in CONFIGS.items():
        tokenizer = load_tokenizer(save(folder / f"tokenizer_{kind}"))
        model = make_model(config, key=jax.random.key(0))
        head = model.wte if kind == "gpt" else model.lm_head
        odd = [i for i in range(285) if i >= 279 or not tokenizer.decode([i]).isascii()]
        if kind == "gpt":  # tied: such a token's logit is 0
            head[...] = head[...].at[np.array(odd)].set(0)
        made[kind] = export_hf(model, tokenizer, folder / kind)
    template = text_of(load_tokenizer(made["llama"]), "chatml")
    (made["llama"] / FILE).write_text(template)
    return made


@contextlib.contextmanager
def serving(directory, **changes):
    """Yield a server, its address and a client; it runs in a thread of this process."""
    own = load_server(directory, name="model", **{**LIMITS, **changes})
    with listen("127.0.0.1", 0) as bound:
        web = Web(own, LOCAL)
        thread = threading.Thread(target=web.run, kwargs={"sockets": [bound]})
        thread.start()
        address = f"http://127.0.0.1:{bound.getsockname()[1]}"
        try:
            while not web.started:
                time.sleep(0.005)
            with OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
                yield own, address, client
        finally:
            web.should_exit = True
            thread.join()


@pytest.fixture(scope="session")
def served(directories):
    """The server of the first model."""
    with serving(directories["gpt"]) as made:
        yield made


@pytest.fixture(scope="session")
def chatting(directories):
    """The server of the second model, which has a chat template."""
    with serving(directories["llama"]) as made:
        yield made


@pytest.fixture(scope="session")
def serve():
    return serving
