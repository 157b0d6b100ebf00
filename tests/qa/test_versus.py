"""versus.py: what dev chooses, what is scored once, and the same figures by transformers."""

import copy
import functools
import json
import shutil
import weakref

import jax
import numpy as np
import pytest
from scipy import stats

from biomedlm_jax.corpus.tokenizer import load_tokenizer, train_tokenizer
from biomedlm_jax.errors import InputError
from biomedlm_jax.interop.finetuned import KEEP_END, Head, save_finetuned, with_head
from biomedlm_jax.interop.huggingface import export_hf
from biomedlm_jax.model.families import make_config, make_model
from biomedlm_jax.model.heads import CHOICE
from biomedlm_jax.model.vocabulary import grow_vocabulary
from biomedlm_jax.qa import states
from biomedlm_jax.qa import versus as module
from biomedlm_jax.qa.evaluation import evaluate
from biomedlm_jax.qa.prompts import ADDED_TOKENS
from biomedlm_jax.qa.report import FILES, is_report, read_items, read_provenance
from biomedlm_jax.qa.scoring import WAYS
from biomedlm_jax.qa.versus import Setting, choose_setting, list_settings, versus

SHAPE = {"context_length": 192, "layers": 1, "width": 32, "heads": 2, "initializer_range": 0.3}
SHAPE |= {"vocab_size": 332, "bos_token_id": 329, "eos_token_id": 329}
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "<|user|>{{ message['content'] }}{% else %}"
    "<|assistant|>{{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPACED = (  # as Llama 2 and Mistral have it: an answer follows a space
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "[INST] {{ message['content'] }} [/INST]{% else %} {{ message['content'] }}{{ eos_token }}"
    "{% endif %}{% endfor %}"
)
DRUGS = ("renin", "heparin", "insulin", "aspirin", "a statin", "digoxin")
ONES = ("letter", *WAYS["option"])


def silent(line):
    pass


def made_rows(split, count, *, seed):
    rng = np.random.default_rng(seed)
    rows = []
    for n in range(count):
        options = rng.permutation(DRUGS)[:4].tolist()
        one = {"id": f"{split}{n}", "question": f"Which drug helps patient {n} of {split}?"}
        one |= {"options": options, "label": int(rng.integers(4)), "group": f"{split} {n // 3}"}
        rows.append(one)
    return rows


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("versus")


@pytest.fixture(scope="module")
def rows():
    return {"dev": made_rows("dev", 12, seed=1), "test": made_rows("test", 24, seed=2)}


@pytest.fixture(scope="module")
def folder(root, rows):
    """A directory with dev and test questions, without groups."""
    for split, of in rows.items():
        write(
            root / "set" / f"{split}.jsonl",
            [{k: v for k, v in r.items() if k != "group"} for r in of],
        )
    return root / "set"


@pytest.fixture(scope="module")
def grouped(root, rows):
    for split, of in rows.items():
        write(root / "grouped" / f"{split}.jsonl", of)
    return root / "grouped"


@pytest.fixture(scope="module")
def tokenizer(rows):
    texts = [f"Question: {row['question']}\nA. x\nB. y\nAnswer:" for row in rows["test"]]
    built = train_tokenizer([*texts, *DRUGS] * 3, vocab_size=330)
    built.add_special_tokens(["<|user|>", "<|assistant|>"])
    return built


@pytest.fixture(scope="module")
def config():
    return make_config({"model_type": "gpt2", **SHAPE})


@pytest.fixture(scope="module")
def base(root, tokenizer, config):
    return export_hf(make_model(config, key=jax.random.key(0)), tokenizer, root / "base")


@pytest.fixture(scope="module")
def child(root, tokenizer, config):
    """A GPT-2 beside the base, as further training would make it; its directory has a template."""
    model = make_model(config, key=jax.random.key(0))
    keys = iter(jax.random.split(jax.random.key(1), 99))
    model = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(next(keys), leaf.shape), model)
    path = export_hf(model, tokenizer, root / "child")
    (path / "chat_template.jinja").write_text(TEMPLATE)
    return path


@pytest.fixture(scope="module")
def llama(root, tokenizer):
    """A tiny Llama whose template ends in no header of its own, but puts a space before answers."""
    settings = {"model_type": "llama", "mlp_width": 64}
    model = make_model(make_config({**settings, **SHAPE}), key=jax.random.key(2))
    path = export_hf(model, tokenizer, root / "llama")
    (path / "chat_template.jinja").write_text(SPACED)
    return path


