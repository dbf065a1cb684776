"""The catalogue of defences: how each one is made out of the product's own commands."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from curator.errors import BadInputError
from trainer.experiments.compare.settings import AnyPlan, OwnMethod, ToyPlan

UNDEFENDED = "none"
CONTROL = "benign"  # the undefended recipe on good answers to the same prompts: what any training does
RANDOM = "interleaving"  # what a choice of rows has to beat
Trained = Literal["adapter", "gates"]

# As in the paper: Interleaving draws at random, + takes the largest gaps, ++ drops refusals before the cut. The other
# filters that are on by default are not part of it.
_PAPER = ("--without", "hygiene", "--without", "length")
_RANDOM = ("--strategy", "random", "--refusals", "keep", *_PAPER)
_PLUS = ("--strategy", "top_gap", "--refusals", "keep", *_PAPER)
_PLUSPLUS = ("--strategy", "top_gap", "--refusals", "v1", *_PAPER)
_BOTTOM = ("--strategy", "bottom_gap", "--allow-negative-control", "--refusals", "v1", *_PAPER)
_INOCULATION = ("--inoculation",)


@dataclass(frozen=True)
class Method:
    """One defence. `mix` are flags of `curator mix` (None: the task file as it is), `sft` of `trainer.sft`; with
    `ratio` it is run at every ratio of the plan. `piece` names the module that it needs beyond those."""

    name: str
    mix: tuple[str, ...] | None = None
    sft: tuple[str, ...] = ()
    ratio: bool = False
    trained: Trained = "adapter"
    before: Literal["self_recognition"] | None = None  # a fine-tune that the task's one starts from
    after: Literal["safelora"] | None = None  # what is done to the adapter once it is trained
    piece: str | None = None

    @property
    def draws_safe_rows(self) -> bool:
        """Whether rows of the pool are mixed in."""
        return self.ratio

    @property
    def needs_scores(self) -> bool:
        """Whether rows are chosen by gap, so that the pool must be scored."""
        return self.mix is not None and any(item in self.mix for item in ("top_gap", "bottom_gap"))


_SINGLE = (
    Method(UNDEFENDED),
    Method(CONTROL),
    Method(RANDOM, _RANDOM, ratio=True),
    Method("interleaving+", _PLUS, ratio=True),
    Method("interleaving++", _PLUSPLUS, ratio=True),
    Method("bottom_gap", _BOTTOM, ratio=True),
    Method("kl", sft=("--kl", "0.1")),
    Method("ldifs", sft=("--ldifs", "1.0")),
    Method("treft", sft=("--treft", "10")),
    # Trained on the task, measured reversed (2 - g): forward gates are the attack.
    Method("gating", sft=("--gating",), trained="gates"),
    Method("steering", sft=("--steering", "{vectors}")),
    Method("inoculation", _INOCULATION),
    Method("safelora", after="safelora", piece="trainer.defenses.safelora"),
    Method("self_recognition", before="self_recognition", piece="trainer.defenses.self_recognition"),
)
_PAIRS = (
    Method("interleaving++ with kl", _PLUSPLUS, ("--kl", "0.1"), ratio=True),
    Method("interleaving++ with ldifs", _PLUSPLUS, ("--ldifs", "1.0"), ratio=True),
    Method("interleaving++ with inoculation", (*_PLUSPLUS, *_INOCULATION), ratio=True),
    Method("interleaving++ with steering", _PLUSPLUS, ("--steering", "{vectors}"), ratio=True),
    Method("inoculation with kl", _INOCULATION, ("--kl", "0.1")),
)
CATALOGUE = {method.name: method for method in (*_SINGLE, *_PAIRS)}


def methods_of(plan: AnyPlan) -> list[Method]:
    """The undefended run and the benign one, which every comparison has, then the plan's methods in its order; raises
    BadInputError for an unknown name."""
    found = [CATALOGUE[UNDEFENDED], CATALOGUE[CONTROL]]
    for item in plan.methods:
        if isinstance(item, OwnMethod):
            found.append(Method(item.name, item.mix, item.sft, item.ratio))
        elif item not in CATALOGUE:
            raise BadInputError(
                f"there is no method {item!r}; known are {', '.join(CATALOGUE)}", details=list(CATALOGUE)
            )
        elif item not in (UNDEFENDED, CONTROL):
            found.append(CATALOGUE[item])
    names = [method.name for method in found]
    if len(set(names)) != len(names):
        raise BadInputError(f"the plan names a method twice: {', '.join(names)}")
    return found


def why_not(method: Method, plan: AnyPlan) -> str | None:
    """Why a method does not apply here, or None when it does."""
    if isinstance(plan, ToyPlan):
        return _why_not_on_toy(method)
    if method.after == "safelora" and plan.base_model is None:
        return "it projects on the difference of the aligned model and its base: give base_model"
    if method.before == "self_recognition" and plan.self_recognition_rows is None:
        return "it trains on rows of trainer.defenses.self_recognition first: give self_recognition_rows"
    if method.piece is not None and find_spec(method.piece) is None:
        return f"this version has no {method.piece}"
    if "{vectors}" in method.sft and plan.steering_vectors is None:
        return "it needs persona vectors: give steering_vectors (a safetensors file)"
    if method.needs_scores and not any(domain.train_rows for domain in plan.domains):
        return "it ranks by gap: give some domain train_rows, so that there is a misaligned model"
    return None


# Flags of `trainer.sft` that `trainer.experiments.toy cell` has as well.
_TOY_FLAGS = {"--kl", "--ldifs", "--treft", "--steering"}
STEERING_ALPHA = 5  # the published strength, times the toy model's own persona vector
_TOY_CHOICES = {"random": "random", "bottom_gap": "bottom_gap"}


def toy_choice(method: Method, score: str) -> str:
    """How the toy model's safe rows are chosen: the `--choice` of `trainer.experiments.toy cell`."""
    if method.mix is None or "--strategy" not in method.mix:
        return "none"
    return _TOY_CHOICES.get(method.mix[method.mix.index("--strategy") + 1], score)


def toy_flags(method: Method) -> tuple[str, ...]:
    """What a method adds to the loss, as flags of `trainer.experiments.toy cell`, which makes its persona vector."""
    return tuple(word.format(vectors=STEERING_ALPHA) for word in method.sft)


def _why_not_on_toy(method: Method) -> str | None:
    if find_spec("trainer.experiments.toy") is None:
        return "this version has no trainer.experiments.toy"
    if method.mix == _PLUSPLUS and not method.sft:
        return "the toy model's closed vocabulary has no refusals to drop: interleaving+ is the same"
    if method.mix is not None and "--inoculation" in method.mix:
        return "the toy model has no system prompt"
    unknown = sorted({word for word in method.sft if word.startswith("--")} - _TOY_FLAGS)
    if unknown or method.before is not None or method.after is not None:
        return "`trainer.experiments.toy cell` trains an adapter in one stage, with " + ", ".join(
            sorted(flag.removeprefix("--") for flag in _TOY_FLAGS)
        )
    return None
