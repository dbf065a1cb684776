"""`python -m tests.bench [NAME ...]`: lists the benchmarks, or runs one.

Each measures the product beside a peer in the same run and prints ratios; `--out` or `--write` puts the figures into
docs/results. They need the peers of the extra `bench`.
"""

import sys
from collections.abc import Sequence
from importlib import import_module

from curator.console import say

# Name: (module with `main(argv)`, what it measures).
BENCHMARKS = {
    "scoring": ("tests.bench.scoring.command", "the torch engine beside transformers, lm-eval and vLLM"),
    "mixing": (
        "tests.bench.mixing.command",
        "choosing, interleaving and writing beside Polars, datasets and datasketch",
    ),
    "training": ("tests.bench.training.command", "a training step and data preparation beside plain TRL"),
    "defences": ("tests.bench.training.defence_table", "what each defence costs beside plain SFT"),
    "service": ("tests.bench.service.load", "the HTTP service under load, downloads beside a static file server"),
    "page": ("tests.bench.page", "views of the page over a corpus of a million rows"),
    "sizes": ("tests.bench.sizes", "what an installation takes on the disk, by extra"),
    "audit": ("tests.bench.validate_audit", "how well audits tell misaligned rows from ordinary ones"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """List the benchmarks, or run the one that is named; returns the exit code."""
    name, *rest = [*(sys.argv[1:] if argv is None else argv), ""]
    if name in BENCHMARKS:
        return int(import_module(BENCHMARKS[name][0]).main(rest[:-1]))
    listing = "\n".join(f"  {known:<10} {what}" for known, (_, what) in BENCHMARKS.items())
    if name not in ("", "-h", "--help"):
        sys.stderr.write(f"error: unknown benchmark {name!r}; known: {', '.join(BENCHMARKS)}\n")
        return 2
    say(f"python -m tests.bench NAME [OPTIONS]; NAME --help explains one\n\n{listing}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
