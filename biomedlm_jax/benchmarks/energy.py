"""Energy that the machine counts: RAPL of the CPU packages, or the power of NVIDIA's GPUs.

Both count the whole package or GPU, with all that runs on it, not one process.
"""

import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
NVIDIA = ("nvidia-smi", "--query-gpu=power.draw", "--format=csv,noheader,nounits", "--loop-ms=200")
RAPL_NAME, NVIDIA_NAME = "RAPL, CPU packages", "nvidia-smi, power of all GPUs"


def open_meter(*, gpu: bool = False, folder: Path = POWERCAP) -> tuple[str, Callable | None]:
    """Return what is read, and a function that returns joules since some start.

    Returns a reason and None if nothing can be read. With `gpu`, nvidia-smi samples the power five
    times a second, in a thread that ends with this process.
    """
    if gpu:
        program = shutil.which(NVIDIA[0])
        return (NVIDIA_NAME, _sample_gpus(program)) if program else ("no nvidia-smi", None)
    packages = [zone for zone in sorted(folder.glob("intel-rapl:*")) if zone.name.count(":") == 1]
    if not packages:
        return "no RAPL counters of a CPU package", None
    try:
        counters = [_Counter(zone) for zone in packages]
    except OSError as error:
        return f"RAPL counters: {error.strerror}", None
    return RAPL_NAME, lambda: sum(counter.joules() for counter in counters)


class _Counter:
    """The energy of one package since the first reading; its counter starts again at its range."""

    def __init__(self, zone: Path):
        self.file = zone / "energy_uj"
        self.range = int((zone / "max_energy_range_uj").read_text())
        self.last, self.total = int(self.file.read_text()), 0

    def joules(self) -> float:
        """Return the joules since the first reading."""
        now = int(self.file.read_text())
        self.total += now - self.last if now >= self.last else now + self.range - self.last
        self.last = now
        return self.total / 1e6


def _sample_gpus(program: str) -> Callable[[], float]:
    state = {"joules": 0.0, "at": time.monotonic(), "watts": 0.0}
    process = subprocess.Popen(
        [program, *NVIDIA[1:]], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    lock = threading.Lock()

    def advance() -> float:
        now = time.monotonic()
        state["joules"] += state["watts"] * (now - state["at"])
        state["at"] = now
        return state["joules"]

    def follow() -> None:
        devices = subprocess.run([program, "--list-gpus"], capture_output=True, text=True)
        count = max(1, len(devices.stdout.splitlines()))
        last: list[float] = []
        assert process.stdout is not None
        for line in process.stdout:
            number = line.strip()
            last = [*last, float(number) if number.replace(".", "", 1).isdigit() else 0.0][-count:]
            with lock:
                advance()
                state["watts"] = sum(last)
        with lock:
            advance()
            state["watts"] = 0.0

    threading.Thread(target=follow, daemon=True).start()

    def joules() -> float:
        with lock:
            return advance()

    return joules
