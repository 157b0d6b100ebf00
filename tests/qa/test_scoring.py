"""scoring.py: the numbers of transformers, whatever the batch, the order and the devices."""

from typing import Any

import jax
import numpy as np
import pytest
from cases import mostly_slow
from tokenizers import Tokenizer

from biomedlm_jax import mesh as meshes
from biomedlm_jax.corpus.tokenizer import train_tokenizer
from biomedlm_jax.interop.finetuned import KEEP_END, RELEASED, Head, with_head
from biomedlm_jax.interop.huggingface import export_hf, load
from biomedlm_jax.model.gpt2 import GPT2, GPT2Config
from biomedlm_jax.model.heads import CHOICE, CLASSIFICATION
from biomedlm_jax.model.language_model import axis_names, named_parameters
from biomedlm_jax.model.vocabulary import grow_vocabulary
from biomedlm_jax.qa import scoring
from biomedlm_jax.qa.packing import Prompt
from biomedlm_jax.qa.prompts import ADDED_TOKENS, option_prompts
from biomedlm_jax.qa.questions import Question
from biomedlm_jax.qa.scoring import WAYS, branch_log_probabilities, score
from biomedlm_jax.qa.states import token_log_probabilities
from biomedlm_jax.qa.tasks import find_task
from biomedlm_jax.training.stopping import Stopped

