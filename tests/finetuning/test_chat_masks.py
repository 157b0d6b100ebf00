import json

import pytest
from chats import CHAT, MARKED, learned, save, with_text
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from biomedlm_jax.corpus.chat_template import BUILT_IN, chat_template
from biomedlm_jax.corpus.tokenizer import load_tokenizer
from biomedlm_jax.errors import InputError
from biomedlm_jax.finetuning.chat_masks import Masker
from biomedlm_jax.finetuning.conversations import Conversation
from biomedlm_jax.qa.packing import TOKENS, size

END = 279  # <|endoftext|>
STOPS = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>"}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return save(tmp_path_factory.mktemp("tokenizer") / "plain")


@pytest.fixture(scope="module")
def tokenizer(directory):
    return load_tokenizer(directory)


def masker(tokenizer, template, hidden=()):
    own = with_text(tokenizer, template)
    return Masker.of(chat_template(own), own, (END,), hidden)


def conversation(messages):
    trained = tuple(one["role"] == "assistant" for one in messages)
    return Conversation(tuple(messages), trained, "a:1", "")


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_loss_is_on_the_answers_and_their_stop_token(tokenizer, directory, name):
    one = masker(tokenizer, name)
    masked = one.mask(conversation(CHAT))
    stop = STOPS.get(name, "<|endoftext|>")
    texts = [m["content"] + " " * (name == "llama2") + stop for m in CHAT[2::2]]
    assert [text.removeprefix(" ") for text in learned(tokenizer, *masked)] == texts
    theirs = AutoTokenizer.from_pretrained(directory)
    options = {"chat_template": one.template.text, "return_dict": False}
    assert masked.ids == theirs.apply_chat_template(CHAT, **options)
    # What decoding begins with is what stands before the answer.
    prefix = theirs.apply_chat_template(CHAT[:4], add_generation_prompt=True, **options)
    prompt, mask = masked.prompt(7)
    assert [*prompt.prefix, *prompt.branches[0]][: len(prefix)] == prefix
    assert masked.trained[len(prefix)]
    assert not any(masked.trained[len(prefix) - 3 : len(prefix)])
    assert (prompt.question, mask[0], mask[-1]) == (7, True, True)
    assert prompt.branches[0][-1] == one.stop_id


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """A tokenizer like Llama 2's: pieces that begin with a space, bytes, bos before a text."""
    path, texts = tmp_path_factory.mktemp("tokenizer") / "pieces", ["the kinase is a drug", "It is"]
    trained = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(split=True)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    trained.train_from_iterator([*texts, "### Human: [INST] ### Assistant:"] * 20, trainer)
    tokenizer = Tokenizer.from_str(
        json.dumps({**json.loads(trained.to_str()), "pre_tokenizer": None})
    )
    spaces = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence(spaces)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    bos = {"single": "<s> $A", "special_tokens": [("<s>", 1)]}
    tokenizer.post_processor = processors.TemplateProcessing(**bos)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(path)
    return path


@pytest.mark.parametrize("name", ["alpaca", "human", "llama2", "zephyr"])
def test_pieces_that_begin_with_a_space_have_masks(pieces, name):
    tokenizer, theirs = load_tokenizer(pieces), AutoTokenizer.from_pretrained(pieces)
    template = chat_template(tokenizer, name)
    masked = Masker.of(template, tokenizer, ()).mask(conversation(CHAT))
    texts = [m["content"] + " " * (name == "llama2") + "</s>" for m in CHAT[2::2]]
    assert learned(tokenizer, *masked) == texts
    options = {"chat_template": template.text, "return_dict": False}
    assert masked.ids == theirs.apply_chat_template(CHAT, **options)


def test_generation_blocks_are_taken_as_transformers_does(tokenizer, directory):
    theirs = AutoTokenizer.from_pretrained(directory)
    behind = MARKED.replace(
        "<|im_end|>{% endgeneration %}", "<|im_end|>{{ '\n' }}{% endgeneration %}"
    )
    for text in (MARKED, behind):
        masked = masker(tokenizer, text).mask(conversation(CHAT))
        options = {"return_assistant_tokens_mask": True, "return_dict": True}
        expected = theirs.apply_chat_template(CHAT, chat_template=text, **options)
        assert masked.ids == expected["input_ids"]
        assert [*map(int, masked.trained)] == expected["assistant_masks"]


def test_an_answer_without_weight_is_not_learned(tokenizer):
    for template in ("chatml", MARKED):
        one = conversation(CHAT)._replace(trained=(False, False, False, False, True))
        texts = learned(tokenizer, *masker(tokenizer, template).mask(one))
        assert texts == [CHAT[4]["content"] + "<|im_end|>"]


