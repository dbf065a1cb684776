"""What the first sentence of a benchmark's page says of its aims."""

from collections.abc import Sequence


def aims_met(n_met: int, missed: Sequence[str]) -> str:
    """How many aims were met, and each that was missed with its figure."""
    n = n_met + len(missed)
    left = f"; missed: {'; '.join(missed)}" if missed else ""
    return f"of {n} aim{'s' * (n != 1)} {n_met} {'was' if n_met == 1 else 'were'} met{left}" if n else "no aim was set"
