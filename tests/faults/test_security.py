"""Attacks: pickles, code, paths, hostile headers, decompression bombs, templates, the network."""

import bz2
import gzip
import json
import lzma
import os
import pickle
import resource
import shutil
import struct
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
import zstandard
from processes import run_process

from biomedlm_jax.corpus.chat_template import read_chat_template
from biomedlm_jax.corpus.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from biomedlm_jax.errors import InputError
from biomedlm_jax.files import write_jsonl
from biomedlm_jax.interop.huggingface import export_hf, load
from biomedlm_jax.interop.tensorfiles import TensorFiles
from biomedlm_jax.model.families import make_model
from biomedlm_jax.model.gpt2 import GPT2Config
from biomedlm_jax.qa.journal import Journal
from biomedlm_jax.quickstart.abstracts import write_world

ROOT = Path(__file__).parents[2]
CONFIG = GPT2Config(vocab_size=268, context_length=24, layers=2, width=16, heads=2)


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """A Hugging Face directory; copy it before you change it."""
    model = jax.jit(lambda: make_model(CONFIG, key=jax.random.key(0)))()
    tokenizer = train_tokenizer(["aspirin inhibits the enzyme"] * 9, vocab_size=268)
    return export_hf(model, tokenizer, tmp_path_factory.mktemp("release") / "model")


@pytest.fixture
def copy(release, tmp_path):
    return shutil.copytree(release, tmp_path / "model")


# Code


class Touch:
    """A pickle of it makes a file when it is loaded."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return (os.mkdir, (str(self.marker),))


@pytest.mark.parametrize("layout", ["legacy", "zip", "dict"])
def test_a_malicious_pickle_is_not_run(copy, tmp_path, layout):
    torch = pytest.importorskip("torch", reason="torch is in the extra `dev`")
    marker, file = tmp_path / "run", copy / "pytorch_model.bin"
    (copy / "model.safetensors").unlink()
    if layout == "legacy":
        file.write_bytes(pickle.dumps(Touch(marker)))
    else:
        torch.save({"wte.weight": torch.zeros(2), "x": Touch(marker)}, file)
    if layout == "zip":  # the only content
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Touch(marker)))
            archive.writestr("archive/version", "3\n")
    pickle.loads(pickle.dumps(Touch(tmp_path / "proof")))
    assert (tmp_path / "proof").exists(), "the attack works where pickles are loaded"
    with pytest.raises(InputError, match="weights_only=True"):
        load(copy)
    assert not marker.exists()


def test_no_pickle_in_a_journal(tmp_path):
    lines = []
    journal = Journal(tmp_path / "journal", notify=lines.append)
    journal.begin([1], total=1)
    journal.write(0, np.arange(2), size=1, new=True)
    (file,) = (tmp_path / "journal").rglob("*.npz")
    array = np.array([Touch(tmp_path / "run")], dtype=object)
    with file.open("wb") as opened:
        np.savez(opened, array, allow_pickle=True)
    assert journal.read(0) is None
    assert not (tmp_path / "run").exists()
    assert "damaged" in lines[0]


def test_remote_code_is_not_run(copy, tmp_path):
    """Neither that of auto_map nor a module beside the weights."""
    code = f"import os\nos.mkdir({str(tmp_path / 'run')!r})\nclass Own: pass\n"
    for name in ("modeling.py", "configuration.py", "custom_generate/generate.py"):
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text(code)
    config = json.loads((copy / "config.json").read_text())
    names = ("AutoConfig", "AutoModel", "AutoModelForCausalLM")
    config["auto_map"] = dict.fromkeys(names, "modeling.Own")
    config |= {"trust_remote_code": True}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.warns(RuntimeWarning, match="auto_map"):
        load(copy)
    assert not (tmp_path / "run").exists()


def test_templates_are_text(copy, tmp_path):
    """A chat template is kept as it is, and rendered in a sandbox only."""
    call = f"cycler.__init__.__globals__.os.mkdir({str(tmp_path / 'run')!r})"
    template = "{{ " + call + " }}"
    (copy / "chat_template.jinja").write_text(template)
    model, tokenizer = load(copy)
    written = export_hf(model, tokenizer, tmp_path / "again")
    assert (written / "chat_template.jinja").read_text() == template
    chat_template = read_chat_template(written)
    assert chat_template is not None
    with pytest.raises(InputError):
        chat_template.render([{"role": "user", "content": "Hello"}])
    assert not (tmp_path / "run").exists()


def test_nothing_in_the_package_runs_code_of_a_file():
    """No module loads a pickle, and chat templates are rendered in the sandbox only."""
    for file in (ROOT / "biomedlm_jax").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        if file.name == "chat_template.py":
            assert "class _Environment(ImmutableSandboxedEnvironment):" in text
            assert "import Environment" not in text
            text = text.replace("jinja2", "")
        if file.name == "html_page.py":  # it renders the package's own page, and escapes all values
            assert "autoescape=True" in text
            assert text.count("from_string") == text.count('joinpath("html_page.html")') == 1
            text = text.replace("jinja2", "")
        if file.name == "archives.py":  # it takes single headers apart, and extracts nothing
            assert not any(word in text for word in ("tarfile.open", "extract(", "extractall"))
            text = text.replace("tarfile", "")
        for word in ("jinja2", "import pickle", "yaml.load", "allow_pickle=True", "tarfile"):
            assert word not in text, f"{file} has {word}"


# Paths


def test_the_links_of_a_download_cache_are_followed(copy, tmp_path):
    """A snapshot of the Hub's cache is a folder of links to ../../blobs."""
    repository = tmp_path / "models--owner--name"
    snapshot, blobs = repository / "snapshots" / "abc", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    for number, file in enumerate(sorted(copy.iterdir())):
        shutil.move(file, blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    model, tokenizer = load(snapshot)
    assert tokenizer is not None
    written = export_hf(model, tokenizer, tmp_path / "again")
    assert (written / "chat_template.jinja").read_text() == "{{ messages }}"
    assert not any(file.is_symlink() for file in written.iterdir())


@pytest.mark.parametrize("name", ["chat_template.jinja", "additional_chat_templates/rag.jinja"])
def test_no_file_from_elsewhere_is_published(copy, tmp_path, name):
    """Templates are copied unread into an export: a link could name any file of the user."""
    secret = tmp_path / "secret"
    secret.write_text("token")
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).symlink_to(secret)
    with pytest.raises(InputError, match=r"is a link to .*secret, outside of .*model"):
        load_tokenizer(copy)
    (copy / name).unlink()
    (copy / "inside").write_text("{{ messages }}")
    (copy / name).symlink_to(copy / "inside")
    save_tokenizer(load_tokenizer(copy), tmp_path / "saved")
    assert (tmp_path / "saved" / name).read_text() == "{{ messages }}"


