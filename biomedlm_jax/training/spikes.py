"""SpikeDetector: which loss is far above those of the steps before."""

import math
from collections import deque
from collections.abc import Sequence

import numpy as np

WINDOW, LEAST = 128, 32  # losses that are compared, and needed before the first limit
LAG = 2  # a step's limit is known before the losses of the last steps are, which still run


class SpikeDetector:
    """Limits of the loss from the mean and the deviation of earlier losses.

    The limit of step s is from the losses of steps up to s - LAG, so that it does not depend on
    how many steps run ahead of the host, nor on where a run was resumed.
    """

    def __init__(self, deviations: float, losses: Sequence[float] = ()):
        self._deviations = deviations
        self._losses = deque(losses, maxlen=WINDOW + LAG)

    def add(self, loss: float) -> None:
        """Add the loss of the next step; one that is not finite is replaced by the mean.

        One above its limit is replaced by the limit: a few spikes would hide those after them.
        """
        before = [*self._losses] or [0.0]
        finite = min(loss, self.limit()) if math.isfinite(loss) else float(np.mean(before))
        self._losses.append(finite)

    def limit(self, *, unread: int = 0) -> float:
        """Return the limit of the step after the last one added and `unread` more steps.

        Infinite until there are enough losses.
        """
        older = [*self._losses][: len(self._losses) - (LAG - 1 - unread)]
        window = older[-WINDOW:]
        if len(window) < LEAST:
            return math.inf
        return float(np.mean(window) + self._deviations * np.std(window))

    def losses(self) -> list[float]:
        """Return what a resumed run needs, for JSON."""
        return [*self._losses]