@pytest.fixture(scope="module")
def compared(root, child, base, folder):
    lines = []
    given = {"task": f"jsonl:{folder}", "notify": lines.append, "progress": silent}
    result = versus(child, base, root / "report", all_settings=True, **given)
    return result, root / "report", lines


# ---- The same by transformers.


def log_probability(model, ids, start):
    """The sum of the log-probabilities of ids[start:] after those before."""
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    logp = torch.log_softmax(logits, -1)
    return sum(logp[n - 1, ids[n]].item() for n in range(start, len(ids)))


def by_transformers(path, rows):
    """Which answers are right, by setting; tokens and log-probabilities by transformers."""
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager")
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model.eval()

    @functools.cache  # every question has the same one without its text
    def scores(text, answers, chat):
        values = []
        for answer in answers:
            if chat:
                turn = [{"role": "user", "content": text}]
                whole = [*turn, {"role": "assistant", "content": answer}]
                rendered = tokenizer.apply_chat_template(whole, tokenize=False)
                rendered = rendered[: rendered.rindex(answer) + len(answer)]
                before = rendered[: -len(answer)].rstrip(" ")
            else:
                before, rendered = text, f"{text} {answer}"
            start = len(tokenizer(before, add_special_tokens=False).input_ids)
            ids = tokenizer(rendered, add_special_tokens=False).input_ids
            assert ids[:start] == tokenizer(before, add_special_tokens=False).input_ids
            values.append((log_probability(model, ids, start), len(ids) - start))
        return np.array(values).T

    right = {}
    for row in rows:
        options = row["options"]
        pairs = zip("ABCD", options, strict=True)
        shown = "".join(f"{letter}. {option}\n" for letter, option in pairs)
        for chat in (False, True) if tokenizer.chat_template else (False,):
            letters, _ = scores(f"Question: {row['question']}\n{shown}Answer:", "ABCD", chat)
            sums, tokens = scores(f"Question: {row['question']}\nAnswer:", tuple(options), chat)
            alone, _ = scores("Answer:", tuple(options), chat)
            characters = [len(option) for option in options]
            ways = (letters, sums, sums / characters, sums / tokens, sums - alone)
            for way, values in zip(ONES, ways, strict=True):
                answers = right.setdefault(Setting(way, chat).name, [])
                answers.append(int(values.argmax()) == row["label"])
    return {name: np.array(answers) for name, answers in right.items()}


@pytest.fixture(scope="module")
def references(child, base, llama, rows):
    paths = {"child": child, "base": base, "llama": llama}
    return {
        (name, split): by_transformers(path, of)
        for name, path in paths.items()
        for split, of in rows.items()
    }


@pytest.mark.slow
def test_all_figures_are_those_of_transformers(compared, references):
    result, *_ = compared
    chosen = {}
    for role, name in (("model", "child"), ("base", "base")):
        dev, test = references[name, "dev"], references[name, "test"]
        one = result["models"][role]
        assert [*one["dev"]] == [*dev]
        assert len(dev) == (10 if role == "model" else 5)
        for setting, right in dev.items():
            assert one["dev"][setting]["value"] == pytest.approx(right.mean()), setting
        best = max(dev, key=lambda setting: dev[setting].mean())  # of equals the first
        assert one["setting"] == best
        chosen[role] = test[best]
        assert one["accuracy"]["value"] == pytest.approx(test[best].mean())
        others = {setting: right.mean() for setting, right in test.items() if setting != best}
        assert {k: v["value"] for k, v in one["not_chosen"].items()} == pytest.approx(others)
        assert {n for n in dev if dev[n].mean() == dev[best].mean()} == {best, *one["tied"]}
    gain = chosen["model"].astype(int) - chosen["base"]
    wins, losses = int((gain > 0).sum()), int((gain < 0).sum())
    assert wins > 0 < losses
    versus = result["versus"]
    assert (versus["only_first"], versus["only_second"]) == (wins, losses)
    assert versus["p_value"] == pytest.approx(stats.binomtest(wins, wins + losses).pvalue)
    assert versus["test"] == "McNemar's exact test"
    assert versus["difference"]["value"] == pytest.approx(gain.mean())


