"""The check that training sees the rows in their order: `BallastTrainer` shows it each batch before it is used."""

from collections.abc import Sequence

from curator.errors import IntegrityError


class BatchCheck:
    """Looks at the rows of each batch before it is used."""

    n_seen = 0

    def see(self, rows: Sequence[int]) -> None:
        """Raise IntegrityError unless these rows may come now."""
        raise NotImplementedError

    def start_at(self, n_rows: int) -> None:
        """Take `n_rows` as seen, for a run that goes on from a checkpoint."""
        self.n_seen = n_rows


class OrderCheck(BatchCheck):
    """Follows the positions that training sees: 0, 1, ..., n_rows - 1, and again for each further epoch.

    `start` is the number of rows consumed before, for a run that goes on from a checkpoint.
    """

    def __init__(self, n_rows: int, start: int = 0) -> None:
        self.n_rows = n_rows
        self.n_seen = start

    def see(self, rows: Sequence[int]) -> None:
        """Raise IntegrityError unless these are the next positions."""
        expected = [(self.n_seen + index) % self.n_rows for index in range(len(rows))]
        if list(rows) != expected:
            raise IntegrityError(
                f"training left the order of its rows after {self.n_seen} rows: expected positions "
                f"{expected[:8]}, the batch holds {list(rows)[:8]}; something between the data set and the "
                "model reorders, packs or drops rows"
            )
        self.n_seen += len(rows)


class OnceCheck(BatchCheck):
    """For runs with another order: each row once in every epoch, in whatever order."""

    def __init__(self, n_rows: int) -> None:
        self.n_rows = n_rows
        self._epoch: set[int] = set()

    def see(self, rows: Sequence[int]) -> None:
        """Raise IntegrityError for a row that was seen in this epoch already, or that does not exist."""
        for row in rows:
            if row in self._epoch or not 0 <= row < self.n_rows:
                raise IntegrityError(f"row {row} came twice in one epoch, or is none of the {self.n_rows} rows")
            self._epoch.add(row)
            self.n_seen += 1
            if self.n_seen % self.n_rows == 0:
                self._epoch.clear()
