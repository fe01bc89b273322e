"""What all metrics here are: sums over images, finished on the host at the end of an epoch."""

from typing import Any

from torchmetrics import Metric


class Sums(Metric):
    """A torchmetrics `Metric` whose states add up, over batches and over ranks.

    Torchmetrics' own classes index with a mask when labels are missing, which makes the host wait for the device in
    every batch; an `update` here never does. `compute` gives `{"values": {name: float}, "classes": {class index:
    {name: float}}}`, plain numbers, with what is not defined left out.
    """

    full_state_update = False

    @property
    def update_called(self) -> bool:
        """Always: no image at all is a legal state, not one to warn about."""
        return True

    def compute(self) -> dict[str, Any]:
        raise NotImplementedError
