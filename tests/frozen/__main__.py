"""`python -m tests.frozen`: make the frozen documents anew and print which of them changed."""

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any


def main() -> None:
    """Write the documents to the expected ones, or to another folder with other threads or parts."""
    parser = argparse.ArgumentParser(prog="python -m tests.frozen", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="where to write (default: tests/frozen/expected)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of DuckDB, Polars and the others")
    parser.add_argument("--layout", choices=("plain", "resplit"), default="plain", help="how the store's parts are cut")
    args = parser.parse_args()
    if args.threads is not None:
        limit_threads(args.threads)
    from tests.frozen import freeze  # after the limits: Polars and Arrow read them when they are imported

    with tempfile.TemporaryDirectory() as root:
        found = freeze.documents(Path(root), args.layout)
    changed = freeze.write(found, args.folder or freeze.EXPECTED)
    print(f"{len(found)} documents; changed: {', '.join(changed) or 'none'}")


def limit_threads(n_threads: int) -> None:
    """Give the libraries that start threads of their own this many, whatever the machine has."""
    for name in ("POLARS_MAX_THREADS", "OMP_NUM_THREADS", "RAYON_NUM_THREADS", "PYTHON_CPU_COUNT"):
        os.environ[name] = str(n_threads)
    import duckdb

    connect = duckdb.connect

    def limited(*args: Any, **kwargs: Any) -> Any:
        connection = connect(*args, **kwargs)
        connection.execute(f"set threads = {n_threads}")  # DuckDB reads no variable
        return connection

    duckdb.connect = limited


if __name__ == "__main__":
    main()
