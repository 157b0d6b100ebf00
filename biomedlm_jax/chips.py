"""The chip table: peak FLOP/s, memory and links of each accelerator, with sources.

Sources, read in November 2026: Google Cloud's pages docs.cloud.google.com/tpu/docs/ v4, v5e, v5p,
v6e and tpu7x (peak bf16, HBM, inter-chip bandwidth per chip in both directions), and NVIDIA's data
sheets of the A100 (80GB and 40GB, SXM and PCIe), H100 SXM and H200 SXM (dense bf16, NVLink). The
link bandwidth of v4 is not published: it is twice the pod's all-reduce bandwidth of 1.1 PB/s over
4,096 chips, a rule that gives the published figures of v5e and v6e. The clock converts the
compiler's cycles to seconds. It is the peak over the FLOPs per cycle of the matrix units: 2 cores
of 4 units of 128 x 128 (v4, v5p), one such core (v5e); for v6e and TPU7x it is inferred, 2^19 FLOPs
per device, the power of two above the compiler's own large products.
"""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peak figures of one chip."""

    name: str
    bf16_flops: float  # FLOP/s, dense
    memory: float  # bytes
    memory_bandwidth: float  # bytes/s
    link_bandwidth: float  # bytes/s, both directions added
    link_dimensions: int = 1  # of the torus
    clock: float | None = None  # Hz, of the compiler's cycles; None: it gives none
    devices: int = 1  # jax devices per chip

    @property
    def device_flops(self) -> float:
        """Peak bf16 FLOP/s of one jax device."""
        return self.bf16_flops / self.devices

    @property
    def device_memory(self) -> float:
        """Memory of one jax device, in bytes."""
        return self.memory / self.devices

    @property
    def ring_bandwidth(self) -> float:
        """Bytes/s that one device sends in a ring along one dimension of the torus, one way."""
        return self.link_bandwidth / 2 / self.link_dimensions / self.devices


_V5E = Chip("v5e", 197e12, 16 * GIB, 819e9, 400e9, 2, clock=1.5e9)
_V5P = Chip("v5p", 459e12, 95 * GIB, 2765e9, 1200e9, 3, clock=1.75e9)
_V6E = Chip("v6e", 918e12, 32 * GIB, 1638e9, 800e9, 2, clock=1.75e9)
_TPU7X = Chip("TPU7x", 2307e12, 192 * GIB, 7380e9, 1200e9, 3, clock=2.2e9, devices=2)

# By jax's `device_kind`, every spelling that jax and libtpu use. A name that is not here (TPU v4
# lite, an H100 PCIe, a MIG slice) is another chip: no prefix of it is looked up.
CHIPS = {
    "TPU v4": Chip("v4", 275e12, 32 * GIB, 1200e9, 2 * 1.1e15 / 4096, 3, clock=1.05e9),
    "TPU v5 lite": _V5E,
    "TPU v5e": _V5E,
    "TPU v5": _V5P,
    "TPU v5p": _V5P,
    "TPU v6 lite": _V6E,
    "TPU v6e": _V6E,
    "TPU7x": _TPU7X,
    "TPU v7x": _TPU7X,
    "NVIDIA A100-SXM4-80GB": Chip("A100", 312e12, 80e9, 2039e9, 600e9),
    "NVIDIA A100-SXM4-40GB": Chip("A100 40GB", 312e12, 40e9, 1555e9, 600e9),
    "NVIDIA A100 80GB PCIe": Chip("A100 PCIe", 312e12, 80e9, 1935e9, 600e9),
    "NVIDIA A100-PCIE-40GB": Chip("A100 PCIe 40GB", 312e12, 40e9, 1555e9, 600e9),
    "NVIDIA H100 80GB HBM3": Chip("H100", 989e12, 80e9, 3350e9, 900e9),  # the SXM board
    "NVIDIA H200": Chip("H200", 989e12, 141e9, 4800e9, 900e9),
}


# Compiler options for the steps on a chip, by its name here. They are passed with each step, not in
# the environment, where an unknown one ends the process.
COMPILER_OPTIONS: dict[str, dict[str, str]] = {
    # Without it the compiler cuts products into windows on small slices, at twice the time.
    "v5e": {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"},
    "v6e": {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"},
}
# More of them for training: larger windows in fast memory, so that products read their factors less
# often (decoding takes 4 % longer). The best of four sizes by the compiler's estimate.
TRAINING_OPTIONS: dict[str, dict[str, str]] = {"v5e": {"xla_tpu_scoped_vmem_limit_kib": "30720"}}


def chip(device_kind: str) -> Chip | None:
    """Return the chip of a jax device kind (in any case), or None if it is unknown, as a CPU is."""
    kind = " ".join(device_kind.lower().split())
    return next((known for name, known in CHIPS.items() if name.lower() == kind), None)
