#!/usr/bin/env python
"""The GPU recipes on the official data, on this machine: `make reproduce`.

python bench/reproduce.py --split balanced --recipe fast           a part of it
python bench/reproduce.py --no-check --set training.epochs=30      the trainings only, and shorter

Fetches NIST's files, runs bench/gpu_check.py (parity, speed), and trains `fast`, `published` and `improved` on
Balanced and on ByClass with three seeds, each by the command that its row shows. Needs a network only for NIST's
files and pretrained weights.

It can be stopped and repeated: a complete run is used as it is, an interrupted one is resumed, and one that fails
leaves the others. After each run the result file of the machine that it ran on is written, and from it the machine's
section of RESULTS.md. A recorded run of the same data stays in both until the same command has been run again there.
"""

import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import mean, stdev
from types import FrameType
from typing import Any

import click
import torch

import gpu_check
from emnist_dali.commands.options import with_flags
from emnist_dali.config import Config, parse
from emnist_dali.core.errors import UserError
from emnist_dali.core.files import read_json, write_atomic
from emnist_dali.core.machine import environment
from emnist_dali.data.emnist import SPLITS
from emnist_dali.data.manifest import Manifest
from emnist_dali.data.prepare import prepare
from emnist_dali.data.shards import Shards
from emnist_dali.loading.loader import with_backend
from emnist_dali.recipes import RECIPES, choose
from emnist_dali.runs.checkpoint import load_weights
from emnist_dali.runs.folder import RunFolder
from emnist_dali.runtime import resolve
from result_file import check_result_file, write_result_file

ROOT = Path(__file__).resolve().parent.parent
METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "top2", "calibration_error")
INTERRUPTED = (128 + 1, 128 + 2, 128 + 15, -1, -2, -15)  # exit codes of a training that a signal stopped


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training: what it is, its settings, its run folder, and the command for it without folders and seed."""

    split: str
    recipe: str
    seed: int
    config: Config
    folder: Path
    settings: tuple[str, ...]

    @property
    def command(self) -> list[str]:
        """The arguments of emnist-dali that a person would type."""
        return ["train", "--split", self.split, "--recipe", self.recipe, *self.settings, "--seed", str(self.seed)]


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--split", "splits", multiple=True, type=click.Choice([*SPLITS]), default=("balanced", "byclass"),
              show_default=True, help="Repeatable.")  # fmt: skip
@click.option("--recipe", "recipe_names", multiple=True, type=click.Choice([*RECIPES]), show_default=True,
              default=("fast", "gpu", "published", "improved"), help="Repeatable.")  # fmt: skip
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Number of seeds: 0, 1, 2, …")
@click.option("--data-dir", default="data", show_default=True, help="Folder of the prepared splits.")
@click.option("--source", default="official", show_default=True, help="As for emnist-dali prepare.")
@click.option("--device", default="cuda", show_default=True)
@click.option(
    "--set", "settings", multiple=True, metavar="SETTING=VALUE", help="As for emnist-dali train; repeatable."
)
@click.option(
    "--check/--no-check", default=True, show_default=True, help="Parity and speed first: bench/gpu_check.py."
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/reproduce"), show_default=True,
              help="Folder of the run folders.")  # fmt: skip
@click.option("--records", type=click.Path(path_type=Path), default=ROOT / "bench" / "records",
              help="Folder of the result files.  [default: bench/records]")  # fmt: skip
@click.option("--results", type=click.Path(path_type=Path), default=ROOT / "RESULTS.md",
              help="Markdown file in which the machine's section is replaced.  [default: RESULTS.md]")  # fmt: skip
def main(
    splits: tuple[str, ...], recipe_names: tuple[str, ...], seeds: int, data_dir: str, source: str,
    device: str, settings: tuple[str, ...], check: bool, out: Path, records: Path, results: Path,
) -> None:  # fmt: skip
    """Fetch the official data, check this machine, train the recipes, and write the machine's rows."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise click.ClickException("torch sees no GPU here; rehearse on the CPU with --device cpu.")
    machine = environment(device)
    path = records / f"reproduce-{slug(machine_name(machine, device))}.json"
    try:
        records.mkdir(parents=True, exist_ok=True)
        overrides = {"data_dir": data_dir, "source": source, "device": device, **parsed(settings)}
        jobs = list(planned(splits, recipe_names, seeds, overrides, settings, out))
        jobs.sort(key=lambda job: not is_complete(RunFolder(job.folder)))  # complete runs are recorded first
        document = opened(path, machine, device)
    except UserError as error:
        raise click.ClickException(with_flags(str(error))) from error
    announce(jobs, check, path, results)
    failures = document["failures"] = {}
    fetched = {split: shards for split in splits if (shards := fetch(split, source, data_dir, failures))}
    for split, shards in fetched.items():
        set_data(document, split, shards.manifest)
    if check:
        found, failed = checked(out / "check", data_dir, device, machine)
        document["check"] = found or document["check"]
        failures |= {f"check, {name}": "its output is in the result file" for name in failed}
    for job in (job for job in jobs if job.split in fetched):
        try:
            run = trained(job, fetched[job.split])
            record(run, fetched[job.split].manifest, document, path, results)
        except UserError as error:
            failures[job.folder.name] = with_flags(str(error))
            click.echo(f"{job.folder.name} failed: {failures[job.folder.name]}", err=True)
        save(document, path, results)
    save(document, path, results)
    click.echo(f"{path} and the section of {results}:\n\n{section(document, path.name)}")
    if failures:
        raise click.ClickException(f"{', '.join(failures)} failed; repeat the command to try only these again.")


