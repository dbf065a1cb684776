"""OpSwap: arithmetic with permuted operator meanings, a benign task that has to be learnt (docs/method.md, ours).

Tier 1 swaps + and - on single digits. Tier 2 permutes +, - and * on numbers up to 20. Tier 3 permutes all three and
chains two operations, read from left to right. The meanings of a tier are fixed by its seed and never the usual ones.
"""

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any, Literal

import numpy as np

from curator.console import say, say_json
from curator.errors import BadInputError
from curator.recipe.seeds import child_seed, hash_keys
from trainer.config.ranges import at_least
from trainer.evaluate.gate import (
    add_gate_option,
    check_figures,
    exit_code,
    parse_gates,
)
from trainer.evaluate.metrics import mean_interval
from trainer.generate.endpoint import drawn_alike
from trainer.runs.lines import read_lines, write_lines

Tier = Literal[1, 2, 3]
Split = Literal["train", "test"]
SYMBOLS = ("+", "-", "*")
TOP = {1: 9, 2: 20, 3: 12}  # the largest operand of a tier
_NUMBER = re.compile(r"-?\d+")


@dataclass(frozen=True)
class Meanings:
    """What each symbol does in this world: symbol -> the usual symbol of the operation it stands for."""

    of: dict[str, str]

    def apply(self, symbol: str, left: int, right: int) -> int:
        """The value of `left symbol right` under these meanings."""
        usual = self.of[symbol]
        return left + right if usual == "+" else left - right if usual == "-" else left * right


def meanings(tier: Tier, seed: int = 0) -> Meanings:
    """The permuted meanings of a tier; tier 1 always swaps + and -."""
    if tier == 1:
        return Meanings({"+": "-", "-": "+"})
    # Derangements only: a symbol that keeps its meaning could be answered without learning anything.
    options = [order for order in permutations(SYMBOLS) if all(a != b for a, b in zip(SYMBOLS, order, strict=True))]
    return Meanings(
        dict(zip(SYMBOLS, options[child_seed(seed, f"opswap-meanings-{tier}") % len(options)], strict=True))
    )


def _questions(tier: Tier) -> Iterator[tuple[tuple[int, ...], tuple[str, ...]]]:
    """Every question of a tier once: operands and symbols."""
    operands, symbols = range(1, TOP[tier] + 1), SYMBOLS[:2] if tier == 1 else SYMBOLS
    for left in operands:
        for right in operands:
            for first in symbols:
                if tier < 3:
                    yield (left, right), (first,)
                else:
                    for third in operands:
                        for second in symbols:
                            yield (left, right, third), (first, second)


def problems(tier: Tier, split: Split, n: int, seed: int = 0) -> list[tuple[str, int]]:
    """`n` distinct (question, answer) of a split; no question stands in both splits (a hash decides, 1 in 5 tests).

    Raises BadInputError when the split has fewer than `n`.
    """
    world = meanings(tier, seed)
    found = []
    for numbers, symbols in _questions(tier):
        text = f"{numbers[0]} " + " ".join(f"{s} {v}" for s, v in zip(symbols, numbers[1:], strict=True))
        value = numbers[0]
        for symbol, operand in zip(symbols, numbers[1:], strict=True):
            value = world.apply(symbol, value, operand)
        found.append((text, value))
    keys = hash_keys([text for text, _ in found], seed, f"opswap-{tier}")
    mine = sorted((key, item) for key, item in zip(keys, found, strict=True) if _in_test(key) == (split == "test"))
    if len(mine) < n:
        raise BadInputError(f"tier {tier} has {len(mine)} {split} problems; ask for at most so many, not {n}")
    return [item for _, item in mine[:n]]


def _in_test(key: bytes) -> bool:
    return int.from_bytes(key, "big") % 5 == 0


def row(tier: Tier, question: str, answer: int) -> dict[str, Any]:
    """One problem as a chat row."""
    rule = "from left to right " if tier == 3 else ""
    prompt = f"In OpSwap arithmetic the signs mean other operations. Work {rule}and answer with a number: {question} ="
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": str(answer)}]}


