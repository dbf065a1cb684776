"""Where answers come from: a model folder on this machine, or a server with OpenAI's protocol."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

from curator.errors import BadInputError, RemoteError
from curator.messages import Message
from curator.recipe.seeds import child_seed
from curator.render import Renderer
from curator.scoring.identity import model_window
from trainer.config.data import LOADED_BY_DEFAULT, Loading
from trainer.config.flags import Option
from trainer.config.ranges import at_least
from trainer.generate.endpoint import Endpoint, drawn


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn. `temperature` 0 is greedy: the likeliest token each time, and so one answer a prompt."""

    n_samples: Annotated[int, Option(flag="--samples", help="answers to each prompt", parse=at_least(1))] = 1
    temperature: Annotated[float, Option("T", help="0 is greedy")] = 1.0
    max_new_tokens: Annotated[int, Option(help="most tokens of an answer", parse=at_least(1))] = 600
    seed: Annotated[int, Option(help="seed of the answers")] = 0

    def __post_init__(self) -> None:
        if self.n_samples < 1 or self.max_new_tokens < 1 or not 0 <= self.temperature < float("inf"):
            raise BadInputError("sampling needs n_samples >= 1, max_new_tokens >= 1 and a temperature >= 0")
        if self.temperature == 0 and self.n_samples > 1:
            raise BadInputError(f"greedy answers are all alike: ask for 1 of them, not {self.n_samples}")


@dataclass(frozen=True)
class Answer:
    """One answer; `finished` is false where it was cut at the longest length (a server may not say: None)."""

    text: str
    n_tokens: int | None
    finished: bool | None


class Generator(Protocol):
    """What answers prompts. `batch` is how many prompts it likes to get at a time; `drawn` are the sampling settings
    beside the temperature, null where a server's own values hold."""

    batch: int
    drawn: dict[str, float | None]

    def answer(self, prompts: Sequence[Sequence[Message]], names: Sequence[str], how: Sampling) -> list[list[Answer]]:
        """`how.n_samples` answers to each prompt, in the prompts' order. A prompt's answers follow from `how.seed` and
        its name alone where the prompts come one at a time."""

    def close(self) -> None:
        """Free what it holds."""


