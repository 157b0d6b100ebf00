"""Settings of jax for every test, made before it is imported; the fixture of real data.

Eight simulated CPU devices. Compiled programs are kept on disk, shared by all test processes and by
later runs. Most tests compile more than they compute: LLVM does not optimise, a program is
compiled in one piece, and jax 0.10 emits fusions by the older code, which compiles in half the time
(jax 0.11 has no such choice). A test of
compiled code starts a process with its own XLA_FLAGS, others with those of FAST_COMPILATION.
"""

import contextlib
import gc
import importlib
import importlib.metadata
import os
from pathlib import Path

ROOT = Path(__file__).parents[1]
FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
# XLA aborts a process whose simulated devices do not meet within 40 s, on a busy machine, too.
FLAGS += " --xla_cpu_collective_call_terminate_timeout_seconds=180"
os.environ["FAST_COMPILATION"] = FLAGS  # for processes that tests start
FLAGS += " --xla_force_host_platform_device_count=8"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()
for name, value in (
    ("JAX_PLATFORMS", "cpu"),
    # Threads of XLA. With one for each simulated device, the default, a step can deadlock: some
    # devices wait in one collective and the others in another, independent one, on all threads.
    ("PJRT_NPROC", "64"),
    ("OMP_NUM_THREADS", "1"),  # of torch: the test processes share the cores
    ("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "jax")),
    ("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0"),
    ("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1"),
):
    os.environ.setdefault(name, value)

# In a fresh environment imports are compiled to bytecode first, which takes longer than the rest of
# the collection. Two test processes begin at different packages: each finds the other's compiled.
FIRST = {
    "gw0": "torch torch.export transformers peft",
    "gw1": "scipy.stats scipy.optimize pandas chardet matplotlib.pyplot sklearn hypothesis openai "
    "tensorflow_datasets google.protobuf grpc nltk orbax.checkpoint flax.nnx grain datasets",
}
for name in FIRST.get(os.environ.get("PYTEST_XDIST_WORKER", ""), "").split():
    with contextlib.suppress(ImportError):
        importlib.import_module(name)

import jax  # noqa: E402
import pytest  # noqa: E402

gc.disable()  # until all is imported


def pytest_collection_finish():
    """Look for garbage seldom, and not in what the imports made: that took a tenth of the time."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Forget compiled programs when there are many: XLA maps each into memory several times.

    Linux allows a process 65,530 maps. XLA crashes without a message when it gets no more of them.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 30_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session", autouse=True)
def few_figures():
    """Draw the first three figures of runs and of evaluations; the others are copies of the third.

    A figure takes a tenth to a quarter of a second, and hundreds of runs and evaluations make one.
    """
    from biomedlm_jax.qa import report
    from biomedlm_jax.training import fit

    def seldom(draw, file_of):
        drawn = []

        def draw_or_copy(*arguments):
            if len(drawn) < 3:
                draw(*arguments)
                drawn.append(file_of(*arguments).read_bytes())
            else:
                file_of(*arguments).write_bytes(drawn[-1])

        return draw_or_copy

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "plot_losses", seldom(fit.plot_losses, lambda run: run / "loss.png"))
        patch.setattr(report, "plot", seldom(report.plot, lambda summary, file: file))
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The directory with real articles and question sets that BIOMEDLM_DATA names."""
    path = os.environ.get("BIOMEDLM_DATA")
    if not path:
        pytest.skip("BIOMEDLM_DATA is not set: it names the directory with real data")
    return Path(path)


@pytest.fixture
def report_at_both_ends(monkeypatch):
    """Make a module report before and after its work: a short one may end before the first time."""

    @contextlib.contextmanager
    def report_regularly(report):
        report()
        yield
        report()

    return lambda module: monkeypatch.setattr(module, "report_regularly", report_regularly)