def test_evaluate_in_the_chat_template_has_its_figures(root, compared, child, base, folder):
    one, given = compared[0]["models"]["model"], {"notify": silent, "progress": silent}
    given |= {"task": f"jsonl:{folder}", "split": "test", "chat_template": True}
    summaries = evaluate(child, root / "in_chat", **given)
    known = {**one["not_chosen"], one["setting"]: one["accuracy"]}
    assert len(summaries) == len(ONES)
    for way, summary in zip(ONES, summaries, strict=True):
        assert summary["accuracy"]["value"] == known[f"{way}, chat template"]["value"]
        assert summary["what"] == f"{child}, {way}, chat template"
        (described,) = read_provenance(root / "in_chat", way=way)["models"]
        assert (described["chat_template"], described["chat_date"]) == (True, None)
    with pytest.raises(InputError, match=r"base has no chat template; fix: leave out"):
        evaluate(base, root / "refused", **given)
    dev = root / "dev_in_chat"
    evaluate(child, dev, **{**given, "split": "dev", "mode": "letter"})
    plain = {**given, "calibrate": dev, "mode": "letter", "chat_template": False}
    with pytest.raises(InputError, match=r"dev_in_chat was made with a chat template; fix"):
        evaluate(child, root / "refused", **plain)
    (summary,) = evaluate(child, root / "calibrated", **{**plain, "chat_template": True})
    assert summary["calibrated"]


@pytest.mark.slow
def test_a_llama_with_another_template_and_questions_in_groups(
    root, llama, base, grouped, rows, references
):
    out, given = root / "of_llama", {"notify": silent, "progress": silent}
    result = versus(llama, base, out, task=f"jsonl:{grouped}", **given)
    dev, test = references["llama", "dev"], references["llama", "test"]
    one = result["models"]["model"]
    for setting, right in dev.items():
        assert one["dev"][setting]["value"] == pytest.approx(right.mean()), setting
    best = max(dev, key=lambda setting: dev[setting].mean())
    assert one["setting"] == best
    assert one["not_chosen"] is None
    of_base = result["models"]["base"]["setting"]
    gain = test[best].astype(int) - references["base", "test"][of_base]
    sums = [gain[n : n + 3].sum() for n in range(0, len(rows["test"]), 3)]
    exact = stats.permutation_test(
        (sums,), np.sum, permutation_type="samples", n_resamples=np.inf, vectorized=False
    )
    assert result["versus"]["p_value"] == pytest.approx(exact.pvalue)
    assert result["versus"]["test"] == "exact permutation test of groups"
    assert result["groups"] == 8


# ---- What is scored, and the report.


def test_the_report_has_both_models_and_says_what_was_chosen(compared, child, base):
    result, out, lines = compared
    assert is_report(out)
    assert {one.name for one in out.iterdir()} == {
        "base",
        "model",
        "report.json",
        "report.html",
        "report.md",
        "SHA256SUMS",
    }
    assert json.loads((out / "report.json").read_text()) == json.loads(json.dumps(result))
    wins, losses = (result["disagreements"][f"only_{role}"]["n"] for role in ("model", "base"))
    assert (wins, losses) == (result["versus"]["only_first"], result["versus"]["only_second"])
    assert wins > 0
    for role, path in (("base", base), ("model", child)):
        one = json.loads((out / role / "report.json").read_text())
        assert one["provenance"]["way"] == result["models"][role]["setting"]
        assert one["provenance"]["models"][0]["path"] == str(path)
        items = read_items(out / role)
        assert np.mean([i["gold"] == i["prediction"] for i in items]) == one["accuracy"]["value"]
        assert {one.name for one in (out / role).iterdir()} <= {*FILES}
    assert lines[0].endswith("test: 24 questions; skipped: nothing")
    assert lines[1].startswith("settings are chosen on 12 questions of dev, 0 that are also scored")
    assert not out.with_name("report.partial").exists()


