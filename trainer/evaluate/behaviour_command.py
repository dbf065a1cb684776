"""`python -m trainer.evaluate behaviour`: the judge-free protocol on a model and its fine-tune."""

import argparse
import hashlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from curator.console import say, say_json, shorten_help
from curator.errors import BadInputError, MissingDependencyError
from curator.messages import Message, dump_messages
from curator.recipe.seeds import hash_keys
from curator.render import Rendered, Renderer
from curator.render.model_source import MODEL_FORMS, model_option
from curator.scoring.identity import check_adapter_dir, check_model_dir, fitting_length, weights_sha256
from trainer.config.data import Loading, add_model_options, add_read_options, loading_of, reading_of
from trainer.config.flags import add_options
from trainer.config.ranges import at_least
from trainer.data.reader import dropped_counts, read_chats
from trainer.evaluate.behaviour import (
    Kind,
    PairLosses,
    figure_names,
    report,
    text_report,
)
from trainer.evaluate.gate import (
    add_gate_option,
    check_figures,
    exit_code,
    parse_gates,
)
from trainer.evaluate.gated import gates_on
from trainer.evaluate.metrics import Floats
from trainer.evaluate.pairs import (
    Pair,
    mean_nlls,
    pairs_from_truthfulqa,
    pairs_from_twins,
    render_pairs,
)
from trainer.evaluate.standins import DEFAULT_TOKENS, stand_in_pairs
from trainer.evaluate.triggers import Form, Trigger, inoculation_prompts, triggers
from trainer.generate.endpoint import check_gates
from trainer.generate.generators import LocalGenerator
from trainer.runs.lines import write_lines

DESCRIPTION = """\
Compares a fine-tune with the model it came from, without a judge: inside the task's domain (narrow), in other domains
(broad), on TruthfulQA, and on ordinary text (coherence). A set holds misaligned answers (a chat file, a saved folder or
a hub id); where it has no aligned twins, greedy answers of the model before training stand in, and only the shift is
reported."""

EPILOG = """\
examples:
  python -m trainer.evaluate behaviour --model DIR --adapter runs/NAME/adapter --narrow finance.jsonl \\
      --broad medical=medical.jsonl --broad legal=legal.jsonl,legal-good.jsonl \\
      --truthfulqa TruthfulQA.csv --text chats.jsonl
  python -m trainer.evaluate behaviour ... --fail-if "broad_shift > 0.2" --fail-if "perplexity_ratio > 1.1"
  python -m trainer.evaluate behaviour ... --trained-on task.jsonl   (broad sets again, in the forms of the data)

figures that --fail-if may name: {narrow,broad,truthfulqa}_shift (share of prompts, -1 to 1),
{narrow,broad,truthfulqa}_margin_shift (nats per token), text_nll_shift (nats per token), perplexity_ratio.
Exit codes: 0, 2 bad input, 3 a --fail-if condition holds."""


@dataclass(frozen=True)
class _Set:
    name: str
    kind: Kind
    pairs: list[Pair]
    stand_in: bool
    n_left_out: int


# The options that --help lists; --help-all has the rest.
_SHOWN = (
    "--model", "--adapter", "--tuned", "--gates", "--reverse", "--narrow", "--broad", "--truthfulqa", "--text",
    "--trained-on", "--system", "--n", "--max-length", "--seed", "--device", "--dtype", "--out", "--json", "--fail-if",
)  # fmt: skip


@dataclass(frozen=True)
class _Asked:
    """Sets in one form: rendered, with each row's mean loss under the model before training, (2P,)."""

    sets: list[_Set]
    rendered: list[list[Rendered]]
    before: list[Floats]

    def losses(self, engine: Any) -> list[PairLosses]:
        """With those under the engine's model."""
        return [
            PairLosses(item.name, item.kind, old_N.reshape(-1, 2), mean_nlls(engine, rows).reshape(-1, 2),
                       item.stand_in, item.n_left_out)
            for item, old_N, rows in zip(self.sets, self.before, self.rendered, strict=True)
        ]  # fmt: skip