WORDS = "cardiology neuropathy hepatogram gastroscopy Question Answer Abstract Choices renin"
CONTEXT = 96
CONFIG = GPT2Config(
    vocab_size=320,
    context_length=CONTEXT,
    layers=2,
    width=64,
    heads=4,
    initializer_range=0.2,
    scale_attn_by_inverse_layer_idx=True,
    compute_dtype="float32",
)
MEDQA, PUBMEDQA = find_task("medqa"), find_task("pubmedqa")
LONG = Question("long", "gastroscopy neuropathy, " * 40 + "now?", ("renin", "no", "ANP ↓"), 1)
CHOICES = [
    Question("two", "Which hormone rises?", ("renin", "↓ ANP"), 0, group="hormones"),
    Question("three", "Which organ?", ("heart", "liver", "skin and hair"), 2),
    Question("four", "cardiology neuropathy", ("x", "y", "z z z", "Answer Answer"), 1),
    Question("five", "Zahl?", ("1", "12", "123", "1234", "12345"), 4),
    Question(
        "exotic", "🧬\u200d\u202e é e\u0301 \U0010ffff?", ("βµ ≥ 5", "心筋梗塞", "\u00a0x"), 0
    ),
    Question("signs", "What changes?", ("↑ K, ↓ Na", "↓ K, ↑ Na", "↑ K, ↑ Na"), 2),
    LONG,
]
ABSTRACTS = [
    Question("a", "Does it work?", PUBMEDQA.classes, 2, "It did.\nTwice."),
    Question("b", "Is it so?", PUBMEDQA.classes, 0, "Perhaps."),
    Question("c", "And now?", PUBMEDQA.classes, 1, ""),
    Question("long", "hepatogram or not? " * 2, PUBMEDQA.classes, 1, "gastroscopy. " * 60),
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([WORDS] * 20, vocab_size=320)


@pytest.fixture(scope="module")
def release(tokenizer, tmp_path_factory):
    model = GPT2(CONFIG, key=jax.random.key(0))
    return export_hf(model, tokenizer, tmp_path_factory.mktemp("scoring") / "release")


@pytest.fixture(scope="module")
def model(release):
    return load(release, compute_dtype="float32")[0]


@pytest.fixture(scope="module")
def answered(model, tokenizer):
    return score(model, tokenizer, CHOICES, MEDQA, mode="option")


@pytest.fixture(scope="module")
def theirs(release):
    """Log-probability of each token of a text after the first, by transformers."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(1)  # for so small a model more are slower
    model = transformers.GPT2LMHeadModel.from_pretrained(
        release, attn_implementation="eager", dtype=torch.float32
    ).eval()
    assert model.config.scale_attn_by_inverse_layer_idx

    def log_probabilities(text):
        with torch.no_grad():
            logits = model(torch.tensor([text[:-1]])).logits[0]
        logp = torch.log_softmax(logits, -1).numpy()
        return logp[np.arange(len(text) - 1), text[1:]]

    return log_probabilities


def ids(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


def reference(theirs, tokenizer, prompt, answer):
    """The harness's way: the whole text, its last tokens, a row of its own; and the tokens."""
    prefix, whole = ids(tokenizer, prompt), ids(tokenizer, prompt + answer)
    count = len(whole) - len(prefix)
    return float(theirs(whole[-(CONTEXT + 1) :])[-count:].sum()), count


def scores(items):
    return {item["id"]: item["scores"] for item in items}


def spread(model):
    """The number of devices that the vocabulary's rows are on."""
    parameters = named_parameters(model).values()
    (rows,) = (p[...] for p in parameters if "vocab" in axis_names(p))
    return len(rows.sharding.device_set)


def assert_same(results, expected, atol=1e-5):
    assert results.keys() == expected.keys()
    for way in expected:
        one, other = scores(results[way]), scores(expected[way])
        assert one.keys() == other.keys()
        for name, values in other.items():
            np.testing.assert_allclose(one[name], values, atol=atol, err_msg=f"{way}: {name}")


# ---- The numbers of transformers.


def test_options_score_as_in_transformers(answered, theirs, tokenizer):
    assert tuple(answered) == WAYS["option"]
    for n, one in enumerate(CHOICES):
        prompt = f"Question: {one.question}\nAnswer:"
        results = [reference(theirs, tokenizer, prompt, f" {o}") for o in one.options]
        sums, tokens = np.array(results).T
        alone = [reference(theirs, tokenizer, "Answer:", f" {o}")[0] for o in one.options]
        expected = {
            "option": sums,
            "option per character": sums / [len(o) for o in one.options],
            "option per token": sums / tokens,
            "option minus unconditional": sums - alone,
        }
        for way, values in expected.items():
            item = answered[way][n]
            np.testing.assert_allclose(item["scores"], values, atol=1e-4, err_msg=one.id)
            assert item["prediction"] == values.argmax()


@pytest.mark.parametrize("shots", [0, 2])
def test_letters_score_as_in_transformers(model, theirs, tokenizer, shots):
    labelled = CHOICES[:shots]
    questions = CHOICES[2:]
    items = score(model, tokenizer, questions, MEDQA, mode="letter", shots=labelled)["letter"]

    def text(one):
        options = zip("ABCDE", one.options, strict=False)
        return (
            f"Question: {one.question}\n" + "".join(f"{c}. {o}\n" for c, o in options)
        ) + "Answer:"

    before = "".join(f"{text(shot)} {'ABCDE'[shot.label or 0]}\n\n" for shot in labelled)
    for item, one in zip(items, questions, strict=True):
        expected = [
            reference(theirs, tokenizer, before + text(one), f" {c}")[0]
            for c in "ABCDE"[: len(one.options)]
        ]
        np.testing.assert_allclose(item["scores"], expected, atol=1e-4, err_msg=one.id)
        cut = len(ids(tokenizer, before + text(one))) > CONTEXT
        assert item["truncated"] == cut
    assert any(item["truncated"] for item in items)


def test_classes_score_as_in_transformers(model, theirs, tokenizer):
    items = score(model, tokenizer, ABSTRACTS, PUBMEDQA, mode="letter")["letter"]
    for item, e in zip(items, ABSTRACTS, strict=True):
        prompt = f"Abstract: {e.context}\nQuestion: {e.question}\nAnswer:"
        expected = [reference(theirs, tokenizer, prompt, f" {o}")[0] for o in e.options]
        np.testing.assert_allclose(item["scores"], expected, atol=1e-4)


# ---- Items.


def test_items_have_the_fields_of_the_report(answered):
    for way, items in answered.items():
        assert [item["id"] for item in items] == [one.id for one in CHOICES]
        for item, one in zip(items, CHOICES, strict=True):
            assert item["options"] == list(one.options)
            assert item["gold"] == one.label
            assert item["group"] == one.group
            weights = np.exp(np.array(item["scores"]) - max(item["scores"]))
            if way == "option":
                expected = weights / weights.sum()
                np.testing.assert_allclose(item["probabilities"], expected, atol=1e-12)
            else:  # divided by a length, or relative to a prior: no probabilities
                assert item["probabilities"] is None
            assert item["prediction"] == int(np.argmax(item["scores"]))
            assert item["truncated"] == (one is LONG)


def test_ties_go_to_the_first_option(model, tokenizer):
    twins = Question("t", "Which?", ("heart", "liver", "liver", "heart"), 3)
    (item,) = score(model, tokenizer, [twins], MEDQA)["option"]
    assert item["scores"][0] == pytest.approx(item["scores"][3], abs=1e-5)
    even = Question("e", "Which?", ("xx", "yy", "zz", "ww"), 3)  # as many tokens each
    flat = jax.tree.map(jax.numpy.zeros_like, model)
    (item,) = score(flat, tokenizer, [even], MEDQA)["option"]
    assert item["prediction"] == 0
    assert item["probabilities"] == pytest.approx([0.25] * 4)


def test_options_that_became_the_same_tokens_are_marked(model, tokenizer):
    """A row of 40 tokens cuts both options after the same words."""
    scorer, added = make_finetuned(model, tokenizer, CHOICE, 1)
    same = "heart liver skin " * 20
    questions = [
        Question("cut", "Which?", (f"{same}x", f"{same}y"), 0),
        Question("short", "Which?", ("x", "y"), 0),
        Question("twins", "Which?", ("x", "x"), 0),
    ]
    rows = {"mode": "classifier", "max_length": 40}
    (items,) = score(scorer, added, questions, MEDQA, **rows).values()
    assert [item["indistinct"] for item in items] == [True, False, True]


def test_questions_without_answers_are_answered(model, tokenizer):
    (item,) = score(model, tokenizer, [Question("u", "Which?", ("a", "b"), None)], MEDQA)["option"]
    assert item["gold"] is None


# ---- Batches.


def test_order_and_batch_size_do_not_matter(model, tokenizer, answered):
    shuffled = [CHOICES[i] for i in np.random.default_rng(0).permutation(len(CHOICES))]
    for questions, batch_tokens in ((shuffled, 4096), (shuffled[::-1], 1)):
        results = score(model, tokenizer, questions, MEDQA, batch_tokens=batch_tokens)
        assert_same(results, answered)
        assert [item["id"] for item in results["option"]] == [e.id for e in questions]


def test_other_questions_do_not_matter(model, tokenizer, answered):
    for name in ("exotic", "long"):
        (one,) = (e for e in CHOICES if e.id == name)
        (item,) = score(model, tokenizer, [one], MEDQA)["option"]
        np.testing.assert_allclose(item["scores"], scores(answered["option"])[name], atol=1e-5)
    more = [Question(f"more{n}", "neuropathy " * n, ("a", "b b"), 0) for n in range(1, 20)]
    results = score(model, tokenizer, [*more, *CHOICES], MEDQA)
    assert_same({way: results[way][len(more) :] for way in results}, answered)


def many(count):
    """Questions whose rows need every length that there is."""
    return [
        Question(f"m{n}", "renin " * (1 + n), ("x " * (1 + n * n // 100), "y", "z"), n % 3)
        for n in range(count)
    ]


def compiled_steps():
    step: Any = token_log_probabilities
    return step._cache_size()


def test_four_compiles_at_most_however_many_questions(model, tokenizer):
    prompts = option_prompts(tokenizer, many(60), max_length=CONTEXT).prompts
    before = compiled_steps()
    results = [(q, o) for q, o, *_ in branch_log_probabilities(model, prompts, batch_tokens=640)]
    assert sorted(results) == [(q, o) for q in range(60) for o in range(3)]
    compiled = compiled_steps() - before
    assert 2 <= compiled <= 4
    list(branch_log_probabilities(model, prompts, batch_tokens=640))
    assert compiled_steps() == before + compiled


def test_four_compiles_at_most_for_a_mode(model, tokenizer):
    before = compiled_steps()
    score(model, tokenizer, many(60), MEDQA, mode="option", batch_tokens=704)
    assert compiled_steps() - before <= 4


@pytest.mark.parametrize("mode", [*WAYS])
def test_a_signal_is_noticed_between_batches(mode, model, tokenizer, choice, monkeypatch):
    made, calls = [], []
    whole = scoring.batches

    def counted(*arguments, **options):
        for rows in whole(*arguments, **options):
            made.append(rows)
            yield rows

    def check_stop():
        calls.append(None)
        if len(calls) == 3:
            raise Stopped

    monkeypatch.setattr(scoring, "batches", counted)
    scored = choice if mode == "classifier" else (model, tokenizer)
    options = {"mode": mode, "batch_tokens": 64, "check_stop": check_stop}
    with pytest.raises(Stopped):
        score(*scored[:2], many(20), MEDQA, **options)
    assert len(made) == 3
    options["check_stop"] = lambda: calls.append(None)
    made.clear(), calls.clear()
    score(*scored[:2], many(20), MEDQA, **options)
    assert len(calls) == len(made) > 3


def test_iterating_leaves_the_callers_mesh_alone(model, tokenizer):
    prompts = option_prompts(tokenizer, CHOICES[:3], max_length=CONTEXT).prompts
    before = jax.sharding.get_abstract_mesh()
    results = branch_log_probabilities(model, prompts)
    next(results)
    during = jax.sharding.get_abstract_mesh()
    results.close()
    assert during == before


def test_sharded_scores_are_those_of_one_device(release, tokenizer, answered):
    sharded, _ = load(release, mesh=meshes.make_mesh(data=2, fsdp=4), compute_dtype="float32")
    assert spread(sharded) == 8
    assert_same(score(sharded, tokenizer, CHOICES, MEDQA), answered)


# ---- Fine-finetuned heads.


def make_finetuned(model, tokenizer, kind, outputs):
    classes = PUBMEDQA.classes[:outputs] if kind == CLASSIFICATION else ()
    head = Head(kind=kind, task="task", row_format=KEEP_END, max_length=CONTEXT, classes=classes)
    grown = grow_vocabulary(model, len(ADDED_TOKENS[kind]), key=jax.random.key(2))
    finetuned = with_head(grown, head, key=jax.random.key(1))
    if kind == CHOICE:
        bias: Any = finetuned.score.bias
        bias[...] = jax.numpy.array([0.75])
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.add_special_tokens(list(ADDED_TOKENS[kind]))
    return finetuned, tokenizer


@pytest.fixture(scope="module")
def choice(model, tokenizer):
    return make_finetuned(model, tokenizer, CHOICE, 1)


@pytest.fixture(scope="module")
def classifier(model, tokenizer):
    return make_finetuned(model, tokenizer, CLASSIFICATION, 3)


def last_states(finetuned, tokenizer, folder):
    """The state of a text's last token, by transformers, a row for each text."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(1)  # for so small a model more are slower
    export_hf(finetuned.trunk, tokenizer, folder)
    model = transformers.GPT2Model.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    ).eval()

    def state(text):
        with torch.no_grad():
            return model(torch.tensor([text])).last_hidden_state[0, -1].numpy()

    return state


def test_a_choice_head_scores_a_row_for_each_option(choice, tmp_path):
    finetuned, tokenizer = choice
    state = last_states(finetuned, tokenizer, tmp_path / "gpt")
    kernel, bias = np.asarray(finetuned.score.kernel[...]), np.asarray(finetuned.score.bias[...])
    cut = {KEEP_END: 0, RELEASED: 0}
    cutting = Tokenizer.from_str(tokenizer.to_str())
    cutting.enable_truncation(48, strategy="longest_first")
    for row_format in cut:
        options = {"mode": "classifier", "row_format": row_format, "max_length": 48}
        items = score(finetuned, tokenizer, CHOICES, MEDQA, **options)["classifier"]
        for item, one in zip(items, CHOICES, strict=True):
            question = ids(tokenizer, one.question)
            answers = [ids(tokenizer, f" {o}") for o in one.options]
            longest = max(map(len, answers))
            expected = []
            for answer in answers:
                prompt = question
                if len(question) + longest > 46:
                    prompt = question[-(46 - longest) :]
                text = [*prompt, *ids(tokenizer, "[SEP]"), *answer, *ids(tokenizer, "[SEP]")]
                if row_format == RELEASED:
                    option = tokenizer.decode(answer, skip_special_tokens=False)
                    text = cutting.encode(f"{one.question}[SEP]", f"{option}[SEP]").ids
                expected.append((state(text) @ kernel + bias)[0])
            np.testing.assert_allclose(item["scores"], expected, atol=1e-4, err_msg=one.id)
            assert item["truncated"] == (len(question) + longest > 46)
            cut[row_format] += item["truncated"]
    assert cut == {KEEP_END: 1, RELEASED: 1}


def test_a_classifier_scores_every_class_of_a_text(classifier, tmp_path):
    finetuned, tokenizer = classifier
    state = last_states(finetuned, tokenizer, tmp_path / "gpt")
    kernel = np.asarray(finetuned.score.kernel[...])
    assert finetuned.score.bias is None
    items = score(finetuned, tokenizer, ABSTRACTS, PUBMEDQA, mode="classifier")["classifier"]
    assert [item["truncated"] for item in items] == [False, False, False, True]
    for item, e in zip(items, ABSTRACTS, strict=True):
        question, context = ids(tokenizer, e.question), ids(tokenizer, e.context)
        if item["truncated"]:
            context = context[-(CONTEXT - 3 - len(question)) :]
        text = [*ids(tokenizer, "<|CONTEXT|>"), *context, *ids(tokenizer, "<|QUESTION1|>")]
        text += [*question, *ids(tokenizer, "<|ANSWER|>")]
        np.testing.assert_allclose(item["scores"], state(text) @ kernel, atol=1e-4)


@pytest.mark.parametrize("kind", mostly_slow([CHOICE, CLASSIFICATION], [CHOICE]))
def test_heads_do_not_depend_on_batches_or_devices(choice, classifier, kind):
    finetuned, tokenizer = choice if kind == CHOICE else classifier
    questions, task = (CHOICES, MEDQA) if kind == CHOICE else (ABSTRACTS, PUBMEDQA)
    expected = score(finetuned, tokenizer, questions, task, mode="classifier")
    backwards = score(
        finetuned, tokenizer, questions[::-1], task, mode="classifier", batch_tokens=1
    )
    assert_same(backwards, expected)
    abstract = jax.eval_shape(lambda: finetuned)
    mesh = meshes.make_mesh(data=2, fsdp=4)
    sharded = jax.device_put(finetuned, meshes.tree_shardings(abstract, mesh))
    assert spread(sharded) == 8
    assert_same(score(sharded, tokenizer, questions, task, mode="classifier"), expected)


# ---- Bad input.


def test_weights_that_are_not_finite(model, tokenizer, choice):
    broken = jax.tree.map(lambda leaf: leaf * np.nan, model)
    for mode in ("letter", "option"):
        with pytest.raises(ValueError, match=r"^question 'two' .* weights are not finite$"):
            score(broken, tokenizer, CHOICES[:2], MEDQA, mode=mode)
    finetuned, with_tokens = choice
    broken = jax.tree.map(lambda leaf: leaf, finetuned)
    broken.score.bias = broken.score.bias.replace(jax.numpy.array([np.inf]))
    with pytest.raises(ValueError, match=r"^question 'two' .* weights are not finite$"):
        score(broken, with_tokens, CHOICES[:2], MEDQA, mode="classifier")


def test_models_and_tokenizers_that_do_not_serve_a_mode(model, tokenizer, choice, classifier):
    with pytest.raises(ValueError, match=r"got mode='letters'; choose one of letter, option, clas"):
        score(model, tokenizer, CHOICES, MEDQA, mode="letters")
    with pytest.raises(ValueError, match=r"needs a fine-tuned head, and this is a language model"):
        score(model, tokenizer, CHOICES, MEDQA, mode="classifier")
    for mode in ("letter", "option"):
        with pytest.raises(
            ValueError, match=rf"mode={mode} needs a language model, got one with a choice head"
        ):
            score(choice[0], choice[1], CHOICES, MEDQA, mode=mode)
    with pytest.raises(ValueError, match=r"tokenizer lacks \[PAD\], \[CLS\], \[SEP\]"):
        score(choice[0], tokenizer, CHOICES, MEDQA, mode="classifier")
    with pytest.raises(ValueError, match=r"tokenizer lacks <\|CONTEXT\|>"):
        score(classifier[0], choice[1], ABSTRACTS, PUBMEDQA, mode="classifier")


def test_a_head_of_another_width(classifier):
    yes_or_no = [Question("a", "Is it?", ("no", "yes"), 0, "It is.")]
    with pytest.raises(ValueError, match=r"head has 3 classes, and question 'a' has 2"):
        score(classifier[0], classifier[1], yes_or_no, find_task("bioasq"), mode="classifier")
    assert jax.sharding.get_abstract_mesh().empty


def test_an_option_longer_than_the_model_is_named(model, tokenizer):
    endless = Question("endless", "Which?", ("x " * 200, "y"), 0)
    with pytest.raises(ValueError, match=r"'endless'"):
        score(model, tokenizer, [*CHOICES[:2], endless], MEDQA)


def test_no_questions_at_all(model, tokenizer):
    with pytest.raises(ValueError, match=r"at least one question"):
        score(model, tokenizer, [], MEDQA)


def test_a_text_that_spells_a_token_which_the_model_lacks_is_refused(model):
    size = model.config.vocab_size
    prompt = Prompt([1, size], [[2]], 0)
    with pytest.raises(ValueError, match=f"token id {size}, and the model's vocabulary ends at"):
        list(branch_log_probabilities(model, [prompt]))
