"""Pushes a run to the Hugging Face Hub: its best weights, settings and metrics, an ONNX file and a model card."""

from dataclasses import replace
from pathlib import Path

from ..config import Config, Run
from ..core.errors import UserError
from ..core.files import encode_json
from ..runs import hub, schema
from ..runs.file_names import BEST, CONFIG, METRICS
from ..runs.folder import RunFolder
from ..runs.trained_classifier import TrainedClassifier
from .export import MismatchError, check_onnx_is_installed, export_model, is_unedited_card, signed_card

CARD, ONNX = "README.md", "model.onnx"


def push(run: Path, repo: str, *, private: bool = False) -> list[str]:
    """Writes the run to the repository `repo`, user/name, in one commit; returns a report.

    A repository that is missing is created, `private` or as the Hub's settings say. In it are the files of a run
    folder that `load_classifier("hf://user/name")` reads, without this machine's paths. A model card that was edited
    on the Hub stays; a model.onnx there goes if this push has none. Raises UserError, before anything is sent, if the
    run has no weights or the exported ones answer differently; also if the Hub cannot be reached or refuses, if the
    repository is public in spite of `private`, and if another process writes to it meanwhile.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token

    hub.check_name(repo)
    if not get_token():
        raise UserError("Nobody is logged in to the Hugging Face Hub; run `hf auth login`, or set HF_TOKEN.")
    if not hub.is_online():
        raise UserError(f"{constants.ENDPOINT} cannot be reached; connect this machine to the network.")
    files, lines = _files(TrainedClassifier(run, repo), repo)
    with hub.hub_errors(repo):
        api = HfApi()
        api.create_repo(repo, private=private or None, exist_ok=True)
        head = api.model_info(repo)
        if private and not head.private:
            raise UserError(f"{repo} is public; make it private in its settings on the Hub, or leave out --private.")
        there = {file.rfilename for file in head.siblings or ()}
        if CARD in there and not is_unedited_card(Path(api.hf_hub_download(repo, CARD, revision=head.sha))):
            del files[CARD]
            lines.append(f"{CARD} was edited or is not from emnist-dali, and was not replaced.")
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        if ONNX in there - files.keys():
            operations.append(CommitOperationDelete(ONNX))
            lines.append(f"{ONNX} was removed, because it may be of other weights; the Hub's history keeps it.")
        commit = api.create_commit(repo, operations, commit_message="A run of emnist-dali", parent_commit=head.sha)
    size = sum(map(len, files.values())) / 1e6
    return [f"{commit.commit_url}: {', '.join(files)}; {size:.2f} MB.", *lines]


def _files(trained: TrainedClassifier, repo: str) -> tuple[dict[str, bytes], list[str]]:
    """The files by their paths in the repository, and lines about the comparison with the trained model."""
    weights = export_model(trained, "safetensors", Path(BEST), repo=repo)
    entries = RunFolder(trained.path).entries()
    files = {
        CONFIG: encode_json(_without_paths(RunFolder(trained.path).config()).to_dict()),
        METRICS: "".join(map(schema.to_line, entries)).encode(),
        BEST: weights.content,
    }
    card, lines = weights.card, []
    try:
        check_onnx_is_installed()
        onnx = export_model(trained, "onnx", Path(ONNX), ["safetensors"], repo=repo)
        files[ONNX], card, lines = onnx.content, onnx.card, onnx.comparison
    except MismatchError:
        raise
    except UserError as error:
        lines.append(f"Without {ONNX}: {error}")
    return {CARD: signed_card(card), **files}, lines


def _without_paths(config: Config) -> Config:
    """`config` without folders of this machine and without trackers."""
    source = config.data.source if config.data.source in ("official", "glyphs") else None
    run = Run(device=config.run.device, amp=config.run.amp, compile=config.run.compile)
    return replace(
        config,
        data=replace(config.data, data_dir="data", source=source),
        model=replace(config.model, weights=config.model.weights and Path(config.model.weights).name),
        run=run,
    )
