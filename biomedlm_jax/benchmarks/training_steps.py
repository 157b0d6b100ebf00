"""Training steps of both sides of a benchmark: this library's, and torch's with its AdamW."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from biomedlm_jax import mesh as meshes
from biomedlm_jax.training.optimizer import make_optimizer
from biomedlm_jax.training.state import TrainState, init_state, jit_step, train_step


class JaxSteps:
    """A call updates the model `make(*base)` once with each batch, and returns the losses."""

    def __init__(
        self, mesh: Mesh, make: Callable, loss_fn: Callable, batches, settings, *base: Any
    ):
        tx, _ = make_optimizer(settings, steps=1_000_000)
        layout = meshes.sharding(mesh, "batch", None)

        def start(*base) -> TrainState:
            return init_state(make(*base), tx)

        self.mesh, self.batches = mesh, batches
        self.place = functools.partial(jax.tree.map, lambda array: meshes.place(array, layout))
        with jax.set_mesh(mesh):
            abstract = meshes.abstract_sharded(start, mesh, *base)
            shardings = jax.tree.map(lambda x: x.sharding, abstract)
            self.state = jax.jit(start, out_shardings=shardings)(*base)
            self.update = jit_step(train_step, abstract=abstract, tx=tx, seed=0, loss_fn=loss_fn)
        self._loss = jax.jit(loss_fn)
        self._gradient = jax.jit(jax.value_and_grad(loss_fn))

    def __call__(self) -> list[float]:
        """Update once with each batch; return the losses."""
        losses = []
        with jax.set_mesh(self.mesh):
            for batch in self.batches:
                self.state, metrics = self.update(self.state, self.place(batch))
                losses.append(metrics["loss"])
        return [float(loss) for loss in losses]

    def forward(self) -> list[float]:
        """Return the losses of the batches, without gradients."""
        return [float(loss) for loss in self._compute(self._loss)]

    def gradient(self) -> list[float]:
        """Compute the gradients of each batch; return the losses."""
        return [float(loss) for loss, _ in self._compute(self._gradient)]

    def _compute(self, function: Callable) -> list:
        with jax.set_mesh(self.mesh):
            return [
                jax.block_until_ready(function(self.state.model, self.place(batch)))
                for batch in self.batches
            ]


class TorchSteps:
    """A call updates `parameters` once with each function of `losses`, and returns the losses."""

    def __init__(self, parameters, losses: Sequence[Callable], settings, *, fused: bool = False):
        import torch

        self.parameters, rate = list(parameters), settings.learning_rate
        betas, decay = (settings.beta1, settings.beta2), settings.weight_decay / rate
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=rate, betas=betas, weight_decay=decay, fused=fused
        )
        clip = torch.nn.utils.clip_grad_norm_
        self.clip = functools.partial(clip, self.parameters, settings.clip_norm)
        self.losses = losses

    def __call__(self) -> list[float]:
        """Update once with each loss; return them."""
        return [self._step(loss_fn) for loss_fn in self.losses]

    def _step(self, loss_fn: Callable) -> float:
        loss = loss_fn()
        loss.backward()
        self.clip()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

    def forward(self) -> list[float]:
        """Return the losses; what the backward pass needs is stored, too."""
        return [loss_fn().item() for loss_fn in self.losses]

    def gradient(self) -> list[float]:
        """Compute the gradients of each loss; return the losses."""
        return [self._gradient(loss_fn) for loss_fn in self.losses]

    def _gradient(self, loss_fn: Callable) -> float:
        loss = loss_fn()
        loss.backward()
        if self.parameters[0].is_cuda:
            import torch

            torch.cuda.synchronize()
        self.optimizer.zero_grad()
        return loss.item()
