"""What the recipes `text` and `chat` learn from: files -> prompts of token ids and their masks."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from biomedlm_jax.corpus.chat_template import chat_template, fixed_date, with_template
from biomedlm_jax.errors import InputError, counted
from biomedlm_jax.finetuning.chat_masks import Fitted, Masker
from biomedlm_jax.finetuning.config import ChatSettings, ConversationSettings, TextSettings
from biomedlm_jax.finetuning.conversations import Conversation, Fields, read_conversations
from biomedlm_jax.finetuning.mixing import Share, epoch_examples
from biomedlm_jax.finetuning.pairs import Pair, remarks, text_prompts, train_and_dev
from biomedlm_jax.generation.chat import encode_chat
from biomedlm_jax.model.config import ModelConfig
from biomedlm_jax.qa.packing import Prompt
from biomedlm_jax.qa.prompts import special_texts


@dataclasses.dataclass(frozen=True)
class TextData:
    """Prompts of one branch, the text to learn."""

    prompts: list[Prompt]
    dev_prompts: list[Prompt]
    dev: list[Pair]  # source and target of each dev prompt, for the report
    prefixes: list[list[int]]  # the ids that a dev answer continues
    description: str
    tokenizer: Tokenizer  # to save with the model
    masks: list[list[bool]] | None = None  # which tokens of a branch are learned; None: all
    dev_masks: list[list[bool]] | None = None
    epochs: list[list[int]] | None = None  # the prompts of each epoch; None: all
    ends: tuple[int, ...] = ()  # that an answer ends with; (): the model's

    @property
    def content(self) -> list:
        """What a run is compared by."""
        content: list = [self.prompts, self.dev_prompts, [dataclasses.astuple(p) for p in self.dev]]
        return content if self.masks is None else [*content, self.masks, self.dev_masks, self.ends]


@dataclasses.dataclass(frozen=True)
class Conversations:
    """The conversations of each training file, and those to evaluate on."""

    train: list[list[Conversation]]
    dev: list[Conversation]


def pair_data(
    settings: TextSettings,
    pairs: tuple[list[Pair], list[Pair]],
    tokenizer: Tokenizer,
    config: ModelConfig,
) -> TextData:
    """Return the prompts of `pairs`, train and dev."""
    end, (train, dev) = config.eos_token_id, pairs
    prompts, cut = text_prompts(tokenizer, train, settings.data, end_id=end)
    dev_prompts, _ = text_prompts(tokenizer, dev, settings.data, end_id=end)
    most = f"{settings.data.source_tokens} source or {settings.data.target_tokens} target tokens"
    return TextData(
        prompts,
        dev_prompts,
        dev,
        [prompt.prefix for prompt in dev_prompts],
        f"({cut:,} cut to {most}), {counted(len(dev), 'dev text')}{remarks(tokenizer, train, dev)}",
        tokenizer,
    )


def read_data(settings: TextSettings | ChatSettings, left_out: Counter[str]) -> Any:
    """Read the files of a config; what is left out is counted by "file: reason"."""
    if isinstance(settings, TextSettings):
        return train_and_dev(settings.data, left_out)
    return read_sources(settings.data, left_out)


def text_data(
    settings: TextSettings | ChatSettings,
    read: Any,
    tokenizer: Tokenizer,
    config: ModelConfig,
    left_out: Counter[str],
) -> TextData:
    """Return the prompts of what `read_data` returned, for a model's tokenizer."""
    if isinstance(settings, TextSettings):
        return pair_data(settings, read, tokenizer, config)
    return chat_data(settings, read, tokenizer, config, left_out)


def read_sources(data: ConversationSettings, left_out: Counter[str]) -> Conversations:
    """Return the conversations that a config's `data` names, split into train and dev."""
    fixed_date(data.date)
    resolved = [str(Path(path).resolve()) for path in (*data.train, *data.dev)]
    if len({*resolved}) < len(resolved):
        again = next(path for path in resolved if resolved.count(path) > 1)
        raise InputError(f"got {again} twice in data.train and data.dev; fix: set data.weights")
    fields = Fields(data.source_field, data.target_field, data.group_field)
    shared: dict[str, Any] = {"fields": fields, "on_error": data.on_error, "left_out": left_out}
    formats = data.format * len(data.train) if len(data.format) == 1 else data.format
    train = [read_conversations(p, f, **shared) for p, f in zip(data.train, formats, strict=False)]
    if data.dev:
        dev = [one for path in data.dev for one in read_conversations(path, formats[0], **shared)]
        return Conversations(train, dev)
    sides = [_split(of_file, data.dev_fraction) for of_file in train]
    train, dev = [side[0] for side in sides], [one for side in sides for one in side[1]]
    if not dev or not all(train):
        counts = f"{sum(map(len, train))} conversations to train on and {len(dev)} to evaluate"
        got = f"got data.dev_fraction={data.dev_fraction}: {counts}"
        fix = "change data.dev_fraction, or name files in data.dev"
        raise InputError(f"{got}; every file needs one to train on, all together one of dev: {fix}")
    return Conversations(train, dev)


