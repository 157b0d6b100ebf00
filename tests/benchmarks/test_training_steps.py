import pytest

from biomedlm_jax.benchmarks.bench_train import OPTIMIZER
from biomedlm_jax.benchmarks.training_steps import TorchSteps


def test_the_peer_is_the_update_of_the_library():
    """Two updates by hand in torch: clipping, AdamW and decay as the settings state them."""
    torch = pytest.importorskip("torch")
    settings = OPTIMIZER
    weight = torch.nn.Parameter(torch.tensor([3.0, -4.0], dtype=torch.float64))
    steps = TorchSteps([weight], [lambda: (weight**2).sum()], settings)
    w, m, v = weight.detach().clone(), torch.zeros(2), torch.zeros(2)
    for t in (1, 2):
        assert steps() == [pytest.approx(float((w**2).sum()))]
        g = 2 * w / (2 * w).norm()
        m = settings.beta1 * m + (1 - settings.beta1) * g
        v = settings.beta2 * v + (1 - settings.beta2) * g**2
        update = (m / (1 - settings.beta1**t)) / ((v / (1 - settings.beta2**t)).sqrt() + 1e-8)
        w = w * (1 - settings.weight_decay) - settings.learning_rate * update
        assert torch.allclose(weight.detach(), w, rtol=1e-7)