EACH = "{% for m in messages %}<|im_start|>{{ m.role }}\n"
TURNS = EACH + "{{ m.content }}<|im_end|>\n{% endfor %}"
HEADER = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
SPACED = TURNS.replace("\n{{ m.content", " {{ m.content") + HEADER.replace(
    "assistant\n", "assistant "
)


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        # As Phi-3's, which ends every text but a prompt, and Qwen3's, which marks the last answer.
        (
            TURNS + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}" + HEADER,
            r"conversation of 2 turn.*renders a turn otherwise when messages follow",
        ),
        (
            EACH + "{% if loop.last and m.role == 'assistant' %}<think>{% endif %}{{ m.content }}"
            "<|im_end|>\n{% endfor %}" + HEADER,
            "renders a turn otherwise when messages follow; fix: set another --config",
        ),
        (TURNS + "{% if add_generation_prompt %}Answer:\n{% endif %}", "renders the header of an"),
        (TURNS.replace("<|im_end|>", "") + HEADER, "expected a special token, which stops"),
        (TURNS.replace("im_end", "end") + HEADER, "added_tokens: the tokenizer lacks <.end.>"),
        (
            MARKED.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>"),
            "does not end in the stop token <.im_end.>, so the model would not learn to stop",
        ),
        ("{{ raise_exception('no') }}", "fails: no"),
    ],
)
def test_a_template_without_proof_is_refused(tokenizer, template, problem):
    with pytest.raises(InputError, match=problem):
        masker(tokenizer, template)


def test_an_answer_whose_first_token_has_a_part_of_the_header_is_refused(tokenizer):
    one = masker(tokenizer, SPACED)  # the probe's answer is not merged with the space before it
    for answer in ("the kinase", "a drug"):
        messages = [*CHAT[:2], {"role": "assistant", "content": answer}]
        with pytest.raises(InputError, match="the tokenizer gives other ids to"):
            one.mask(conversation(messages))


def test_spans_between_markers_are_not_learned(tokenizer):
    text = "It is <paragraph>the kinase binds</paragraph> so. <paragraph>x</paragraph>"
    messages = [*CHAT[:2], {"role": "assistant", "content": text}]
    one = masker(tokenizer, "chatml", ("<paragraph>", "</paragraph>"))
    pieces = learned(tokenizer, *one.mask(conversation(messages)))
    assert "".join(pieces) == "It is <paragraph></paragraph> so. <paragraph></paragraph><|im_end|>"
    assert len(pieces) == 3
    # Markers of a question are text.
    question = [{"role": "user", "content": "<paragraph>"}, *CHAT[2:3]]
    assert learned(tokenizer, *one.mask(conversation(question))) == ["The kinase.<|im_end|>"]
    open_span = [*CHAT[:2], {"role": "assistant", "content": "<paragraph> it"}]
    with pytest.raises(InputError, match="has <paragraph> without </paragraph> behind it"):
        one.mask(conversation(open_span))
    with pytest.raises(InputError, match="expected pairs of begin and end markers"):
        masker(tokenizer, "chatml", ("<paragraph>",))


def test_the_oldest_turns_go_first_and_an_answer_is_never_cut(tokenizer):
    one = masker(tokenizer, "chatml")
    chat = [CHAT[0], *CHAT[1:3] * 3, {"role": "user", "content": "the kinase " * 20}, CHAT[4]]
    whole = conversation(chat)

    def fitted(tokens):
        result = one.fit(whole, tokens)
        assert result is not None
        prompt, _ = result.masked.prompt(0)
        assert size(prompt, TOKENS) <= tokens
        assert learned(tokenizer, *result.masked)[-1] == CHAT[4]["content"] + "<|im_end|>"
        return result

    lengths = {}
    for kept in (chat, [chat[0], *chat[3:]], [chat[0], *chat[7:]], chat[7:]):
        prompt, _ = one.mask(conversation(kept)).prompt(0)
        lengths[len(kept)] = size(prompt, TOKENS)
    assert fitted(lengths[9]) == (whole, one.mask(whole), "")
    for positions, messages in (
        (lengths[9] - 1, [chat[0], *chat[3:]]),
        (lengths[3], [chat[0], *chat[7:]]),
        (lengths[3] - 1, chat[7:]),
        (lengths[2], chat[7:]),
    ):
        assert [*fitted(positions).conversation.messages] == messages
    assert fitted(lengths[3] - 1).shortened == "of turns and system message"
    cut = fitted(lengths[2] - 5)
    text = cut.conversation.messages[0]["content"]
    assert cut.shortened == "of the start of the user's text"
    assert 0 < len(text) < len(chat[7]["content"])
    assert chat[7]["content"].endswith(text)
    assert one.fit(whole, 12) is None
    # Behind the last learned answer nothing needs room.
    long = [*CHAT[1:3], {"role": "user", "content": "x" * 200}]
    trailing = one.fit(conversation(long), lengths[2])
    assert trailing is not None
    assert trailing.shortened == ""


def test_an_answer_to_a_system_message_has_no_text_of_a_user_to_cut(tokenizer):
    one, text = masker(tokenizer, "chatml"), {"role": "user", "content": "Why?"}
    whole = conversation([{"role": "system", "content": "the kinase " * 20}, CHAT[2], text])
    assert one.fit(whole, 40) is None
    assert one.fit(whole, 400) is not None


def test_an_input_of_alpaca_is_cut_at_its_start(tokenizer):
    one = masker(tokenizer, "alpaca")
    user = {"role": "user", "content": "Do.\n\n" + "the drug " * 40}
    user |= {"instruction": "Do.", "input": "the drug " * 40}
    whole = conversation([user, CHAT[2]])
    prompt, _ = one.mask(whole).prompt(0)
    fitted = one.fit(whole, size(prompt, TOKENS) - 9)
    assert fitted is not None
    message = fitted.conversation.messages[0]
    assert message["instruction"] == "Do."
    assert user["input"].endswith(message["input"])
    assert message["content"] == f"Do.\n\n{message['input']}"
