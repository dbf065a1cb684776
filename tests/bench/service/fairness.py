"""How long one tenant's small mix waits beside another tenant's eight large uploads."""

import statistics
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from api.keys import create_key
from tests.api.serving import RECIPE, form, scored_store, started, task_rows

N_UPLOADS, N_LARGE, N_SMALL, N_IDLE = 8, 20_000, 10, 5


def fairness(*options: str) -> list[str]:
    """Lines of figures: the small mix alone, beside the uploads, and one upload alone."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "store"
        store = scored_store(root)
        large, small = (
            httpx.Client(headers={"Authorization": f"Bearer {create_key(store, tenant, ['mix'])[1]}"}, timeout=600)
            for tenant in ("large", "small")
        )

        def send(client: httpx.Client, name: str, n_rows: int) -> float:
            # The same recipe for both: few safe rows, so that the store of this test has enough of them.
            body = form(task_rows(n_rows, name), {**RECIPE, "interleave_ratio": 0.001})
            begun_s = time.perf_counter()
            answer = client.post(f"{url}/v1/mixes", **body).raise_for_status().json()
            while answer.get("state") in ("queued", "running"):
                time.sleep(0.05)
                answer = client.get(url + answer["links"]["self"]).raise_for_status().json()
            return time.perf_counter() - begun_s

        with started(root, "--log-level", "error", *options) as (_, url), large, small:
            send(small, "first", N_SMALL)
            idle_s = statistics.median(send(small, f"idle {turn}", N_SMALL) for turn in range(N_IDLE))
            alone_s = send(large, "alone", N_LARGE)
            beside_s: list[float] = []
            over = threading.Event()

            def keep_asking() -> None:
                while not over.is_set():
                    beside_s.append(send(small, f"beside {len(beside_s)}", N_SMALL))

            with ThreadPoolExecutor(N_UPLOADS + 1) as pool:
                uploads = [pool.submit(send, large, f"upload {number}", N_LARGE) for number in range(N_UPLOADS)]
                time.sleep(alone_s / 2)  # by then all of them are in
                asking = pool.submit(keep_asking)
                all_s = max(upload.result() for upload in uploads)
                over.set()
                asking.result()
    return [
        f"- a mix of {N_SMALL} rows on the idle service: {idle_s:.2f} s (median of {N_IDLE})",
        f"- one upload of {N_LARGE:,} rows alone: {alone_s:.2f} s",
        f"- beside {N_UPLOADS} such uploads of another tenant, done in {all_s:.1f} s: the small mix took "
        f"{statistics.median(beside_s):.2f} s (median of {len(beside_s)}), {beside_s[0]:.2f} s the first time, "
        f"{max(beside_s):.2f} s at most",
    ]


if __name__ == "__main__":
    print("\n".join(fairness()))