def make_masker(data: ConversationSettings, tokenizer: Tokenizer, config: ModelConfig) -> Masker:
    """Return the masker of a config's template, proven; raises InputError."""
    template = chat_template(tokenizer, data.template, today=fixed_date(data.date))
    return Masker.of(template, tokenizer, config.end_ids, data.masked_spans)


def chat_data(
    settings: ChatSettings,
    conversations: Conversations,
    tokenizer: Tokenizer,
    config: ModelConfig,
    left_out: Counter[str],
) -> TextData:
    """Return the masked prompts of conversations; `left_out` counts those without a row."""
    data, training = settings.data, settings.training
    masker, shortened = make_masker(data, tokenizer, config), Counter[str]()
    sources = [
        _fitted(masker, of_file, data, left_out, shortened) for of_file in conversations.train
    ]
    dev = _fitted(masker, conversations.dev, data, left_out, Counter())
    train = [one for source in sources for one in source]
    prompts, masks = _prompts(train)
    dev_prompts, dev_masks = _prompts(dev)
    weights = data.weights or (1.0,) * len(sources)
    caps = data.caps or (0,) * len(sources)
    shares = [Share(len(s), w, c) for s, w, c in zip(sources, weights, caps, strict=True)]
    ends = tuple(dict.fromkeys((*config.end_ids, masker.stop_id)))
    prefixes = [_prefix(masker, one.conversation) for one in dev]
    return TextData(
        prompts,
        dev_prompts,
        [_pair(one.conversation) for one in dev],
        prefixes,
        _description(data, shares, train, dev, shortened, masker),
        with_template(tokenizer, masker.template.text),
        masks,
        dev_masks,
        epoch_examples(shares, epochs=training.epochs, seed=training.seed),
        ends,
    )


def _split(conversations: Sequence[Conversation], fraction: float):
    """Return train and dev conversations, chosen by their groups' hashes."""
    sides: tuple[list[Conversation], list[Conversation]] = ([], [])
    for one in conversations:
        number = hashlib.blake2b(one.group.encode(), digest_size=8).digest()
        sides[int.from_bytes(number, "big") < fraction * 2**64].append(one)
    return sides


def _fitted(
    masker: Masker,
    conversations: Sequence[Conversation],
    data: ConversationSettings,
    left_out: Counter[str],
    shortened: Counter[str],
) -> list[Fitted]:
    """Return the conversations masked and cut to a row; those without room are counted."""
    kept = []
    for one in conversations:
        path = one.place.rpartition(":")[0]
        try:
            fitted = masker.fit(one, data.row_tokens)
        except InputError as error:
            if data.on_error == "raise":
                raise InputError(f"{one.place}: {error}") from None
            left_out[f"{path}: masks without proof"] += 1
            continue
        if fitted is None:
            left_out[f"{path}: no room for the answer in a row"] += 1
            continue
        kept.append(fitted)
        if fitted.shortened:
            shortened[fitted.shortened] += 1
    if not kept:
        most = f"{data.row_tokens} tokens of a row"
        raise InputError(f"{', '.join(left_out)}: no conversation is left that fits {most}")
    return kept


def _prompts(fitted: Sequence[Fitted]) -> tuple[list[Prompt], list[list[bool]]]:
    pairs = [one.masked.prompt(number) for number, one in enumerate(fitted)]
    return [prompt for prompt, _ in pairs], [mask for _, mask in pairs]


def _prefix(masker: Masker, conversation: Conversation) -> list[int]:
    """Return the ids that the last answer continues, as decoding begins."""
    before = conversation.messages[: conversation.answered]
    return encode_chat(masker.tokenizer, masker.template.render(before, True))


def _pair(conversation: Conversation) -> Pair:
    """Return all text before the last answer, and that answer."""
    last = conversation.answered
    before = "\n\n".join(one["content"] for one in conversation.messages[:last])
    return Pair(before, conversation.messages[last]["content"], conversation.group)


def _description(data, shares, train, dev, shortened, masker: Masker) -> str:
    """Return what a reader should know of the conversations, as the end of a sentence."""
    stop = masker.tokenizer.id_to_token(masker.stop_id)
    parts = [f"template {masker.template.where}, stop token {stop}"]
    if missing := masker.template.missing_tokens(masker.tokenizer):
        parts.append(f"its {', '.join(missing)} encoded as text, as the tokenizer lacks them")
    for path, share in zip(data.train, shares, strict=True) if len(shares) > 1 else ():
        parts.append(f"{share.per_epoch:,} of {share.examples:,} of {path} an epoch")
    parts += [f"{n:,} without some {what}" for what, n in shortened.items()]
    specials = special_texts(masker.tokenizer)
    spelled = sum(
        any(name in one["content"] for one in fitted.conversation.messages for name in specials)
        for fitted in train
    )
    if spelled:
        parts.append(f"{spelled:,} that spell a special token, which is encoded as that token")
    known = {_texts(one) for one in train}
    again = sum(_texts(one) in known for one in dev)
    if again:
        parts.append(f"{again:,} of dev that are also in train")
    return f"({'; '.join(parts)}), {counted(len(dev), 'dev conversation')}"


def _texts(fitted: Fitted) -> tuple[str, ...]:
    return tuple(" ".join(one["content"].split()) for one in fitted.conversation.messages)