def test_test_is_scored_once_with_the_chosen_setting_and_one_model_is_loaded_at_a_time(
    root, child, base, folder, monkeypatch
):
    calls, living = [], []
    load, score = module.load_model, module.score

    def loading(path, *arguments, **options):
        alive = [one for one in living if one() is not None]
        assert not alive, "the model before is still on the device"
        model, tokenizer = load(path, *arguments, **options)
        living.extend(map(weakref.ref, jax.tree.leaves(model)))
        return model, tokenizer

    def scoring(model, tokenizer, questions, task, *, mode, wrap, **options):
        calls.append((questions[0].id, mode, wrap is not None))
        return score(model, tokenizer, questions, task, mode=mode, wrap=wrap, **options)

    monkeypatch.setattr(module, "load_model", loading)
    monkeypatch.setattr(module, "score", scoring)
    given = {"task": f"jsonl:{folder}", "notify": silent, "progress": silent}
    result = versus(child, base, root / "once", **given)
    on_test = [call for call in calls if call[0] == "test0"]
    expected = []
    for role in ("base", "model"):
        way, _, chat = result["models"][role]["setting"].partition(", ")
        mode = "letter" if way == "letter" else "option"
        expected.append(("test0", mode, bool(chat)))
    assert on_test == expected
    plain = [("dev0", "letter", False), ("dev0", "option", False)]
    chats = [("dev0", "letter", True), ("dev0", "option", True)]
    assert calls == [*plain, expected[0], plain[0], chats[0], plain[1], chats[1], expected[1]]


def test_the_gold_labels_of_test_do_not_choose(root, compared, child, base, rows):
    changed = [{**row, "label": (row["label"] + 1) % 4} for row in rows["test"]]
    write(root / "changed" / "dev.jsonl", rows["dev"])
    write(root / "changed" / "test.jsonl", changed)
    given = {"task": f"jsonl:{root / 'changed'}", "notify": silent, "progress": silent}
    result = versus(child, base, root / "of_changed", **given)
    for role, one in result["models"].items():
        before = compared[0]["models"][role]
        assert one["setting"] == before["setting"]
        assert {k: v["value"] for k, v in one["dev"].items()} == {
            k: v["value"] for k, v in before["dev"].items()
        }
        assert one["accuracy"]["value"] != before["accuracy"]["value"]


def test_it_resumes(root, compared, child, base, folder, monkeypatch):
    original, calls = states.token_log_probabilities, []
    given = {"task": f"jsonl:{folder}", "notify": silent, "all_settings": True}

    def interrupting(*arguments):
        calls.append(None)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return original(*arguments)

    out, lines = root / "resumed", []
    monkeypatch.setattr(states, "token_log_probabilities", interrupting)
    with pytest.raises(KeyboardInterrupt):
        versus(child, base, out, **given, progress=silent)
    kept = len([*out.with_name("resumed.partial").glob("*/*.npz")])
    assert kept >= 10
    result = versus(child, base, out, **given, progress=lines.append)
    assert "resuming an interrupted evaluation" in lines
    again = json.loads(json.dumps(result))
    first = json.loads(json.dumps(compared[0]))
    for one in (first, again):
        one["provenance"].pop("date")
    assert again == first
    assert not out.with_name("resumed.partial").exists()


def test_a_finetuned_head_has_one_setting(root, compared, config, base, folder):
    head = Head(kind=CHOICE, task="own", row_format=KEEP_END, max_length=64)
    grown = copy.deepcopy(load_tokenizer(base))
    added = grown.add_special_tokens(list(ADDED_TOKENS[CHOICE]))
    trunk = grow_vocabulary(make_model(config, key=jax.random.key(0)), added, key=jax.random.key(0))
    model = with_head(trunk, head, key=jax.random.key(3))
    weights = compared[0]["models"]["base"]["weights"]
    facts = {"task": "own", "dev_accuracy": 1.0, "started_from": {"weights": weights}}
    path = save_finetuned(root / "head", model, grown, head, step=1, facts=facts)
    given = {"task": f"jsonl:{folder}", "notify": silent, "progress": silent}
    result = versus(path, base, root / "of_head", **given)
    assert result["models"]["model"]["setting"] == "classifier"
    assert [*result["models"]["model"]["dev"]] == ["classifier"]
    assert [*result["models"]["base"]["dev"]] == [*ONES]
    assert result["base_in_record"] is True


# ---- Settings.


def test_settings_are_listed_plain_first_and_equals_take_the_first():
    names = [one.name for one in list_settings(["letter", "option"], has_template=True)]
    assert names == [*ONES, *(f"{way}, chat template" for way in ONES)]
    assert [one.name for one in list_settings(["classifier"], has_template=False)] == ["classifier"]
    right, wrong = {"gold": 1, "prediction": 1}, {"gold": 1, "prediction": 0}
    first, second, third = list_settings(["letter", "option"], has_template=False)[:3]
    assert (
        choose_setting({first: [wrong, wrong], second: [right, wrong], third: [wrong, right]})
        == second
    )


