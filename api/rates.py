"""A rate by the clock."""

from dataclasses import dataclass

MINUTE_S, HOUR_S = 60.0, 3600.0


@dataclass
class Bucket:
    """A token bucket: `capacity` units, refilled evenly over `period_s` seconds."""

    capacity: float
    period_s: float
    level: float = 0.0
    at_s: float = 0.0

    def take(self, amount: float, now_s: float) -> float:
        """Take units; returns 0.0, or the seconds after which they would be there (then none is taken)."""
        rate = self.capacity / self.period_s
        self.level = min(self.capacity, self.level + (now_s - self.at_s) * rate)
        self.at_s = now_s
        if amount <= self.level:
            self.level -= amount
            return 0.0
        return (amount - self.level) / rate