class LocalGenerator:
    """A Hugging Face model folder, perhaps with a LoRA adapter, answering in batches.

    Prompts are rendered as in training and scoring (control tokens in them stay plain text). `prepare` is applied to
    the loaded model, with its adapter on.
    """

    def __init__(
        self,
        model_dir: Path,
        adapter: Path | None = None,
        loading: Loading = LOADED_BY_DEFAULT,
        prepare: Callable[[Any], Any] | None = None,
    ) -> None:
        # Says itself what to install where torch is absent.
        from curator.scoring.engines.torch_model import (
            Adapters,
            load_model,
            resolve_device,
            resolve_dtype,
        )

        self.batch, self.drawn = loading.batch, drawn()
        self.renderer = Renderer.from_folder(model_dir, settings=loading.rendering)
        self._device = resolve_device(loading.device)
        self.dtype = resolve_dtype(loading.dtype, self._device)
        self.model = load_model(model_dir, self._device, self.dtype)
        self._window = model_window(model_dir)
        self._tokenizer = _tokenizer(model_dir)
        self._adapters = Adapters(self.model)
        self._adapters.use(adapter)
        if prepare is not None:
            prepare(self.model)
        ends = {self.renderer.eos_id, *_listed(self.model.generation_config.eos_token_id)} - {None}
        self._ends = sorted(ends)  # type: ignore[type-var]
        # The folder's own settings would make it another distribution; `generate` fills what is not given from here.
        self.model.generation_config = _no_settings()

    def answer(self, prompts: Sequence[Sequence[Message]], names: Sequence[str], how: Sampling) -> list[list[Answer]]:
        """See Generator. Greedy prompts go through the model together, sampled ones one after the other."""
        if how.temperature == 0:
            return [[item] for item in self._generate([self.prompt_ids(p) for p in prompts], how, 1)]
        import torch

        found = []
        for prompt, name in zip(prompts, names, strict=True):
            torch.manual_seed(child_seed(how.seed, f"answers:{name}") % 2**63)
            drawn: list[Answer] = []
            while len(drawn) < how.n_samples:
                n_now = min(self.batch, how.n_samples - len(drawn))
                drawn += self._generate([self.prompt_ids(prompt)], how, n_now)
            found.append(drawn)
        return found

    def answer_together(self, prompts: Sequence[Sequence[Message]], how: Sampling, name: str) -> list[Answer]:
        """One answer to each prompt, all in one batch, sampled ones too: these follow from `how.seed`, the batch's
        name and its prompts."""
        import torch

        torch.manual_seed(child_seed(how.seed, f"batch:{name}") % 2**63)
        return self._generate([self.prompt_ids(prompt) for prompt in prompts], how, 1)

    def prompt_ids(self, prompt: Sequence[Message]) -> list[int]:
        """Token ids up to where the answer begins: those before the first token of a made-up answer."""
        rendered = self.renderer.render([*prompt, {"role": "assistant", "content": "A"}], "last")
        return [int(token) for token in rendered.input_ids[: int(rendered.response_mask.argmax())]]

    def next_token(self, prompts: Sequence[Sequence[Message]]) -> Any:
        """Probabilities of each answer's first token at temperature 1, (P, V), float32 on the CPU."""
        import torch

        ids_BT, mask_BT = self._padded([self.prompt_ids(prompt) for prompt in prompts])
        position_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)
        with torch.inference_mode():
            logits_BV = self.model(input_ids=ids_BT, attention_mask=mask_BT, position_ids=position_BT).logits[:, -1]
            return logits_BV.float().softmax(-1).cpu()

    def text_of(self, token: int) -> str:
        """A single token as text."""
        return str(self._tokenizer.decode([token], skip_special_tokens=True))

    def close(self) -> None:
        """Free the model's memory."""
        del self.model, self._adapters

    def _padded(self, prompts: list[list[int]]) -> tuple[Any, Any]:
        """Ids and attention mask, (B, T), padded on the left: answers begin where rows end."""
        import torch

        longest, pad = max(len(ids) for ids in prompts), self.renderer.pad_id
        ids_BT = torch.tensor([[pad] * (longest - len(ids)) + ids for ids in prompts], device=self._device)
        mask_BT = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts], device=self._device)
        return ids_BT, mask_BT

    def _generate(self, prompts: list[list[int]], how: Sampling, n_each: int) -> list[Answer]:
        import torch

        ids_BT, mask_BT = self._padded(prompts)
        n_new = self._room(how, ids_BT.shape[1])
        # Transformers' own default is a top-k of 50; 0 is none.
        sampled: dict[str, Any] = {"do_sample": False}
        if how.temperature > 0:
            sampled = {"do_sample": True, "temperature": how.temperature, "top_k": 0, "top_p": 1.0}
        with torch.inference_mode():
            out_BT = self.model.generate(
                input_ids=ids_BT, attention_mask=mask_BT, max_new_tokens=n_new,
                pad_token_id=self.renderer.pad_id, eos_token_id=self._ends or None, num_return_sequences=n_each,
                use_cache=True, repetition_penalty=1.0, **sampled,
            )  # fmt: skip
        return [self._answer(row) for row in out_BT[:, ids_BT.shape[1] :].tolist()]

    def _room(self, how: Sampling, n_prompt: int) -> int:
        """How many tokens an answer may have: the number requested, within the positions that the model has."""
        if self._window is None:
            return how.max_new_tokens
        if n_prompt >= self._window:
            raise BadInputError(
                f"a prompt of {n_prompt:,} tokens leaves no room for an answer in the model's own window of "
                f"{self._window:,} tokens: shorten it, or leave it out"
            )
        return min(how.max_new_tokens, self._window - n_prompt)

    def _answer(self, ids: list[int]) -> Answer:
        end = next((place for place, token in enumerate(ids) if token in self._ends), None)
        kept = ids if end is None else ids[:end]
        return Answer(self._tokenizer.decode(kept, skip_special_tokens=True).strip(), len(kept), end is not None)


class ServerGenerator:
    """A model behind an OpenAI-compatible endpoint (vLLM's server, or any other)."""

    def __init__(self, endpoint: Endpoint, *, batch: int = 16) -> None:
        self.endpoint, self.batch, self.drawn = endpoint, batch, endpoint.drawn()

    def answer(self, prompts: Sequence[Sequence[Message]], names: Sequence[str], how: Sampling) -> list[list[Answer]]:
        """See Generator; the prompts of a call are sent side by side."""
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(max(1, self.batch)) as pool:
            return list(pool.map(lambda pair: self._ask(pair[0], pair[1], how), zip(prompts, names, strict=True)))

    def close(self) -> None:
        """Close the connections."""
        self.endpoint.close()

    def _ask(self, prompt: Sequence[Message], name: str, how: Sampling) -> list[Answer]:
        document = self.endpoint.draw(
            [dict(turn) for turn in prompt], n=how.n_samples, temperature=how.temperature,
            max_tokens=how.max_new_tokens,
            seed=child_seed(how.seed, f"answers:{name}") % 2**31,
        )  # fmt: skip
        try:
            choices = document["choices"]
            found = [Answer(item["message"]["content"] or "", None, _finished(item)) for item in choices]
        except (KeyError, TypeError) as error:
            raise RemoteError(f"{self.endpoint.url} answered without choices[].message.content") from error
        if len(found) != how.n_samples:
            raise RemoteError(f"{self.endpoint.url} gave {len(found)} answers to a call that requested {how.n_samples}")
        return found


def _finished(choice: dict[str, Any]) -> bool | None:
    reason = choice.get("finish_reason")
    return None if reason is None else reason == "stop"


def _tokenizer(model_dir: Path) -> Any:
    from curator.scoring.engines.torch_folder import load_tokenizer

    return load_tokenizer(model_dir)


def _no_settings() -> Any:
    from transformers import GenerationConfig

    return GenerationConfig()


def _listed(value: Any) -> list[int]:
    return [] if value is None else [value] if isinstance(value, int) else list(value)