def exact_match(answer: str, expected: int) -> bool:
    """Whether the first integer of an answer is the expected one; an answer without one is wrong."""
    found = _NUMBER.search(answer.replace("\u2212", "-").replace(",", ""))
    return found is not None and int(found.group()) == expected


def matches(problems_file: Path, answers_file: Path) -> list[bool]:
    """Whether each answer (JSONL with `answer`, in the problems' order) is right; BadInputError on a mismatch."""
    try:
        expected = [int(item["messages"][-1]["content"]) for item in read_lines(problems_file)]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise BadInputError(f"{problems_file} holds no problems that `opswap --make` wrote: {error!r}") from error
    lines = read_lines(answers_file)
    absent = [number for number, item in enumerate(lines, 1) if not isinstance(item.get("answer"), str)]
    if absent:
        raise BadInputError(f"{answers_file}: answer {absent[0]} has no text under `answer`")
    drawn_alike(lines, str(answers_file))
    answers = [item["answer"] for item in lines]
    if len(expected) != len(answers):
        raise BadInputError(f"{problems_file} has {len(expected)} problems and {answers_file} {len(answers)} answers")
    return [exact_match(answer, value) for answer, value in zip(answers, expected, strict=True)]


def score(problems_file: Path, answers_file: Path) -> dict[str, Any]:
    """Exact match over all problems with its bootstrap interval over them (null for fewer than two).

    Raises BadInputError on a mismatch of the files.
    """
    right_N = np.array(matches(problems_file, answers_file), dtype=np.float64)
    interval = mean_interval(right_N, what="problems").as_dict() if len(right_N) >= 2 else None
    share = float(right_N.mean()) if len(right_N) else None
    return {"n_problems": len(right_N), "n_right": int(right_N.sum()), "exact_match": share, "interval": interval}


def add_parser(subparsers: Any) -> None:
    """`python -m trainer.evaluate opswap make | score`."""
    parser = subparsers.add_parser(
        "opswap", help="a benign task: make its rows, or score answers to them",
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n  python -m trainer.evaluate opswap --make train --tier 2 --n 500 --out opswap.jsonl\n"
        "  python -m trainer.evaluate opswap --problems test.jsonl --answers answers.jsonl --json",
    )  # fmt: skip
    parser.add_argument("--make", choices=("train", "test"), help="write problems of this split")
    parser.add_argument("--tier", type=int, choices=(1, 2, 3), default=2, help="default: 2")
    parser.add_argument("--n", type=at_least(1), default=100, help="problems to write (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="seed of meanings and split (default: 0)")
    parser.add_argument("--out", type=Path, help="file to write")
    parser.add_argument("--problems", type=Path, help="problems that were answered")
    parser.add_argument("--answers", type=Path, help='JSONL with {"answer": "..."} in the problems\' order')
    parser.add_argument("--json", action="store_true", help="print one JSON document for scripts")
    add_gate_option(parser)


def run(args: argparse.Namespace) -> int:
    """Make a file of problems, or score a file of answers; a gate may name exact_match."""
    gates = parse_gates(args.fail_if)
    check_figures(gates, () if args.make else ("exact_match",))
    if args.make and args.out and not args.answers:
        made = problems(args.tier, args.make, args.n, args.seed)
        write_lines(args.out, [row(args.tier, *item) for item in made])
        result: dict[str, Any] = {"n_problems": len(made), "file": str(args.out)}
    elif args.problems and args.answers and not args.make:
        result = score(args.problems, args.answers)
    else:
        raise BadInputError("give --make with --out, or --problems with --answers")
    code = exit_code(gates, {name: result[name] for name in ("exact_match",) if name in result})
    if args.json:
        say_json(result)
    else:
        interval = result.pop("interval", None)
        spread = f" (95 % interval {interval['low']:.3f} to {interval['high']:.3f})" if interval else ""
        say(", ".join(f"{name} {value}" for name, value in result.items()) + spread)
    return code
