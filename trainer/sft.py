"""`python -m trainer.sft`: verify the rows, train in their order, leave one folder. Read it top to bottom."""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from curator.console import report_error, say, say_json
from curator.errors import BadInputError, BallastError
from curator.render import Renderer
from curator.scoring.engines.native_memory import keep_pages
from curator.scoring.identity import check_model_dir, weights_sha256
from trainer.config import TrainConfig
from trainer.config.options import Invocation, parse_arguments
from trainer.data.mixes import with_whole_id
from trainer.defenses.model_fit import check_fit, check_made_for
from trainer.defenses.safelora import check_shapes
from trainer.loop.forecast import OutOfMemoryError, naming_memory
from trainer.loop.processes import Team, shared_inputs
from trainer.loop.record import fingerprint, finish, run_record, trained_folder
from trainer.loop.summary import content_line, model_line, run_warnings, say_result, stopped_line
from trainer.monitor.report import check_files, monitor_section
from trainer.runs.checkpoints import complete_checkpoints
from trainer.runs.folder import CONFIG, METRICS, Fingerprint, RunFolder
from trainer.runs.report import Warned
from trainer.runs.weights import check_trackers, lora_config

STOPPED = 130  # what a shell reports for a program ended by Ctrl-C


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done or done before, 2 bad input, 130 stopped by Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    team = Team()
    # Before torch loads: threads that wait sleep instead of spinning. Where other processes want the same cores,
    # spinning made the steps of a tiny model up to 40 times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        return run(parse_arguments(arguments), team)
    except BallastError as error:
        if team.leads or isinstance(error, OutOfMemoryError):  # the others' devices may be smaller
            report_error(error, as_json="--json" in arguments)
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("stopped outside of a step; complete checkpoints in --out, if there are any, are kept\n")
        return STOPPED
    finally:
        team.leave()


def run(invocation: Invocation, team: Team | None = None) -> int:
    """One training run, or nothing when this very run is complete in its folder."""
    invocation = replace(invocation, config=with_whole_id(invocation.config, invocation.api_key))
    config, team = invocation.config, team or Team()
    tell = say if team.leads and not invocation.json else _say_nothing

    check(config)
    team.join(on_cpu=config.device == "cpu")
    mark, unnamed = identify(config, team)

    folder = RunFolder(config.out)
    claim = team.first(lambda: folder.claim(mark, invocation.overwrite, invocation.resume))
    if claim.report is not None:
        tell(f"{config.out} holds this very run, complete ({claim.report['steps']} steps); --overwrite trains again")
        if invocation.json and team.leads:
            say_json(claim.report)
        return 0
    if claim.checkpoint is not None:
        tell(f"going on from the checkpoint of step {claim.checkpoint.step}")

    inputs = shared_inputs(config, mark["weights_sha256"], invocation.api_key, team)
    if config.monitor is not None:
        check_files(config.monitor, mark["weights_sha256"], inputs.renderer.renderer_id)
    tell(content_line(inputs))

    # torch, transformers and TRL load here: bad options and bad rows have failed already.
    from trainer.loop.fit import fit, foresee, load, planned

    ahead = team.first(lambda: foresee(config, inputs.prepared))
    tell(ahead.line())
    with naming_memory(ahead):
        ready = load(config)
        if config.monitor is not None:
            ready = replace(ready, watch=_watch(config, ready.model, inputs.renderer))
        steps = planned(config, len(inputs.prepared.input_ids), team.size)
        resolved = ready.resolved | steps | {"memory": ahead.as_dict()}
        warned = inputs.warnings + run_warnings(config, resolved["steps"], inputs, team.size)
        record = run_record(config, mark, inputs, resolved, [*warned, *unnamed, *ahead.warnings()])
        if team.leads:
            for item in record["warnings"]:
                sys.stderr.write(f"warning: {item['text']}\n")
            folder.write_json(CONFIG, record)
        tell(model_line(config, resolved))
        fitted = fit(ready, inputs.prepared, inputs.renderer, ahead.config, folder.path / METRICS, claim.checkpoint)
    if not fitted.lines:
        raise KeyboardInterrupt
    report = team.first(lambda: finish(config, record, fitted, monitor_section))
    if team.leads:
        _say_end(invocation, report, len(fitted.lines), resolved["steps"])
    return STOPPED if report is None else 0


def check(config: TrainConfig) -> None:
    """Raise BadInputError for what can be refused by small files alone, before weights are read."""
    check_model_dir(config.model)
    check_trackers(config.report_to)
    check_fit(config.defences, config.model)
    if config.safelora is not None:
        check_shapes(config.safelora.base, config.model)
    if config.start_adapter is not None:
        lora_config(config.start_adapter)


def identify(config: TrainConfig, team: Team) -> tuple[Fingerprint, list[Warned]]:
    """The run's fingerprint, and warnings of vectors or an adapter that do not say which model they are for.

    Raises BadInputError for vectors, directions and adapters of another model. What a mix adds to the renderer's
    settings follows from the mix's id, which the fingerprint has too, and is read with its rows.
    """
    weights = team.first(lambda: weights_sha256(config.model))
    renderer_id = Renderer.from_folder(config.model, settings=config.rendering).renderer_id
    unnamed = check_made_for(config.defences, weights)
    if config.monitor is not None:
        check_files(config.monitor, weights, None if config.data is None else renderer_id)
    mark = fingerprint(config, weights, renderer_id, team.size)
    if mark.get("safelora_base_sha256") == weights:
        raise BadInputError("--safelora names the very model that is trained; it takes the one before alignment")
    return mark, unnamed


def _say_nothing(text: str = "") -> None:
    pass


def _watch(config: TrainConfig, model: Any, renderer: Renderer) -> Any:
    from trainer.monitor.callback import watcher

    return watcher(config, model, renderer)


def _say_end(invocation: Invocation, report: dict[str, Any] | None, n_done: int, n_steps: int) -> None:
    """The report of a run that is complete; of one that was stopped, how to go on."""
    config = invocation.config
    if report is not None and invocation.json:
        say_json(report)
        return
    if report is not None:
        say_result(config.out, trained_folder(config), report)
        return
    newest = max((checkpoint.step for checkpoint in complete_checkpoints(config.out)), default=None)
    sys.stderr.write(stopped_line(invocation, trained_folder(config), n_done, n_steps, newest) + "\n")


if __name__ == "__main__":
    keep_pages()  # of this process alone, so not in main(), which others may call
    sys.exit(main())
