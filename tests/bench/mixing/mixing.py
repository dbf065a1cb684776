"""A whole mix to disk beside `datasets`, and the search for the user's rows in the pool beside datasketch."""

import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curator.corpus.task_set import TaskSet, read_task_set
from curator.corpus.text import texts_of
from curator.messages import load_messages
from curator.mix.build import build_mix
from curator.mix.resolve import resolve
from curator.recipe import Recipe, parse_recipe
from curator.select.duplicates import near_reference
from curator.select.pool import POOLS
from curator.store.store import Store
from tests.bench.mixing.corpus import CORPUS, write_scored_corpus, write_user_file
from tests.bench.mixing.figures import Figure, figure
from tests.bench.mixing.peers import peer
from tests.bench.scoring.timing import interleaved, paired_ratio
from trainer.runs.device import peak_rss_bytes

SIMILARITY = 0.8
_TURN = pa.struct([("role", pa.string()), ("content", pa.string())])
_MESSAGES = pa.schema([("messages", pa.list_(_TURN))])

_NEW_PROCESS = """
import pickle, sys
from time import perf_counter
from curator.mix.build import build_mix
from curator.recipe import parse_recipe
from curator.store.store import Store
store, tasks, seed = Store(sys.argv[1]).open(), pickle.loads(bytes.fromhex(sys.argv[2])), int(sys.argv[3])
for number in range(2):
    recipe = parse_recipe({"corpus": "bench", "interleave_ratio": 0.05, "seed": 1_000_000 + 2 * seed + number})
    started = perf_counter()
    made = build_mix(store, tasks, recipe)
    print(perf_counter() - started)
    store.delete(f"mixes/local/{made.mix_id}")
"""