# ---- Dev: absent, given by --dev_path, shared with test, limited.


def test_without_a_dev_split_both_have_the_default(root, child, base, rows):
    write(root / "lone" / "test.jsonl", rows["test"])
    lines, given = [], {"progress": silent}
    task = f"jsonl:{root / 'lone'}"
    result = versus(child, base, root / "of_lone", task=task, notify=lines.append, **given)
    assert {one["setting"] for one in result["models"].values()} == {"letter"}
    assert result["chosen_on"] is None
    assert "has no dev split to choose on" in lines[1]
    text = (root / "of_lone" / "report.md").read_text()
    assert "The settings were not chosen: " in text
    assert not any(one["dev"] for one in result["models"].values())


def test_dev_path_limits_and_shared_questions(root, child, base, folder, rows):
    twin = {**rows["test"][4], "id": "twin"}
    file = write(root / "mine" / "validation.jsonl", [twin, *rows["dev"]])
    given = {"task": "medqa", "path": folder / "test.jsonl", "mode": "letter", "limit": 6}
    given |= {"notify": silent, "progress": silent, "dev_path": file, "date": "2026-02-03"}
    dated = shutil.copytree(child, root / "dated")
    (dated / "SHA256SUMS").unlink(missing_ok=True)
    (dated / "chat_template.jinja").write_text("{{ strftime_now('%d %b') }}" + TEMPLATE)
    result = versus(dated, base, root / "of_mine", **given)
    assert [one["chat_date"] for one in result["models"].values()] == [None, "2026-02-03"]
    on = result["chosen_on"]
    assert (on["split"], on["n"], on["left_out"]) == ("dev", 6, ["twin"])
    assert result["n"] == 6
    assert [*result["models"]["model"]["dev"]] == ["letter", "letter, chat template"]
    text = (root / "of_mine" / "report.md").read_text()
    assert "Only the first 6 of 24 were scored." in text


def refusals(root, child, base, folder, rows):
    same = root / "same"
    if not same.exists():
        shutil.copytree(child, same)
        write(root / "no_dev" / "test.jsonl", rows["test"])
        write(root / "copied" / "dev.jsonl", [{**r, "id": f"c{r['id']}"} for r in rows["test"]])
        classes = [{"sentence1": "q", "sentence2": "c", "label": x} for x in ("no", "yes")]
        write(root / "classes" / "dev.jsonl", classes)
    jsonl, medqa = {"task": f"jsonl:{folder}"}, {"task": "medqa", "path": folder}
    return [
        (child, child, jsonl, "as the model and as its base"),
        (child, same, jsonl, "has the same weights as the model"),
        (child, base, {"task": "medqa", "path": root / "no_dev"}, "no dev file of medqa"),
        (child, base, {**medqa, "path": folder / "test.jsonl"}, "is one file, without a dev split"),
        (
            child,
            base,
            {**medqa, "dev_path": folder / "test.jsonl"},
            "of the test split by its name",
        ),
        (
            child,
            base,
            {**medqa, "dev_path": root / "copied"},
            "all 24 dev questions are also scored",
        ),
        (child, base, {**medqa, "dev_path": root / "nowhere.jsonl"}, "nowhere.jsonl"),
        (child, base, {**jsonl, "mode": "classifier"}, "mode=classifier does not fit"),
        (child, base, {**jsonl, "mode": "option", "shots": 1}, "only letter prompts have shots"),
        (child, root / "nothing", jsonl, "nothing"),
        (child, base, {**jsonl, "date": "tomorrow"}, "date='tomorrow'; expected YYYY-MM-DD"),
    ]


@pytest.mark.parametrize("number", range(11))
def test_refusals_come_before_anything_is_scored(
    root, child, base, folder, rows, number, monkeypatch
):
    model, of, given, message = refusals(root, child, base, folder, rows)[number]
    monkeypatch.setattr(module, "score", None)
    with pytest.raises(InputError, match=message) as caught:
        versus(model, of, root / "refused", **given, notify=silent, progress=silent)
    assert "\n" not in str(caught.value)
    assert not (root / "refused").exists()
