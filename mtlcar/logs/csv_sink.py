"""metrics.csv: the rows of a run as a table."""

import csv
from collections.abc import Iterable
from pathlib import Path

from mtlcar.logs.ledger import LEDGER, Row, read_rows
from mtlcar.runs.files import replacing


class CsvSink:
    """`<run_dir>/metrics.csv`: columns `row`, `step`, then every metric in the order of its first appearance.

    Rewritten atomically from rows.jsonl at each checkpoint and at the end, so it can never differ from it.
    """

    title = "metrics.csv"
    experiment = None

    def __init__(self, run_dir: Path) -> None:
        self.ledger, self.path = run_dir / LEDGER, run_dir / "metrics.csv"

    def resume(self, rows: Iterable[Row]) -> None:
        self.sync()

    def log(self, row: Row) -> None:
        """Nothing: a table whose columns grow cannot be appended to."""

    def sync(self) -> None:
        names = list(dict.fromkeys(name for row in read_rows(self.ledger) for name in row.metrics))
        with replacing(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["row", "step", *names])
            for row in read_rows(self.ledger):
                writer.writerow([row.number, row.step, *(row.metrics.get(name, "") for name in names)])

    def finish(self, exit_code: int) -> None:
        self.sync()
