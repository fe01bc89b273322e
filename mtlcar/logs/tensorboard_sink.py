"""TensorBoard event files of a run."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mtlcar.errors import UserError
from mtlcar.logs.ledger import Row


class TensorBoardSink:
    """Event files in `<run_dir>/tensorboard`: tags are the metrics' names, steps the optimizer's.

    A resumed run writes them anew, because rows cannot be taken out of an event file.

    Raises:
        UserError: TensorBoard is not installed.
    """

    title = "TensorBoard"

    def __init__(self, run_dir: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                "logger=tensorboard needs the package tensorboard, which is not installed.\n"
                "Install it with `pip install 'mtlcar[tensorboard]'`, or choose logger=csv."
            ) from error
        self.folder = run_dir / "tensorboard"
        self._make = SummaryWriter
        self.experiment: Any = None
        """The SummaryWriter, None before `resume` and after `finish`."""

    def resume(self, rows: Iterable[Row]) -> None:
        for old in self.folder.glob("events.out.tfevents.*"):
            old.unlink()
        self.experiment = self._make(str(self.folder))
        for row in rows:
            self.log(row)
        self.sync()

    def log(self, row: Row) -> None:
        for name, value in row.metrics.items():
            self.experiment.add_scalar(name, value, row.step)

    def sync(self) -> None:
        self.experiment.flush()

    def finish(self, exit_code: int) -> None:
        if self.experiment is not None:
            self.experiment.close()
            self.experiment = None
