"""The chip table: peak speed, memory and links of each accelerator, with sources.

Sources, read in November 2026: Google Cloud's pages docs.cloud.google.com/tpu/docs/ v4, v5e, v5p,
v6e and tpu7x (peak bf16, HBM, inter-chip bandwidth per chip in both directions; that of v4 is not
stated and is twice the pod's all-reduce bandwidth of 1.1 PB/s over 4,096 chips, which gives the
stated figures for v5e and v6e), and NVIDIA's data sheets of the A100 SXM (80GB and 40GB), H100 SXM
and H200 SXM (dense bf16, NVLink). The clock, for the compiler's cycles, is the peak over what the
matrix units do in a cycle: 2 cores of 4 units of 128 x 128 (v4, v5p), one such core (v5e); for v6e
and TPU7x, inferred, 2^19 FLOPs a device, the power of two above the compiler's own large products.
"""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one chip can do at most."""

    name: str
    bf16_flops: float  # FLOP/s, dense
    memory: float  # bytes
    memory_bandwidth: float  # bytes/s
    link_bandwidth: float  # bytes/s in both directions together
    link_dimensions: int = 1  # of the torus that the links make
    clock: float | None = None  # Hz, of the compiler's cycles; None where it states none
    devices: int = 1  # jax devices a chip counts as

    @property
    def device_flops(self) -> float:
        """Peak bf16 FLOP/s of one jax device."""
        return self.bf16_flops / self.devices

    @property
    def device_memory(self) -> float:
        """Bytes of one jax device."""
        return self.memory / self.devices

    @property
    def ring_bandwidth(self) -> float:
        """Bytes/s that a ring along one dimension of the torus sends from a device: one way."""
        return self.link_bandwidth / 2 / self.link_dimensions / self.devices


# By the start of jax's `device_kind`; the longest that fits counts.
CHIPS = {
    "TPU v4": Chip("v4", 275e12, 32 * GIB, 1200e9, 2 * 1.1e15 / 4096, 3, clock=1.05e9),
    "TPU v5 lite": Chip("v5e", 197e12, 16 * GIB, 819e9, 400e9, 2, clock=1.5e9),
    "TPU v5": Chip("v5p", 459e12, 95 * GIB, 2765e9, 1200e9, 3, clock=1.75e9),
    "TPU v6 lite": Chip("v6e", 918e12, 32 * GIB, 1638e9, 800e9, 2, clock=1.75e9),
    "TPU7x": Chip("TPU7x", 2307e12, 192 * GIB, 7380e9, 1200e9, 3, clock=2.2e9, devices=2),
    "NVIDIA A100": Chip("A100", 312e12, 80e9, 2039e9, 600e9),
    "NVIDIA A100-SXM4-40GB": Chip("A100 40GB", 312e12, 40e9, 1555e9, 600e9),
    "NVIDIA H100 80GB HBM3": Chip("H100", 989e12, 80e9, 3350e9, 900e9),  # the SXM board
    "NVIDIA H200": Chip("H200", 989e12, 141e9, 4800e9, 900e9),
}


# Options of the compiler that a step is compiled with on a chip, by its name here. They are handed
# over with the step, never through the environment, where an unknown one ends the process.
COMPILER_OPTIONS: dict[str, dict[str, str]] = {
    # On small slices the compiler would cut products into windows and double the time.
    "v5e": {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"},
    "v6e": {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"},
}


def chip(device_kind: str) -> Chip | None:
    """The chip of a jax device kind, or None where it is not known (a CPU)."""
    known = [kind for kind in CHIPS if device_kind.startswith(kind)]
    return CHIPS[max(known, key=len)] if known else None