# Headers of safetensors


def write_header(file: Path, header: bytes, size: int, length: int | None = None) -> None:
    length = len(header) if length is None else length
    file.write_bytes(struct.pack("<Q", length) + header + bytes(size))


def entry(start: object, end: object, *, dtype: object = "F32", shape: object = (2,)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


HEADERS = {
    "overlap": {"wte.weight": entry(0, 8), "wpe.weight": entry(4, 12)},
    "same bytes": {"wte.weight": entry(0, 8), "wpe.weight": entry(0, 8)},
    "beyond the end": {"wte.weight": entry(0, 8), "wpe.weight": entry(8, 16)},
    "far beyond": {"wte.weight": entry(2**62, 2**62 + 8)},
    "reversed": {"wte.weight": entry(8, 0)},
    "negative": {"wte.weight": entry(-8, 0)},
    "a gap": {"wte.weight": entry(4, 12)},
    "wrong size": {"wte.weight": entry(0, 8, dtype="F64")},
    "dtype": {"wte.weight": entry(0, 8, dtype="object")},
    "dtype of a pickle": {"wte.weight": entry(0, 8, dtype="O")},
    "fraction": {"wte.weight": entry(0, 8, shape=[2.5])},
    "overflow": {"wte.weight": entry(0, 8, shape=[2**32, 2**32])},
    "overflow to the size": {"wte.weight": entry(0, 8, shape=[2**63 + 1, 2])},
    "negative shape": {"wte.weight": entry(0, 8, shape=[-1, -2])},
    "text": {"wte.weight": entry("0", "8")},
    "no entry": {"wte.weight": None},
    "a list": [1],
}


@pytest.mark.parametrize("header", HEADERS)
def test_a_hostile_header(tmp_path, header):
    file = tmp_path / "model.safetensors"
    write_header(file, json.dumps(HEADERS[header]).encode(), 12)
    with pytest.raises(InputError, match=r"model\.safetensors"):
        TensorFiles(tmp_path, CONFIG)


@pytest.mark.parametrize("length", [0, 1, 10**8, 2**31, 2**32, 2**63, 2**64 - 1])
def test_a_hostile_length(tmp_path, length):
    file = tmp_path / "model.safetensors"
    write_header(file, json.dumps({"wte.weight": entry(0, 8)}).encode(), 8, length)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=r"model\.safetensors"):
        TensorFiles(tmp_path, CONFIG)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_a_name_twice_in_a_header(tmp_path):
    """Readers differ in which of the two they take."""
    one, other = (json.dumps(entry(0, 8, shape=shape)).encode() for shape in ([2], [1, 2]))
    header = b'{"wte.weight": ' + one + b', "wte.weight": ' + other + b"}"
    write_header(tmp_path / "model.safetensors", header, 8)
    with pytest.raises(InputError, match=r"model\.safetensors.*'wte\.weight' twice"):
        TensorFiles(tmp_path, CONFIG)


# Decompression

