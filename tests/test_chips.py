import pytest

from biomedlm_jax.chips import CHIPS, COMPILER_OPTIONS, GIB, TRAINING_OPTIONS, chip

# Every device_kind of jax's own tables (pallas tpu_info, mesh_utils) and of libtpu's topologies.
SPELLINGS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5 Lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6 Lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "TPU7x",
    "TPU v7x": "TPU7x",
    "NVIDIA A100-SXM4-80GB": "A100",
    "NVIDIA A100-SXM4-40GB": "A100 40GB",
    "NVIDIA A100 80GB PCIe": "A100 PCIe",
    "NVIDIA A100-PCIE-40GB": "A100 PCIe 40GB",
    "NVIDIA H100 80GB HBM3": "H100",
    "NVIDIA H200": "H200",
}
UNKNOWN = ["cpu", "TPU v2", "TPU v3", "TPU v4 lite", "TPU7", "TPU8i", "TPU8t", ""]
UNKNOWN += ["NVIDIA H100 PCIe", "NVIDIA H200 NVL", "NVIDIA A100-SXM4-40GB MIG 1g.5gb"]


@pytest.mark.parametrize("kind", SPELLINGS)
def test_every_spelling_of_a_device_kind_is_recognised(kind):
    known = chip(kind)
    assert known is not None
    assert known.name == SPELLINGS[kind]


@pytest.mark.parametrize("kind", UNKNOWN)
def test_a_longer_name_is_another_chip(kind):
    assert chip(kind) is None


def test_v5e_has_not_the_figures_of_v5p():
    assert CHIPS["TPU v5e"].bf16_flops == 197e12
    assert CHIPS["TPU v5p"].bf16_flops == 459e12


def test_figures_per_device():
    assert CHIPS["TPU v5 lite"].ring_bandwidth == 100e9  # one direction of one dimension
    assert CHIPS["TPU7x"].device_memory == 96 * GIB
    assert CHIPS["TPU7x"].device_flops == 2307e12 / 2


def test_compiler_options_belong_to_known_chips():
    known = {known.name for known in CHIPS.values()}
    assert set(COMPILER_OPTIONS) | set(TRAINING_OPTIONS) <= known
