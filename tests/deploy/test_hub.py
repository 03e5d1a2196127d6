"""`push` to a stand-in for the Hugging Face Hub, and `hf://user/name` from it."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from emnist_dali import load_classifier
from emnist_dali.cli import main
from emnist_dali.core.errors import UserError
from emnist_dali.core.files import read_json, write_json
from emnist_dali.deploy import push as push_module
from emnist_dali.deploy.export import ExportedModel, MismatchError, signed_card
from emnist_dali.deploy.push import push
from emnist_dali.runs import hub as hub_module
from emnist_dali.runs.file_names import BEST, CONFIG
from emnist_dali.runs.folder import RunFolder
from emnist_dali.runs.trained_classifier import TrainedClassifier

from ..hub_server import OWNER, TOKEN, hub

constants = pytest.importorskip("huggingface_hub.constants")
REPO = f"{OWNER}/letters"


@pytest.fixture(scope="module")
def at_hub(tmp_path_factory) -> Iterator:
    with hub() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path_factory.mktemp("cache")),
            "HF_HUB_DISABLE_XET": True,
        }.items():
            patch.setattr(constants, name, value)
        patch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.fixture(scope="module")
def run(trained_run, tmp_path_factory) -> Path:
    """A copy of the run that names folders of this machine."""
    path = tmp_path_factory.mktemp("secret-place") / "run"
    shutil.copytree(trained_run, path)
    config = read_json(path / CONFIG)
    config["data"]["source"] = config["run"]["out"] = str(path)
    config["run"] |= {"track": ["csv"], "wandb": "online"}
    write_json(path / CONFIG, config)
    return path


@pytest.fixture(scope="module")
def pushed(at_hub, run) -> dict[str, bytes]:
    """The files of the repository."""
    push(run, REPO, private=True)
    ((_, files),) = at_hub.repos[REPO]
    return files


def test_a_repository_holds_a_run_its_card_and_onnx(pushed, at_hub, run, tmp_path):
    assert sorted(pushed) == ["README.md", BEST, CONFIG, "metrics.jsonl", "model.onnx"]
    assert at_hub.created[REPO]["visibility"] == "private"
    for name, content in pushed.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert RunFolder(tmp_path).entries() == RunFolder(run).entries()
    images = np.random.default_rng(0).integers(0, 256, (20, 28, 28), np.uint8)
    expected = load_classifier(run).probabilities(images)
    for path in (tmp_path, tmp_path / "model.onnx"):
        assert np.abs(load_classifier(path).probabilities(images) - expected).max() < 1e-3


def test_no_folder_of_this_machine_is_told(pushed, run):
    for name, content in pushed.items():
        for folder in (run.parent.name, "/tmp/", "pytest"):
            assert folder.encode() not in content, name
    assert json.loads(pushed[CONFIG])["run"]["wandb"] == "disabled"


def test_the_card_says_how_to_load_it(pushed):
    card = pushed["README.md"].decode()
    assert f'load_classifier("hf://{REPO}")' in card
    assert f'load_file("{BEST}")' in card
    assert 'InferenceSession("model.onnx")' in card
    assert "library_name: emnist-dali" in card


def test_what_is_loaded_answers_as_the_run_does(pushed, at_hub, run):
    before = len(at_hub.asked)
    classifier = load_classifier(f"hf://{REPO}")
    assert classifier.name == f"hf://{REPO}"
    read = {line.rpartition("/")[2] for line in at_hub.asked[before:] if "/resolve/" in line}
    assert read == {"config.json", "best.safetensors"}
    images = np.random.default_rng(0).integers(0, 256, (20, 28, 28), np.uint8)
    assert np.array_equal(classifier.probabilities(images), load_classifier(run).probabilities(images))


def test_predict_from_the_hub(pushed, at_hub, picture):
    result = CliRunner().invoke(main, ["predict", f"hf://{REPO}", str(picture), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)[0]["model"] == f"hf://{REPO}"


@pytest.fixture
def picture(drawn, tmp_path) -> Path:
    Image.fromarray(255 - drawn.parts["test"].images[0]).resize((112, 112)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_without_a_network_it_is_what_was_downloaded_last(pushed, at_hub, monkeypatch):
    expected = load_classifier(f"hf://{REPO}").classes
    monkeypatch.setattr(hub_module, "reachable", lambda url: False)
    assert load_classifier(f"hf://{REPO}").classes == expected
    with pytest.raises(UserError, match=r"cannot be reached, and hf://someone/new was not downloaded before"):
        load_classifier("hf://someone/new")


def test_pushing_again_replaces_the_card_unless_it_was_edited(pushed, at_hub, run, monkeypatch):
    repo = f"{OWNER}/edited"
    for card in (pushed["README.md"], signed_card("A newer one.\n")):
        monkeypatch.setattr(push_module, "_files", lambda *_, card=card: ({**pushed, "README.md": card}, []))
        push(run, repo)
    (_, files), (_, newer) = at_hub.repos[repo]
    assert (files, newer["README.md"]) == (pushed, signed_card("A newer one.\n"))
    assert "visibility" not in at_hub.created[repo]
    at_hub.repos[repo].append(("e" * 40, {**files, "README.md": b"mine"}))
    assert "README.md was edited or is not from emnist-dali, and was not replaced." in push(run, repo)
    assert at_hub.repos[repo][-1][1]["README.md"] == b"mine"


@pytest.fixture
def of_two_files(at_hub, trained_run, monkeypatch) -> str:
    """A repository to which a card and an ONNX file were pushed; the next push has only another card."""
    repo = f"{OWNER}/two-files"
    at_hub.repos.pop(repo, None)
    monkeypatch.setattr(push_module, "_files", lambda *_: ({"README.md": signed_card("1\n"), "model.onnx": b"1"}, []))
    push(trained_run, repo)
    monkeypatch.setattr(push_module, "_files", lambda *_: ({"README.md": signed_card("2\n")}, []))
    return repo


def test_a_card_that_cannot_be_read_stops_the_push(of_two_files, at_hub, trained_run, monkeypatch):
    from huggingface_hub import hf_hub_download

    commits = at_hub.repos[of_two_files]
    hf_hub_download(of_two_files, "README.md")  # an older one is in the cache
    commits.append(("e" * 40, {"README.md": b"mine"}))
    monkeypatch.setattr(at_hub, "failing", {"README.md"})
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the client's attempts
    with pytest.raises(UserError, match=r"someone/two-files on http.* could not be used") as caught:
        push(trained_run, of_two_files)
    assert "\n" not in str(caught.value)
    assert commits[-1][1] == {"README.md": b"mine"}


def test_an_onnx_file_of_other_weights_is_removed(of_two_files, at_hub, trained_run):
    report = push(trained_run, of_two_files)
    assert at_hub.repos[of_two_files][-1][1] == {"README.md": signed_card("2\n")}
    assert report[1].startswith("model.onnx was removed, because it may be of other weights")


def test_a_private_push_to_a_public_repository_is_refused(of_two_files, at_hub, trained_run):
    with pytest.raises(UserError, match=r"someone/two-files is public; make it private .* or leave out --private"):
        push(trained_run, of_two_files, private=True)
    assert len(at_hub.repos[of_two_files]) == 1


def test_a_push_that_another_overtook_is_refused(of_two_files, at_hub, trained_run, monkeypatch):
    commits = at_hub.repos[of_two_files]

    def overtaken(card):
        commits.append(("e" * 40, {"README.md": b"mine"}))
        return True

    monkeypatch.setattr(push_module, "is_unedited_card", overtaken)
    with pytest.raises(UserError, match=r"could not be used .*; try again later"):
        push(trained_run, of_two_files)
    assert commits[-1][1] == {"README.md": b"mine"}


@pytest.mark.parametrize("error", [MismatchError, UserError])
def test_onnx_that_answers_differently_is_refused_and_that_fails_left_out(error, trained_run, monkeypatch):
    def export_model(trained, kind, *_, **__):
        if kind == "onnx":
            raise error("ONNX.")
        return ExportedModel(b"1", "A card.\n", [])

    monkeypatch.setattr(push_module, "export_model", export_model)
    trained = TrainedClassifier(trained_run)
    if error is MismatchError:
        with pytest.raises(MismatchError):
            push_module._files(trained, REPO)
    else:
        files, lines = push_module._files(trained, REPO)
        assert ("model.onnx" in files, lines) == (False, ["Without model.onnx: ONNX."])


@pytest.mark.parametrize(
    ("repo", "token", "message"),
    [
        ("other/letters", TOKEN, r"may not write to other/letters"),
        (REPO, "hf_wrong", r"does not know you; log in with `hf auth login`"),
        (REPO, "", r"Nobody is logged in"),
        ("letters", TOKEN, r"'letters' cannot name a repository on the Hub; write it as user/name"),
        ("a/b/c", TOKEN, r"cannot name a repository"),
        ("some one/x", TOKEN, r"cannot name a repository"),
    ],
)
def test_a_push_that_is_refused_is_one_sentence(repo, token, message, at_hub, trained_run, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr(push_module, "_files", lambda *_: ({"README.md": b"A card."}, []))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
    with pytest.raises(UserError, match=message) as caught:
        push(trained_run, repo)
    assert "\n" not in str(caught.value)


def test_a_push_without_a_network_is_one_sentence(at_hub, trained_run, monkeypatch):
    monkeypatch.setattr(hub_module, "reachable", lambda url: False)
    with pytest.raises(UserError, match=r"http://.* cannot be reached"):
        push(trained_run, REPO)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({CONFIG: None}, r"hf://someone/hostile has no config\.json: it is not a run"),
        ({BEST: None}, r"has no checkpoints/best\.safetensors: it is not a run"),
        ({CONFIG: b"x" * (2**24 + 1)}, r"config\.json of hf://someone/hostile has more than 16 MiB"),
        ({CONFIG: b"{}"}, r"config\.json is not a valid config"),
        ({CONFIG: b"[" * 100_000}, r"config\.json could not be read as JSON"),
        ({BEST: b"\x80\x04cos\nsystem\n"}, r"best\.safetensors does not hold weights"),
        ({BEST: "cut"}, r"best\.safetensors does not hold weights"),
    ],
)
def test_a_hostile_repository_is_one_sentence(change, message, pushed, at_hub):
    ((name, content),) = change.items()
    files = {**pushed, name: pushed[name][:-9] if content == "cut" else content}
    files = {path: content for path, content in files.items() if content is not None}
    at_hub.repos["someone/hostile"] = [(f"{abs(hash(message)):040x}"[:40], files)]
    with pytest.raises(UserError, match=message) as caught:
        load_classifier("hf://someone/hostile")
    assert "\n" not in str(caught.value)


def test_a_repository_that_is_missing_is_one_sentence(at_hub):
    with pytest.raises(UserError, match=r"has no model someone/nothing, or it is private and you may not read it"):
        load_classifier("hf://someone/nothing")
    with pytest.raises(UserError, match=r"'nothing' cannot name a repository"):
        load_classifier("hf://nothing")
    result = CliRunner().invoke(main, ["predict", "hf://someone/nothing"])
    assert result.exit_code == 1
    assert "no picture is named" in result.output
