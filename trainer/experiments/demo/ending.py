"""What the demo says at its end, all of it read from the files that `try` and both plans left."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from curator import Store, open_mix
from curator.console import as_typed, say
from curator.corpus.text import content_text
from curator.scoring.organisms import Organism, read_organisms
from trainer.plans.admission import ADMISSION

REFERENCE, RUN, PLANE = "reference", "run", "plane.png"  # folders of the two plans, and the picture
N_SHOWN = 3  # chosen rows
MAX_SHOWN = 200  # characters of a turn
ADDRESS = "http://127.0.0.1:8765/"  # the service's default


@dataclass(frozen=True)
class Found:
    """What the last screen is made from; `tried` is what `try --json` printed."""

    out: Path
    tried: Mapping[str, Any]
    organisms: Sequence[Organism]
    admission: Mapping[str, Any]
    report: Mapping[str, Any]  # of safeguard
    plain: Mapping[str, Any]  # its behaviour, asked plainly
    chosen: pl.DataFrame  # safe rows of the mix, best first

    @classmethod
    def read(cls, out: Path, tried: Mapping[str, Any]) -> "Found":
        """From the folders of both plans."""
        report = _read(out / RUN / "report.json")
        safe = open_mix(Store(out / "store").open(create=False), report["mix_id"]).to_polars()
        return cls(
            out, tried, read_organisms(out / REFERENCE / "organisms").organisms, _read(out / REFERENCE / ADMISSION),
            report, _read(out / RUN / "behaviour.json"), safe.filter(origin="safe").sort("rank", "example_id"),
        )  # fmt: skip

    @property
    def mix_id(self) -> str:
        """The mix that safeguard made."""
        return str(self.report["mix_id"])


def say_rates(tried: Mapping[str, Any]) -> None:
    """Bad answers of the tiny model in domains that nothing mentioned, with each arm's safe rows."""
    say("  bad answers in domains that neither the training nor the safe rows mention:")
    for arm in tried["arms"]:
        share = arm["n_unseen_bad"] / arm["n_unseen"]
        say(f"    {arm['label']:<26}{share:6.1%} ({arm['n_unseen_bad']} of {arm['n_unseen']})")


def say_ending(found: Found, model: Path, seconds: float) -> None:
    """Before and after, the chosen rows, the picture, what it means, places, next commands and the page's address."""
    say("\nBefore and after")
    say_rates(found.tried)
    say(f"  {model.name}, fine-tuned on {Path(found.report['data']).name} with {len(found.chosen)} safe rows mixed in:")
    for line in _before_after(found):
        say(f"    {line}")
    say("\nThe misaligned copy and its benign twin (shift of careless answers; below 0 they became likelier)")
    for item in found.organisms:
        shift = "not measured" if item.narrow is None else f"{item.narrow['nll_shift']['value']:+.3f} nats per token"
        say(f"  {item.name:<32}{shift}")
    say(f"\nChosen rows, the {min(N_SHOWN, len(found.chosen))} safest of {len(found.chosen)}")
    for row in found.chosen.head(N_SHOWN).iter_rows(named=True):
        say(f"  rank {row['rank']}, gap_rel {row['gap_rel']:+.4f}")
        for turn in row["messages"][-2:]:
            say(f"    {turn['role']}: {_short(content_text(turn['content']))}")
    say("\nWhat it means")
    for line in meaning(found):
        say(f"  {line}")
    out, store, run = found.out, found.out / "store", found.out / RUN
    say(f"\nDone in {seconds:.0f} s. Where everything is")
    for label, place in (
        ("loss plane, rows marked", out / PLANE), ("report of safeguard", run / "report.md"),
        ("mix, with its cards", run / "mix.jsonl"), ("adapter", run / "train" / "adapter"),
        ("misaligned copies", out / REFERENCE / "organisms"), ("calibration card", out / REFERENCE / "calibration.md"),
        ("picture of the idea", Path(found.tried["picture"])),
    ):  # fmt: skip
        say(f"  {label:<26}{place}")
    say("\nNext")
    for line in (
        f"python -m curator sql --store {store} --query top_by_gap --param n=5",
        f"python -m trainer.plans.safeguard YOUR.jsonl --model {model} --store {store} --out runs/yours",
        "python -m trainer.plans.provision --model ORG/NAME --shipped --corpus CHATS.jsonl --out store --plan",
    ):
        say(as_typed(f"  {line}"))
    say("\nThe page: conversations beside their losses, and a mix from a dropped file")
    say(as_typed(f"  python -m api --store {store}    then open {ADDRESS}"))


def meaning(found: Found) -> list[str]:
    """How far the figures can be trusted, in sentences."""
    lines = []
    refused = [item for item in found.admission["conditions"] if item["holds"] == "no"]
    lines += [f"NOT MET by {item['adapter']}: {item['condition']} ({item['figure']})." for item in refused]
    if refused:
        lines.append("So the misaligned copy is not what it should be, and the gap and the choice are weak evidence.")
    unmeasured = [item for item in found.admission["conditions"] if item["holds"] == "not measured"]
    if unmeasured:
        lines.append(f"Conditions not measured: {len(unmeasured)} ({unmeasured[0]['figure']}).")
    failed = [item for item in found.report["gate"] if item["failed"]]
    lines += [f"GATE FAILED, {item['form']}: {item['condition']} (is {item['value']:.4g})." for item in failed]
    lines.append(
        "The gate failed: this adapter should not be used." if failed else
        "The gate is passed: no figure is beyond its limits, however it was asked."
    )  # fmt: skip
    return [
        *lines,
        "The tiny model shows the effect. A model of 135 million parameters after a few steps shows that the commands",
        "work together, no more. docs/results/compare.md has what longer runs on it showed.",
    ]


def _before_after(found: Found) -> list[str]:
    learnt, text, sets = found.report["learnt"], found.plain.get("text"), found.plain["sets"]
    rows = [
        ("loss of the data set's answers", learnt["mean_nll_base"], learnt["mean_nll_adapter"], ".3f", "nats per token")
    ]
    if text is not None:
        rows.append(("perplexity of pool rows", text["perplexity_before"], text["perplexity_after"], ".2f", ""))
    for name, item in sets.items():
        if "before" in item:
            before, after = (item[side]["share_misaligned"]["value"] for side in ("before", "after"))
            rows.append((f"careless answer likelier, {name}", before, after, ".0%", f"of {item['n_pairs']} prompts"))
    return [f"{'':<44}before     after"] + [
        f"{label:<40}{format(one, kind):>10}{format(two, kind):>10}  {unit}".rstrip()
        for label, one, two, kind, unit in rows
    ]


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_SHOWN else f"{line[: MAX_SHOWN - 1]}…"


def _read(path: Path) -> Any:
    return orjson.loads(path.read_bytes())