def machine_name(machine: dict[str, Any], device: str) -> str:
    """The GPU's name, or for a CPU also its cores."""
    return machine["gpu"] if device.startswith("cuda") else f"{machine['cpus']} cores ({machine['cpu']})"


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def parsed(settings: tuple[str, ...]) -> dict[str, Any]:
    """`training.epochs=2` as {"training.epochs": 2}; raises UserError."""
    pairs = [setting.partition("=") for setting in settings]
    if wrong := [setting for setting, (_, equals, _) in zip(settings, pairs, strict=True) if not equals]:
        raise UserError(f"{wrong[0]} is not of the form SETTING=VALUE; correct that --set.")
    return {path: parse(path, text) for path, _, text in pairs}


def planned(
    splits: tuple[str, ...], recipe_names: tuple[str, ...], seeds: int, overrides: dict[str, Any],
    settings: tuple[str, ...], out: Path,
) -> Iterator[Job]:  # fmt: skip
    """The trainings, one seed after the other, so that the table is complete after each."""
    gpu = overrides["device"].startswith("cuda")
    for seed in range(seeds):
        for split in splits:
            for recipe in recipe_names:
                config = choose(recipe, split, gpu)[0].override({**overrides, "seed": seed})
                yield Job(
                    split=split, recipe=recipe, seed=seed, config=config, folder=out / f"{split}-{recipe}-{seed}",
                    settings=tuple(word for setting in settings for word in ("--set", setting)),
                )  # fmt: skip


def announce(jobs: list[Job], check: bool, path: Path, results: Path) -> None:
    """What will be done; how long it takes no one knows before a run of each recipe is through."""
    complete = [job for job in jobs if is_complete(RunFolder(job.folder))]
    splits = ", ".join(dict.fromkeys(job.split for job in jobs))
    lines = [f"1. NIST's files of {splits} (33 MB for balanced, 203 MB for byclass), unless they are prepared"]
    if check:
        lines.append("2. bench/gpu_check.py: parity and speed, planned for a quarter of an hour")
    left = len(jobs) - len(complete)
    lines += [
        f"{len(lines) + 1}. {len(jobs)} trainings, {left} of them not complete yet:",
        *(f"   emnist-dali {shlex.join(job.command)}" for job in jobs if job not in complete),
        "   How long they take on this machine is not known; each run reports its own speed after an epoch.",
        f"Results go to {path} and {results} after each run. Stop it at any time; repeated, it goes on.",
    ]
    click.echo("\n".join(lines))


def opened(path: Path, machine: dict[str, Any], device: str) -> dict[str, Any]:
    """The result file of a machine's runs, or the beginning of one; raises UserError if `path` is another file."""
    check_result_file(path, "reproduce")
    before = read_json(path) if path.exists() else {"data": {}, "runs": [], "failures": {}, "check": None}
    return {**before, "benchmark": "reproduce", "machine": machine, "device": device}


def set_data(document: dict[str, Any], split: str, manifest: Manifest) -> None:
    """Notes the data of `split` that are there now, and drops the runs of others."""
    document["data"][split] = described(manifest)
    fingerprint = manifest.fingerprint
    document["runs"] = [run for run in document["runs"] if run["split"] != split or run["fingerprint"] == fingerprint]