class MixBench:
    """A store with a pool, a user's file, and both as the peers hold them; made once for both pieces of work."""

    def __init__(self, folder: Path, pool_rows: int, user_rows: int) -> None:
        self.folder = folder
        self.user_file = folder / "user.jsonl"
        self.n_near = write_user_file(self.user_file, user_rows)
        self.store = Store(folder / "store").open()
        write_scored_corpus(self.store, pool_rows)
        self.tasks: TaskSet = read_task_set(self.user_file, folder / "tasks")
        started = perf_counter()
        self.data = resolve(self.store, self._recipe(0))[1][0]  # makes the pool file
        self.build_s = perf_counter() - started
        self._seeds = count(1)

    def _recipe(self, seed: int) -> Recipe:
        return parse_recipe({"corpus": CORPUS, "interleave_ratio": 0.05, "seed": seed})

    def mix(self, repeats: int) -> Figure:
        """Choose, interleave, write JSONL and Parquet; ours also hashes every row and file and counts reasons."""
        self._ours()
        user, pool = self._peer_sets()
        ways: dict[str, Callable[[], object]] = {
            "ours": self._ours,
            "ours, from the user's file": self._ours_from_file,
            "datasets": lambda: self._peer(user, pool),
        }
        seconds = interleaved(ways, repeats)
        return figure(
            f"mix of a {self.tasks.n_rows:,}-row user set from a {len(self.data.candidates):,}-row pool, to disk",
            "datasets interleave + to_json + to_parquet", 4.0, paired_ratio(seconds["datasets"], seconds["ours"]),
            seconds, pool_built_s=self.build_s,
            ratio_from_file=paired_ratio(seconds["datasets"], seconds["ours, from the user's file"]),
        )  # fmt: skip

    def first(self, repeats: int) -> Figure:
        """The first mix over a pool that another process published, beside the next; both from files in memory.

        Apart from it, the same in new processes, which also open DuckDB and load what a mix needs.
        """
        self._ours()
        seconds: dict[str, list[float]] = {"ours": [], "a later mix": []}
        new: list[float] = []
        for _ in range(repeats):
            POOLS.clear()
            for name in seconds:
                started = perf_counter()
                self._ours()
                seconds[name].append(perf_counter() - started)
            new.append(self._ratio_of_new_process())
        return figure(
            f"the first mix of {self.tasks.n_rows:,} rows after a scorer is published", "a later mix", 0.83,
            paired_ratio(seconds["a later mix"], seconds["ours"]), seconds, ratio_new_process=median(new),
        )  # fmt: skip

    def _ratio_of_new_process(self) -> float:
        tasks = pickle.dumps(self.tasks).hex()
        command = [sys.executable, "-c", _NEW_PROCESS, str(self.folder / "store"), tasks, str(next(self._seeds))]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        first, later = map(float, done.stdout.split())
        return later / first

    def _ours(self) -> None:
        """Each time with another seed, for the same request again is answered without work."""
        made = build_mix(self.store, self.tasks, self._recipe(next(self._seeds)), jsonl=self.folder / "mix.jsonl")
        assert made.created
        self.store.delete(f"mixes/local/{made.mix_id}")

    def _ours_from_file(self) -> None:
        tasks = read_task_set(self.user_file, self.folder / "again")
        made = build_mix(self.store, tasks, self._recipe(next(self._seeds)), jsonl=self.folder / "mix.jsonl")
        self.store.delete(f"mixes/local/{made.mix_id}")
        shutil.rmtree(self.folder / "again")

    def _peer_sets(self) -> tuple[Any, Any]:
        datasets, cache = peer("datasets"), str(self.folder / "cache")
        rows = self.folder / "pool.parquet"
        with pq.ParquetWriter(rows, _MESSAGES) as writer:
            texts = self._pool_texts()
            while some := list(islice(texts, 8_192)):
                writer.write_table(pa.table({"messages": [load_messages(text) for text in some]}, schema=_MESSAGES))
        user = datasets.load_dataset("json", data_files=str(self.user_file), split="train", cache_dir=cache)
        return user, datasets.Dataset.from_parquet(str(rows), cache_dir=cache)

    def _pool_texts(self) -> Iterator[str]:
        for start in range(0, len(self.data.candidates), 8_192):
            yield from self.data.table.texts(np.arange(start, min(start + 8_192, len(self.data.candidates))))

    def _peer(self, user: Any, pool: Any) -> None:
        datasets = peer("datasets")
        shares = [1 / 1.05, 0.05 / 1.05]
        mixed = datasets.interleave_datasets(
            [user, pool], probabilities=shares, seed=next(self._seeds), stopping_strategy="first_exhausted"
        )
        mixed.to_json(str(self.folder / "peer.jsonl"))
        mixed.to_parquet(str(self.folder / "peer.parquet"))

    def near(self, repeats: int) -> Figure:
        """User rows against the pool: ours reads the signatures that are kept, datasketch holds its index in memory."""
        table = self.data.table
        started = perf_counter()
        table.signatures("conversation")
        sign_s = perf_counter() - started
        user = [texts_of(batch.column("messages").to_pylist(), "conversation") for batch in self.tasks.batches()]
        peer_index, index_s = self._datasketch_index()
        found: dict[str, set[str]] = {}

        def ours() -> None:
            rows = np.arange(len(self.data.candidates))
            texts = lambda at: (texts_of(chunk, "conversation") for chunk in self.data.candidates.texts(at))  # noqa: E731
            near = near_reference(texts, rows, table.signatures("conversation"), lambda: iter(user), SIMILARITY)
            found["ours"] = set(self.data.candidates.ids.texts(near))

        def datasketch() -> None:
            found["datasketch"] = {key for text in _flat(user) for key in peer_index.query(_minhash(text))}

        seconds = interleaved({"ours": ours, "datasketch": datasketch}, repeats)
        return figure(
            f"near-duplicate check of {self.tasks.n_rows:,} user rows against {len(self.data.candidates):,} pool rows",
            "datasketch MinHashLSH, its index of the pool in memory", 10.0,
            paired_ratio(seconds["datasketch"], seconds["ours"]), seconds,
            planted=self.n_near, found={name: len(ids) for name, ids in found.items()},
            prepared_s={"ours, signatures kept on disk": sign_s, "datasketch index": index_s},
            peak_memory_mib=peak_rss_bytes() >> 20,
            signatures_mib=64 * 4 * len(self.data.candidates) >> 20,
        )  # fmt: skip

    def _datasketch_index(self) -> tuple[Any, float]:
        started = perf_counter()
        index = peer("datasketch").MinHashLSH(threshold=SIMILARITY, num_perm=64)
        ids = self.data.candidates.ids.texts(np.arange(len(self.data.candidates)))
        with index.insertion_session() as session:
            for row, text in enumerate(texts_of(list(self._pool_texts()), "conversation")):
                session.insert(ids[row], _minhash(text), check_duplication=False)
        return index, perf_counter() - started


def _flat(batches: list[list[str]]) -> Iterator[str]:
    return (text for batch in batches for text in batch)


def _minhash(text: str) -> Any:
    """As its documentation has it for speed, all shingles of a text at once; words and n-grams as ours."""
    words = text.casefold().split()
    grams = {" ".join(words[i : i + 3]).encode() for i in range(max(1, len(words) - 2))}
    minhash = peer("datasketch").MinHash(num_perm=64)
    minhash.update_batch(list(grams))
    return minhash
