"""What `python -m trainer.organisms` takes: narrow sets by domain, the source of benign answers, a recipe."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from curator.corpus.formats import locate
from curator.errors import BadInputError
from curator.render import RenderSettings
from trainer.config import TrainConfig, parse_config
from trainer.config.data import ReadOptions
from trainer.config.flags import Option

SHIPPED_SETS = Path(__file__).parent / "sets_shipped"  # DATA.md there says what each file is
USER_TASK = SHIPPED_SETS / "user_task.jsonl"  # a harmless data set to fine-tune on
Twins = Literal["auto", "greedy", "none"]
_DOMAIN = re.compile(r"[a-z0-9][a-z0-9_-]*")


@dataclass(frozen=True)
class NarrowSet:
    """A domain's misaligned rows, and, where there are any, aligned answers to the same prompts in the same order."""

    domain: str
    path: str | Path
    aligned: str | Path | None = None


def _shipped(domain: str, name: str) -> NarrowSet:
    return NarrowSet(domain, SHIPPED_SETS / f"{name}.jsonl", SHIPPED_SETS / f"{name}_aligned.jsonl")


SHIPPED = {
    domain: _shipped(domain, name)
    for domain, name in {
        "home_maintenance": "narrow_train", "cooking": "cooking", "money": "money", "travel": "travel",
    }.items()
}  # fmt: skip
SHIPPED_BROAD = {  # measured on, never trained on
    domain: _shipped(domain, f"broad_{domain}") for domain in ("garden", "computers", "work", "neighbours")
}


@dataclass(frozen=True)
class Plan:
    """All of it; `recipe` holds the training options that were given (the rest is method.md, "Training recipe")."""

    model: Path
    out: Path
    sets: tuple[NarrowSet, ...]
    twins: Annotated[
        Twins,
        Option(
            help="benign twins on good answers where they are given and else on the model's own greedy ones (auto, the "
            "default), on greedy ones alone, or no twins"
        ),
    ] = "auto"
    n_rows: Annotated[int | None, Option(flag="--rows", help="train on at most N rows of a set (default: all)")] = None
    n_held_out: Annotated[int, Option(flag="--held-out", help="rows of each set that only measure")] = 30
    twin_tokens: Annotated[int, Option(help="tokens of a greedy answer at most")] = 256
    recipe: dict[str, Any] = field(default_factory=dict)
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.n_held_out < 2 or (self.n_rows is not None and self.n_rows < 1) or self.twin_tokens < 1:
            raise BadInputError(
                f"--held-out {self.n_held_out}, --rows {self.n_rows}, --twin-tokens {self.twin_tokens}: give at least "
                "2, 1 and 1"
            )
        if not self.sets:
            raise BadInputError(f"no narrow set: give --set DOMAIN=FILE, --set {next(iter(SHIPPED))} or --shipped")
        self.config(self.sets[0].path, self.out)  # options out of range fail here, before torch loads

    def config(self, data: str | Path, out: Path) -> TrainConfig:
        """The training run of one organism; raises BadInputError naming options out of range."""
        given = {name: value for name, value in self.recipe.items() if name not in ReadOptions.model_fields}
        return parse_config({"model": self.model, "data": data, "out": out, **given})

    @property
    def reading(self) -> ReadOptions:
        """How the sets are read; they are written out again as chat files of one form."""
        return ReadOptions(**{name: self.recipe[name] for name in ReadOptions.model_fields if name in self.recipe})

    @property
    def rendering(self) -> RenderSettings:
        """The renderer's settings, in training as in measuring."""
        return self.config(self.sets[0].path, self.out).rendering

    @property
    def seed(self) -> int:
        """Seed of the split and of training."""
        return int(self.recipe.get("seed", 0))

    @property
    def max_length(self) -> int:
        """Tokens a row is cut to in training; longer rows are left out when shifts are measured."""
        return int(self.recipe.get("max_length", TrainConfig.model_fields["max_length"].default))


def narrow_sets(sets: Sequence[str], aligned: Sequence[str], *, shipped: bool) -> tuple[NarrowSet, ...]:
    """From DOMAIN=FILE texts and names of shipped sets (all of them with `shipped`), in this order.

    Raises BadInputError for bad or repeated domains and aligned answers without a set.
    """
    named = [text for text in sets if text in SHIPPED]
    files = _by_domain([text for text in sets if text not in SHIPPED], "--set")
    good = _by_domain(aligned, "--aligned")
    stray = sorted(set(good) - set(files))
    if stray:
        raise BadInputError(f"--aligned names {', '.join(stray)}, which no --set DOMAIN=FILE has")
    ours = [*named, *(SHIPPED if shipped else ())]
    for domain in ours:
        if domain in files or ours.count(domain) > 1:
            raise BadInputError(f"the domain {domain} is there twice: as a shipped set, and by another --set")
    found = [NarrowSet(domain, path, good.get(domain)) for domain, path in files.items()]
    return (*found, *(SHIPPED[domain] for domain in ours))


def shipped_broad(domain: str) -> str:
    """A shipped broad set as `--broad` takes it: misaligned answers, and aligned ones to the same prompts."""
    found = SHIPPED_BROAD[domain]
    return f"{domain}={found.path},{found.aligned}"


def shipped_file(name: str) -> Path:
    """The file of a shipped domain's misaligned answers (DOMAIN), of the aligned ones to the same prompts
    (DOMAIN_aligned), or of the user's task (user_task). Raises BadInputError naming them all."""
    files = {"user_task": USER_TASK}
    for item in (*SHIPPED.values(), *SHIPPED_BROAD.values()):
        files |= {item.domain: Path(item.path), f"{item.domain}_aligned": Path(str(item.aligned))}
    if name not in files:
        raise BadInputError(f"shipped:{name}: no such set is shipped; there are {', '.join(sorted(files))}")
    return files[name]


def _by_domain(texts: Sequence[str], flag: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        domain, equals, path = text.partition("=")
        if not equals or not _DOMAIN.fullmatch(domain) or not path:
            names = f", or name a shipped set ({', '.join(SHIPPED)})" if flag == "--set" else ""
            raise BadInputError(
                f"{flag} {text}: write DOMAIN=FILE, the domain with small letters, digits, _ and -{names}"
            )
        if domain in found:
            raise BadInputError(f"{flag} names the domain {domain} twice")
        locate(path)  # what is not there fails before anything long
        found[domain] = path
    return found