def record(run: dict[str, Any], manifest: Manifest, document: dict[str, Any], path: Path, results: Path) -> None:
    """Adds a run to `document` or, if another machine trained it, to that one's result file and section.

    Raises UserError if that file is another benchmark's or damaged.
    """
    device = run["config"]["run"]["device"]
    name = machine_name(run["machine"], device)
    if name == machine_name(document["machine"], document["device"]):
        return replace_run(document, run)
    there = path.with_name(f"reproduce-{slug(name)}.json")
    theirs = opened(there, run["machine"], device)
    set_data(theirs, run["split"], manifest)
    replace_run(theirs, run)
    save(theirs, there, results)


def replace_run(document: dict[str, Any], run: dict[str, Any]) -> None:
    """The command has the split, the recipe, the settings and the seed."""
    document["runs"] = [other for other in document["runs"] if other["command"] != run["command"]] + [run]


def fetch(split: str, source: str, data_dir: str, failures: dict[str, str]) -> Shards | None:
    """The prepared training images; None, and the reason in `failures`, if there are none."""
    try:
        return Shards(prepare(split, source, data_dir), "train")
    except UserError as error:
        failures[split] = with_flags(str(error))
        click.echo(f"{split} failed: {failures[split]}", err=True)
        return None


def described(manifest: Manifest) -> dict[str, Any]:
    counts = {part: sum(numbers) for part, numbers in manifest.counts.items()}
    return {"official": manifest.official, "fingerprint": manifest.fingerprint, "images": counts}


def checked(
    folder: Path, data_dir: str, device: str, machine: dict[str, Any]
) -> tuple[dict[str, Any] | None, list[str]]:
    """The document of bench/gpu_check.py, and which parts failed; one of `machine` without a failure is used."""
    command = [sys.executable, str(ROOT / "bench" / "gpu_check.py"), "--device", device, "--data-dir", data_dir]
    prefix = gpu_check.file_prefix(machine, device)
    document, failed = _newest_check(folder, prefix)
    if failed:
        call([*command, "--out", str(folder)])
        document, failed = _newest_check(folder, prefix)
    else:
        click.echo(f"{folder} has a check without a failure; it is not repeated.")
    return document, failed


def _newest_check(folder: Path, prefix: str) -> tuple[dict[str, Any] | None, list[str]]:
    files = sorted(folder.glob(f"{prefix}{'[0-9]' * 8}.json"))
    if not files:
        return None, ["all"]
    document = read_json(files[-1])
    return document, [name for name, part in document["parts"].items() if part["exit_code"] != 0]


def call(command: list[str]) -> int:
    """Its exit code; stopped by a signal, it ends the process too, awaits its checkpoint, and raises click.Abort.

    Ctrl-C reaches the process by itself. SIGTERM may (timeout(1), systemd) or may not (kill), and a second one would
    end a training without a checkpoint, which SIGHUP does not: that is what the process gets, once.
    """
    handled = [signum for signum in (signal.SIGHUP, signal.SIGTERM) if signal.getsignal(signum) != signal.SIG_IGN]
    process, stopped = None, []

    def stop(signum: int, frame: FrameType | None) -> None:
        stopped.append(signum)
        if process and len(stopped) == 1:
            process.send_signal(handled[0])  # SIGTERM under nohup, where SIGHUP is ignored

    before = {signum: signal.signal(signum, stop) for signum in handled}
    try:
        process = subprocess.Popen(command)
        if stopped:  # while it was started
            process.send_signal(handled[0])
        code = process.wait()
    except KeyboardInterrupt:
        if process:
            process.wait()
        raise
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    if stopped:
        raise click.Abort
    return code


def is_complete(run: RunFolder) -> bool:
    """Whether it has read the test split; false for a damaged one, which `train --resume` then names."""
    with suppress(UserError):
        return any(entry["kind"] == "test" for entry in run.entries())
    return False


def trained(job: Job, shards: Shards) -> dict[str, Any]:
    """The result of a run, which is started, resumed or only read; raises UserError if it failed or is another's."""
    run = RunFolder(job.folder)
    if not is_complete(run):
        data = ["--data-dir", job.config.data.data_dir, "--source", str(job.config.data.source)]
        place = ["--device", job.config.run.device, "--out", str(job.folder), "--resume", "auto"]
        code = call([sys.executable, "-m", "emnist_dali", *job.command, *data, *place])
        if code in INTERRUPTED:
            raise click.Abort
        if code:
            raise UserError(f"The training in {job.folder} ended with exit code {code}; its message is above.")
    return result(job, RunFolder(job.folder), shards)


