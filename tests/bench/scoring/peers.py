"""What the engine is measured against: a plain loop over transformers, and lm-evaluation-harness."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from curator.errors import MissingDependencyError
from curator.render import Rendered
from curator.scoring import RowLoss
from curator.scoring.engines.torch_model import torch
from tests.bench.scoring.rows import context_and_answer

LM_EVAL_BATCHES = (1, 4, 16)  # its documented setting that matters here; the fastest on the rows is taken


def per_row(model: Any, device: str, rows: Sequence[Rendered]) -> list[RowLoss]:
    """Each row through the model's own forward, and the loss of its response tokens from the logits."""
    losses = []
    with torch.inference_mode():
        for row in rows:
            ids_BT = torch.from_numpy(np.asarray(row.input_ids, dtype=np.int64))[None].to(device)
            mask_T = torch.from_numpy(row.loss_mask).to(device)
            logits_TV = model(input_ids=ids_BT, use_cache=False).logits[0, :-1]
            nll_N = torch.nn.functional.cross_entropy(
                logits_TV[mask_T].float(), ids_BT[0, 1:][mask_T], reduction="none"
            )
            losses.append(RowLoss(float(nll_N.double().sum()), len(nll_N)))
    return losses


class LmEval:
    """lm-evaluation-harness's loglikelihood on token lists: rows with one answer each."""

    def __init__(self, model: Any, tokenizer: Any, device: str, max_length: int) -> None:
        try:
            from lm_eval.models.huggingface import HFLM
        except ImportError as error:
            raise MissingDependencyError(
                f"measuring lm-eval needs it: pip install 'ballast-mix[bench]' ({error})"
            ) from error
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        self._make: Callable[[int], Any] = lambda batch: HFLM(
            pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch, max_length=max_length,
            device=device,
        )  # fmt: skip
        self.batch_size = LM_EVAL_BATCHES[0]
        self._harness = self._make(self.batch_size)

    def settle(self, rows: Sequence[Rendered]) -> dict[int, float]:
        """Take the batch size that is fastest on these rows; returns the seconds of each."""
        seconds = {}
        for batch in LM_EVAL_BATCHES:
            self._harness = self._make(batch)
            started = time.perf_counter()
            self.score(rows)
            seconds[batch] = time.perf_counter() - started
        self.batch_size = min(seconds, key=lambda batch: seconds[batch])
        self._harness = self._make(self.batch_size)
        return seconds

    def score(self, rows: Sequence[Rendered]) -> list[RowLoss]:
        """One loss for each row; its tokens are given, so that it spends no time on tokenizing."""
        requests = [(("", ""), *context_and_answer(row)) for row in rows]
        answers = self._harness._loglikelihood_tokens(requests, disable_tqdm=True)
        return [RowLoss(-float(answer[0]), len(request[2])) for answer, request in zip(answers, requests, strict=True)]
