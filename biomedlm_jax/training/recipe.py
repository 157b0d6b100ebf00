"""Recipe: what `fit` trains; Data: its batches."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import jax

from biomedlm_jax import mesh as meshes
from biomedlm_jax.training.config import RunSettings


class Data(Protocol):
    """An iterator of placed batches whose position is JSON."""

    def __next__(self) -> Any: ...

    def position(self) -> dict:
        """Return where the iterator stands."""
        ...

    def restore(self, position: dict) -> None:
        """Continue after `position`; raises InputError if it is of other data."""
        ...

    def at(self, step: int) -> Any:
        """Return the batch of a step, from 0, and leave the iterator where it stands."""
        ...

    def rows_of(self, step: int) -> list[int]:
        """Return the numbers of the rows, or questions, of that batch."""
        ...

    def close(self) -> None:
        """End reading threads."""
        ...


class StepData:
    """Batches that are functions of the step alone, each process building all of a batch."""

    def __init__(
        self,
        make_batch: Callable[[int], Any],
        layout,
        rows_of: Callable[[int], Iterable[int]] = lambda step: (),
    ):
        self._make_batch, self._layout, self._rows_of = make_batch, layout, rows_of
        self._step = 0

    def __next__(self) -> Any:
        self._step += 1
        return self.at(self._step - 1)

    def at(self, step: int) -> Any:
        """Return the batch of a step."""
        batch = self._make_batch(step)
        return jax.tree.map(lambda array: meshes.place(array, self._layout), batch)

    def rows_of(self, step: int) -> list[int]:
        """Return the numbers of what that batch consists of."""
        return [int(number) for number in self._rows_of(step)]

    def position(self) -> dict:
        """Return the number of batches handed out."""
        return {"step": self._step}

    def restore(self, position: dict) -> None:
        """Continue after that many batches."""
        self._step = position["step"]

    def close(self) -> None:
        """Nothing to close."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What `fit` trains.

    `make_model(*base)` is traced and returns the starting model (a LanguageModel or a Scorer).
    `loss(model, batch, dropout_key=...)` is a scalar in nats. `evaluate(model, step, check_stop)`
    returns figures, every `evaluate_every` steps (0: never) and after the last; it calls
    `check_stop()` between its batches, in every process, and lets pass what that raises.
    `started_from` identifies the start by content. A resumed run may differ in `may_change`, names
    such as training.steps. `write()` writes the recipe's own files, in process 0.
    """

    name: str
    settings: RunSettings
    steps: int
    make_model: Callable[..., Any]
    base: list[Any] = dataclasses.field(default_factory=list)  # emptied; its arrays are reused
    added_tokens: int = 0  # vocabulary rows that are trained beside LoRA's factors
    saves_merged: bool = False  # checkpoints hold the model with LoRA's factors merged, too
    data: Data
    loss: Callable[..., jax.Array]
    evaluate: Callable[[Any, int, Callable[[], None]], dict[str, float]] | None = None
    evaluate_every: int = 0
    tokens_per_step: float
    flops_per_token: float
    started_from: Mapping[str, Any]
    may_change: Sequence[str] = ()
    history: Sequence[Mapping[str, Any]] = ()  # of such changes, for run.json
    write: Callable[[], None] = lambda: None
    introduction: Sequence[str] = ()