MEMORY = """
import resource, sys
from pathlib import Path
from biomedlm_jax.errors import InputError
from biomedlm_jax.files import write_jsonl
from biomedlm_jax.streams import read_blocks, read_lines
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before, path, size = peak(), Path(sys.argv[1]), 0
for block in read_blocks(path):
    size += len(block)
assert size == int(sys.argv[2]), size
blocks = peak() - before
try:
    for _ in read_lines(path, limit=2**22):
        pass
except InputError as error:
    assert "longer than" in str(error), error
else:
    raise SystemExit("the line was read")
print(blocks, peak() - before)
"""


def bombs(size: int) -> dict[str, bytes]:
    """Streams of one line of `size` zeros: one zstd frame, and several streams of the others."""
    stream = zstandard.ZstdCompressor().compressobj()
    frame = [stream.compress(bytes(2**20)) for _ in range(size // 2**20)]
    part = bytes(2**26)
    ends = {".gz": gzip.compress(part), ".bz2": bz2.compress(part), ".xz": lzma.compress(part)}
    several = {suffix: data * (size // len(part)) for suffix, data in ends.items()}
    return {".zst": b"".join([*frame, stream.flush()]), **several}


@pytest.mark.slow
def test_bombs_stay_within_memory(tmp_path):
    """A file of a few kilobytes that inflates to one line of 128 MiB, read in 64 MiB."""
    size = 2**27
    for suffix, data in bombs(size).items():
        file = tmp_path / f"bomb{suffix}"
        file.write_bytes(data)
        assert len(data) < 2**19
        done = run_process(["-c", MEMORY, file, size])
        assert done.returncode == 0, done.stderr
        blocks, lines = map(int, done.stdout.split())
        assert blocks < 64, suffix
        assert lines < 64, suffix


# Network

BLOCKED = """
import runpy, socket, sys
def refuse(*arguments, **options):
    raise SystemExit(f"network: {arguments!r}")
inet = socket.socket.connect
def connect(self, address):
    if self.family != socket.AF_UNIX:
        refuse(address)
    return inet(self, address)
socket.socket.connect = socket.socket.connect_ex = connect
socket.getaddrinfo = socket.gethostbyname = socket.create_connection = refuse
from biomedlm_jax.cli import main
for line in open("commands", encoding="utf-8"):
    name, *flags = line.rstrip("\\n").split("\\t")
    code = main([name, *flags])
    if code != EXPECTED.get(name, 0):
        raise SystemExit(f"{name} ended with {code}")
"""
TINY = [f"--config={ROOT}/configs/pretrain.py:tiny", "--config.training.steps=4"]
TINY += ["--config.optimizer.warmup_steps=0"]
TINY += ["--config.logging.trackers=()"]
TUNE = [f"--config={ROOT}/configs/finetune.py:small_world", "--config.training.epochs=1"]
TUNE += ["--config.training.batch_size=4"]
TUNE += ["--config.task.name=jsonl:questions", "--config.logging.trackers=()"]


def run_blocked(place: Path, *commands: list[str], expected: dict[str, int] | None = None):
    (place / "commands").write_text("\n".join("\t".join(one) for one in commands))
    program = f"EXPECTED = {expected or {}!r}\n{BLOCKED}"
    flags = {"XLA_FLAGS": os.environ["FAST_COMPILATION"]}
    return run_process(["-c", program], cwd=place, env=flags)


def test_the_block_works(tmp_path):
    """The one command that may use the network cannot."""
    command = ["import-hf", "--source=hf://owner/name", "--out=x"]
    done = run_blocked(tmp_path, command, expected={"import-hf": 2})
    assert "network" in done.stderr + done.stdout


@pytest.mark.slow
def test_no_command_uses_the_network(tmp_path):
    pytest.importorskip("transformers", reason="transformers is in the extra `dev`")
    write_world(tmp_path / "world", families=12, documents=200)
    for split, first in (("train", 0), ("dev", 4)):
        rows = [
            {"question": f"Is it {n}?", "options": ["a", "b"], "label": n % 2}
            for n in range(first, first + 4)
        ]
        write_jsonl(tmp_path / "questions" / f"{split}.jsonl", rows)
    text = "--input=world/abstracts.jsonl"
    done = run_blocked(
        tmp_path,
        ["train-tokenizer", text, "--vocab_size=512", "--out=tokenizer"],
        [
            "build-tokens",
            text,
            "--tokenizer=tokenizer",
            "--length=32",
            "--validation_fraction=0.2",
            "--out=tokens",
        ],
        ["pretrain", *TINY, "--config.data.path=tokens", "--workdir=run"],
        ["export-hf", "--model=run", "--out=release"],
        ["verify-hf", "--model=release"],
        ["import-hf", "--source=release", "--out=imported"],
        ["generate", "--model=imported", "--prompt=The", "--max_new_tokens=2"],
        ["finetune", *TUNE, "--config.task.max_length=16", "--model=imported", "--workdir=tuned"],
        ["evaluate", "--model=tuned", "--task=jsonl:questions", "--split=dev", "--out=report"],
    )
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-500:]
