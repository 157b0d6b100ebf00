import time

import pytest

from biomedlm_jax.benchmarks import energy


@pytest.fixture
def zone(tmp_path):
    for name in ("intel-rapl:0", "intel-rapl:0:0"):  # a package and its cores, which it contains
        (tmp_path / name).mkdir()
        (tmp_path / name / "max_energy_range_uj").write_text("1000000\n")
        (tmp_path / name / "energy_uj").write_text("400000\n")
    return tmp_path


def test_rapl_counts_packages_across_the_end_of_their_range(zone):
    source, joules = energy.open_meter(folder=zone)
    assert source == "RAPL, CPU packages"
    (zone / "intel-rapl:0" / "energy_uj").write_text("900000\n")
    assert joules() == 0.5
    (zone / "intel-rapl:0" / "energy_uj").write_text("100000\n")
    assert joules() == 0.7


def test_a_machine_without_counters_is_named(tmp_path, monkeypatch):
    assert energy.open_meter(folder=tmp_path) == ("no RAPL counters of a CPU package", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert energy.open_meter(gpu=True) == ("no nvidia-smi", None)


def test_the_power_of_all_gpus_is_summed_over_time(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    lines = "GPU 0: a\\nGPU 1: b\\n"
    program.write_text(
        f'#!/bin/sh\nif [ "$1" = --list-gpus ]; then printf "{lines}"; exit; fi\n'
        'printf "100.0\\n200.0\\n"; exec sleep 5\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    source, joules = energy.open_meter(gpu=True)
    assert source == "nvidia-smi, power of all GPUs"
    limit = time.monotonic() + 20
    while not joules() and time.monotonic() < limit:
        time.sleep(0.01)
    before, start = joules(), time.monotonic()
    time.sleep(0.2)
    assert (joules() - before) / (time.monotonic() - start) == pytest.approx(300, rel=0.1)