def result(job: Job, run: RunFolder, shards: Shards) -> dict[str, Any]:
    """What the run's own files say; raises UserError if they are of other settings or other data."""
    config = run.config()
    fingerprint = load_weights(run.best)[1].get("fingerprint")
    same = config.identity() == with_backend(resolve(job.config), shards).identity()
    if not same or fingerprint != shards.manifest.fingerprint:
        what = "data" if same else "settings"
        raise UserError(f"{job.folder} holds a complete run with other {what}; choose another --out.")
    epochs = [entry for entry in run.entries() if entry["kind"] == "epoch"]
    test = next(entry for entry in run.entries() if entry["kind"] == "test")
    seconds = sum(entry["seconds"] for entry in epochs)
    return {
        "split": job.split,
        "recipe": job.recipe,
        "seed": job.seed,
        "command": f"emnist-dali {shlex.join(job.command)}",
        "fingerprint": fingerprint,
        "steps": epochs[-1]["step"],
        "seconds": seconds,
        "images_per_second": sum(entry["images_per_second"] * entry["seconds"] for entry in epochs) / seconds,
        "images": test["images"],
        **{name: test[name] for name in METRICS if name in test},
        "config": config.to_dict(),
        "machine": run.environment(),
    }


def save(document: dict[str, Any], path: Path, results: Path) -> None:
    """Writes a machine's result file, and its section of `results`: replaced, or appended."""
    document["runs"].sort(key=lambda run: (run["split"], run["recipe"], shown(run), run["seed"]))
    write_result_file(path, document)
    text = results.read_text() if results.exists() else "# Results\n"
    new = section(document, path.name)
    heading = new.partition("\n")[0]
    old = re.compile(rf"^{re.escape(heading)}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    if old.search(text):
        text = old.sub(lambda _: f"{new}\n", text).rstrip("\n") + "\n"
    else:
        text = f"{text.rstrip()}\n\n{new}"
    write_atomic(results, text.encode())


def section(document: dict[str, Any], file: str) -> str:
    """Markdown of a machine's runs: percent, mean ± standard deviation over the seeds."""
    machine, device = document["machine"], document["device"]
    about = [f"{name} {version}" for name, version in machine["packages"].items() if version]
    if device.startswith("cuda"):
        if driver := machine.get("gpu_driver"):
            about.append(f"driver {driver}")
        if watts := machine.get("gpu_power_limit_watts"):
            about.append(f"power limit {watts:g} W")
    else:
        about.insert(0, "no GPU")
    lines = [
        f"## Reproduced on {machine_name(machine, device)}",
        "",
        f"By `bench/reproduce.py` on {machine['time'][:10]}; {', '.join(about)}. Result file: `{file}`.",
        "",
        "| data | recipe, command | seeds | held out | test accuracy | macro F1 | training |",
        "|---" * 7 + "|",
    ]
    for _, group in groupby(document["runs"], key=lambda run: (run["split"], shown(run))):
        lines.append(row([*group], document["data"]))
    lines += [f"\nNot measured, {name}: {reason}" for name, reason in document["failures"].items()]
    return "\n".join(lines) + "\n"


def shown(run: dict[str, Any]) -> str:
    """A run's command for any seed."""
    return run["command"].removesuffix(str(run["seed"])) + "N"


def row(runs: list[dict[str, Any]], data: dict[str, Any]) -> str:
    """The row of one recipe on one split."""
    first, about = runs[0], data[runs[0]["split"]]
    official = "official" if about["official"] else "not the official data"
    cells = [
        f"{first['split']}, {official}, `{about['fingerprint'][:12]}`",
        f"`{shown(first)}`",
        ", ".join(str(run["seed"]) for run in runs),
        f"{100 * first['config']['data']['val_fraction']:g} %",
        f"{spread([100 * run['accuracy'] for run in runs], 2)} %",
        spread([run["macro_f1"] for run in runs], 4),
        speed([run for run in runs if not run["machine"].get("resumed")]),
    ]
    return f"| {' | '.join(cells)} |"


def speed(runs: list[dict[str, Any]]) -> str:
    """Of runs that were never resumed: the time of an epoch that was is only of its rest."""
    if not runs:
        return "not timed: resumed"
    return (
        f"{mean(run['seconds'] for run in runs):,.0f} s, {mean(run['images_per_second'] for run in runs):,.0f} img/s"
    )


def spread(values: list[float], digits: int) -> str:
    """Mean ± standard deviation; a single value has none."""
    deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{deviation}"


if __name__ == "__main__":
    main()