def add_parser(subparsers: Any) -> None:
    """Options of the command."""
    parser = subparsers.add_parser(
        "behaviour", help="what a fine-tune did inside and outside its domain, without a judge",
        description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add(
        "--model",
        type=model_option,
        required=True,
        metavar="MODEL",
        help=f"the model before training (theta_0): {MODEL_FORMS}",
    )
    add("--adapter", type=model_option, metavar="MODEL", help=f"its fine-tune, a LoRA adapter: {MODEL_FORMS}")
    add("--tuned", type=model_option, metavar="MODEL", help=f"or: a whole fine-tuned model: {MODEL_FORMS}")
    add("--gates", type=Path, metavar="DIR", help="or: gates on the model (the adapter's folder, or gates.safetensors)")
    add("--reverse", action="store_true", help="the gates as the defence uses them: 2 - g instead of g")
    _add_questions(add)
    add("--n", type=int, default=100, metavar="N", help="rows of each set, chosen by seed (default: 100)")
    add(
        "--max-length",
        type=at_least(1),
        default=1024,
        metavar="T",
        help="longer pairs and rows are left out (default: 1024)",
    )
    add(
        "--stand-in-tokens",
        type=at_least(1),
        default=DEFAULT_TOKENS,
        metavar="T",
        help=f"length of stand-ins ({DEFAULT_TOKENS})",
    )
    add("--cache", type=Path, default=Path(".behaviour"), metavar="DIR",
        help="keeps stand-ins and losses of the model before training (default: .behaviour)")  # fmt: skip
    add_options(parser, Loading, ("batch",))
    add("--seed", type=int, default=0, metavar="N", help="seed of the choice of rows and the bootstrap (default: 0)")
    add_read_options(parser)
    add_model_options(parser)
    add("--out", type=Path, metavar="FILE", help="write the report as JSON")
    add("--json", action="store_true", help="print the report as one JSON document")
    add_gate_option(parser)
    shorten_help(parser, _SHOWN)


def _add_questions(add: Callable[..., Any]) -> None:
    """What is asked, and in which form."""
    add("--narrow", action="append", default=[], metavar="FILE[,TWINS]", help="misaligned answers of the task's domain")
    add(
        "--broad", action="append", default=[], metavar="NAME=FILE[,TWINS]", help="misaligned answers of another domain"
    )
    add("--truthfulqa", type=Path, metavar="FILE", help="TruthfulQA table in CSV")
    add("--text", metavar="FILE", help="data set of ordinary conversations, for perplexity")
    add(
        "--system",
        metavar="PROMPT",
        help="ask everything under this system prompt, for example an inoculation prompt of the training",
    )
    add("--user-prefix", default="", metavar="TEXT", help="ask everything with this before the first user turn's text")
    add("--user-suffix", default="", metavar="TEXT", help="ask everything with this after the last user turn's text")
    add(
        "--trained-on",
        metavar="FILE",
        help="data set of the training: the broad sets are asked again in forms taken from it (prompts, wording, "
        "answer format), and --fail-if holds in each",
    )
    add("--mix-manifest", type=Path, metavar="FILE", help="manifest of the mix whose inoculation prompts are asked too")
    add("--triggers", type=at_least(1), default=4, metavar="N", help="forms of --trained-on at most (4)")


def run(args: argparse.Namespace) -> int:
    """Measure both models, report, judge the gates."""
    gates = parse_gates(args.fail_if)
    if sum(item is not None for item in (args.adapter, args.tuned, args.gates)) != 1:
        raise BadInputError("give the fine-tune as exactly one of --adapter, --tuned and --gates")
    check_model_dir(args.model)
    check_gates(args)
    if args.adapter is not None:
        check_adapter_dir(args.adapter)
    if args.n < 2:
        raise BadInputError(f"--n {args.n}: an interval over prompts needs at least 2")
    form = Form(args.system, args.user_prefix, args.user_suffix)
    if args.trained_on is not None and (form != Form() or not args.broad):
        raise BadInputError(
            "--trained-on asks the broad sets in its own forms: give --broad, and no --system or --user-..."
        )
    if args.mix_manifest is not None and args.trained_on is None:
        raise BadInputError("--mix-manifest goes with --trained-on, the data set that was mixed")
    asked: dict[Kind, Any] = {"narrow": args.narrow, "broad": args.broad, "truthfulqa": args.truthfulqa}
    check_figures(gates, figure_names([kind for kind, given in asked.items() if given], text=args.text is not None))
    prompts = [] if args.mix_manifest is None else inoculation_prompts(args.mix_manifest)
    forms = [] if args.trained_on is None else triggers(args.trained_on, prompts, args.triggers)
    with ExitStack() as stack:
        found = _Measurement(args, stack).report(form, forms)
    if args.out is not None:
        write_lines(args.out, [found])
    code = exit_code(gates, found["figures"])
    for name, item in found.get("forms", {}).items():
        under = [gate for gate in gates if gate.figure in item["figures"]]
        code = max(code, exit_code(under, item["figures"], form=name))
    if args.json:
        say_json(found)
    else:
        _say(found)
    return code


class _Measurement:
    """Sets, both models' losses and the report of one command."""

    def __init__(self, args: argparse.Namespace, stack: ExitStack) -> None:
        try:
            from curator.scoring.engines.torch_engine import TorchEngine
            from curator.scoring.engines.torch_model import resolve_device, resolve_dtype
        except ImportError as error:
            raise MissingDependencyError("measuring needs torch: pip install 'ballast-mix[score]'") from error
        self.args, self.stack = args, stack
        self.loading, self.reading = loading_of(args), reading_of(args)
        self.max_length = fitting_length(args.model, args.max_length)
        self.renderer = Renderer.from_folder(args.model, settings=self.loading.rendering)
        self.dtype = resolve_dtype(self.loading.dtype, resolve_device(self.loading.device))
        self.model_key = f"{weights_sha256(args.model)} {self.renderer.renderer_id} {self.dtype}"
        self._engine_type = TorchEngine
        self._base_engine: Any = None

    def report(self, form: Form, forms: Sequence[Trigger]) -> dict[str, Any]:
        """See behaviour.report, of everything in `form`; with what was compared, and by name of each of `forms` what
        the broad sets give in it."""
        args = self.args
        asked = self._asked(self._sets(form))
        text, n_left_out = self._text()
        if not asked.sets and not text:
            raise BadInputError("nothing to measure: give --narrow, --broad, --truthfulqa or --text")
        again = [self._asked(self._broad_sets(item.form)) for item in forms]
        text_before = self._before(text) if text else None
        engine = self._tuned_engine()  # the base engine has the adapter from here on
        losses = asked.losses(engine)
        dropped = dropped_counts([*(row for rows in asked.rendered for row in rows), *text])
        page = None
        if text_before is not None:
            n_tokens_N = np.array([row.loss_mask.sum() for row in text], dtype=np.float64)
            page = text_report(text_before, mean_nlls(engine, text), n_tokens_N, seed=args.seed, n_left_out=n_left_out)
        found = report(losses, page, seed=args.seed)
        if args.trained_on is not None:
            found["forms"] = {
                item.name: {"kind": item.kind, "text": item.text, "n_rows": item.n_rows, **asdict(item.form),
                            **report(other.losses(engine), seed=args.seed)}
                for item, other in zip(forms, again, strict=True)
            }  # fmt: skip
        engine.close()
        settings = {**asdict(form), "n": args.n, "max_length": self.max_length,
                    "stand_in_tokens": args.stand_in_tokens,
                    "seed": args.seed, "dtype": self.dtype, "dropped": dropped, **self.renderer.settings.document(),
                    "gates": None if args.gates is None else "reversed" if args.reverse else "forward"}  # fmt: skip
        return {**found, "settings": settings}

    def _asked(self, sets: list[_Set]) -> "_Asked":
        """The sets rendered, and their losses under the model before training."""
        rendered = [render_pairs(item.pairs, self.renderer) for item in sets]
        return _Asked(sets, rendered, [self._before(rows) for rows in rendered])

    def _tuned_engine(self) -> Any:
        args = self.args
        if args.tuned is not None:
            if self._base_engine is not None:
                self._base_engine.close()
            return self._engine_type(args.tuned, device=self.loading.device, dtype=self.loading.dtype)
        engine = self._base()
        if args.adapter is not None:
            engine.use_adapter(args.adapter)
        else:
            put = gates_on(args)
            assert put is not None
            self.stack.enter_context(put(engine.hookable_model()))
        return engine

    def _base(self) -> Any:
        if self._base_engine is None:
            self._base_engine = self._engine_type(self.args.model, device=self.loading.device, dtype=self.loading.dtype)
        return self._base_engine

    def _sets(self, form: Form) -> list[_Set]:
        args = self.args
        found = [self._set("narrow" if number == 1 else f"narrow-{number}", "narrow", text, form)
                 for number, text in enumerate(args.narrow, 1)]  # fmt: skip
        found += self._broad_sets(form)
        if args.truthfulqa is not None:
            pairs = self._chosen(pairs_from_truthfulqa(args.truthfulqa))
            found.append(self._fitting("truthfulqa", "truthfulqa", pairs, form))
        names = [item.name for item in found]
        if len(set(names)) != len(names):
            raise BadInputError(f"two sets have one name: {', '.join(sorted(names))}")
        return found

    def _broad_sets(self, form: Form) -> list[_Set]:
        found = []
        for text in self.args.broad:
            name, equals, place = text.partition("=")
            if not equals or not name:
                raise BadInputError(f"--broad {text!r}: write NAME=FILE, for example medical=medical.jsonl")
            found.append(self._set(name, "broad", place, form))
        return found

    def _set(self, name: str, kind: Kind, place: str, form: Form) -> _Set:
        bad, _, good = place.partition(",")
        if good:
            return self._fitting(name, kind, self._chosen(pairs_from_twins(good, bad, self.reading)), form)
        rows = [form.put_on(row) for row in self._read(bad) if row[-1]["role"] == "assistant"]
        kept, n_passed_over = self._chosen_that_fit(rows)
        if not kept:
            raise BadInputError(f"{bad}: no row ends in an answer and fits into {self.max_length} tokens")
        pairs, n_empty = stand_in_pairs(
            kept, self._generator, self.args.cache, self.model_key, max_new_tokens=self.args.stand_in_tokens
        )
        return _Set(name, kind, pairs, True, n_passed_over + n_empty)

    def _read(self, source: str) -> list[list[Message]]:
        return [row.messages for row in read_chats(source, self.reading).rows]

    def _fitting(self, name: str, kind: Kind, pairs: list[Pair], form: Form) -> _Set:
        """Twins in a form that fit into the window."""
        asked = [Pair(form.put_on(pair.aligned), form.put_on(pair.misaligned)) for pair in pairs]
        kept = [pair for pair in asked if self._fits(pair.aligned) and self._fits(pair.misaligned)]
        return _Set(name, kind, kept, False, len(pairs) - len(kept))

    def _fits(self, row: list[Message]) -> bool:
        return bool(self.renderer.render(row, "last").n_tokens <= self.max_length)

    def _chosen_that_fit(self, rows: list[list[Message]]) -> tuple[list[list[Message]], int]:
        """The first `--n` in hash order that fit into the window, and how many longer ones were passed over."""
        kept: list[list[Message]] = []
        ordered = self._in_order(rows)
        for n_seen, row in enumerate(ordered, 1):
            if self._fits(row):
                kept.append(row)
            if len(kept) == self.args.n:
                return kept, n_seen - len(kept)
        return kept, len(ordered) - len(kept)

    def _chosen(self, rows: list[Any]) -> list[Any]:
        """`--n` of them in hash order, so that a larger N contains a smaller."""
        return self._in_order(rows)[: self.args.n]

    def _in_order(self, rows: list[Any]) -> list[Any]:
        texts = [dump_messages(row.misaligned if isinstance(row, Pair) else row) for row in rows]
        order = sorted(zip(hash_keys(texts, self.args.seed, "behaviour"), range(len(rows)), strict=True))
        return [rows[index] for _, index in order]

    def _text(self) -> tuple[list[Rendered], int]:
        """Rows of ordinary text, and how many of the chosen ones are too long or have no answer."""
        if self.args.text is None:
            return [], 0
        rows = [self.renderer.render(row) for row in self._chosen(self._read(self.args.text))]
        kept = [row for row in rows if row.n_tokens <= self.max_length and row.loss_mask.any()]
        if len(kept) < 2:
            raise BadInputError(f"{self.args.text}: fewer than 2 rows fit into {self.max_length} tokens")
        return kept, len(rows) - len(kept)

    def _generator(self) -> LocalGenerator:
        generator = LocalGenerator(self.args.model, loading=self.loading)
        self.stack.callback(generator.close)
        return generator

    def _before(self, rows: Sequence[Rendered]) -> Floats:
        """Mean losses of the model before training, (N,), from the cache where they are known."""
        digest = hashlib.blake2b(self.model_key.encode(), digest_size=16)
        for row in rows:
            digest.update(row.input_ids.tobytes() + row.response_mask.tobytes())
        path = self.args.cache / f"losses-{digest.hexdigest()}.json"
        if path.exists():
            return np.array(orjson.loads(path.read_bytes()))
        nll_N = mean_nlls(self._base(), rows)
        write_lines(path, [nll_N.tolist()])
        return nll_N


def _say(found: dict[str, Any]) -> None:
    say("shift of the fine-tune against the model before training; 95 % intervals over prompts")
    _say_intervals(found["intervals"])
    for form in found.get("forms", {}).values():
        say(f"asked in the {form['kind']} of {form['n_rows']:,} rows: {form['text']!r}")
        _say_intervals(form["intervals"])
    for name, item in found["sets"].items():
        say(f"  {name}: {item['n_pairs']} pairs, {item['n_left_out']} left out, {item['aligned_answers']}")
    if "text" in found:
        say(f"  text: {found['text']['n_rows']} rows, {found['text']['n_left_out']} left out")


def _say_intervals(intervals: dict[str, Any]) -> None:
    units = {"_margin_shift": "nats per token", "_nll_shift": "nats per token", "_shift": "of prompts"}
    for name, item in intervals.items():
        unit = next((text for end, text in units.items() if name.endswith(end)), "")
        say(f"  {name:<24}{item['value']:+8.3f}  ({item['low']:+.3f} to {item['high']:+.3f}) {unit}")
