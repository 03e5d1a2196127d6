"""Runs on the Hugging Face Hub: `hf://user/name` is a repository with the files of a run folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..core.errors import UserError
from ..core.files import MAX_JSON, reason
from ..core.machine import reachable
from .file_names import BEST, CONFIG

PREFIX = "hf://"
# All that is downloaded, and how many bytes each may have.
_FILES = {CONFIG: MAX_JSON, BEST: 2 * 2**30}


def is_address(path: str | Path) -> bool:
    """Whether it is an `hf://…`, which no path is."""
    return isinstance(path, str) and path.startswith(PREFIX)


def download(address: str) -> Path:
    """The folder in the Hub's cache with the settings and the best weights of the run at `address`.

    Both are of one commit; nothing else in the repository is read. Without a network it is what was downloaded last.
    Raises UserError if there is no such repository, if it holds no run, and if a file is too large.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repo = address.removeprefix(PREFIX)
    check_name(repo)
    online = is_online()
    commit = None
    with hub_errors(repo):
        for name, limit in _FILES.items():
            try:
                if online:
                    size = get_hf_file_metadata(hf_hub_url(repo, name, revision=commit)).size
                    if size is None or size > limit:
                        raise UserError(
                            f"{name} of {address} has more than {limit // 2**20} MiB, or tells no size; choose "
                            "another repository."
                        )
                path = Path(hf_hub_download(repo, name, revision=commit, local_files_only=not online))
            except LocalEntryNotFoundError as error:
                raise UserError(
                    f"{constants.ENDPOINT} cannot be reached, and {address} was not downloaded before; connect this "
                    "machine to the network, or name a run folder."
                ) from error
            except EntryNotFoundError as error:
                raise UserError(
                    f"{address} has no {name}: it is not a run; choose a repository that `emnist-dali push` wrote."
                ) from error
            folder = path.parents[name.count("/")]
            commit = folder.name
    return folder


def check_name(repo: str) -> None:
    """Raises UserError if `repo` is not of the form user/name."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
        if repo.count("/") != 1:
            raise HFValidationError
    except HFValidationError as error:
        raise UserError(f"{repo!a:.80} cannot name a repository on the Hub; write it as user/name.") from error


def is_online() -> bool:
    """Whether the Hub answers; without a network, its client would try for 47 s."""
    from huggingface_hub import constants

    return not constants.HF_HUB_OFFLINE and reachable(constants.ENDPOINT)


@contextmanager
def hub_errors(repo: str) -> Iterator[None]:
    """Turns what huggingface_hub raises into UserErrors."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # those of its HTTP library have another base class in each of its versions
        raise UserError(_sentence(repo, error)) from error


def _sentence(repo: str, error: Exception) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalTokenNotFoundError, RepositoryNotFoundError

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{constants.ENDPOINT} has no model {repo}, or it is private and you may not read it; check the name, or "
            "log in with `hf auth login`."
        )
    if isinstance(error, LocalTokenNotFoundError) or status == 401:
        return (
            f"{constants.ENDPOINT} does not know you; log in with `hf auth login`, or set HF_TOKEN to a token that "
            "may write."
        )
    if status == 403:
        return f"Your token may not write to {repo}; use one that may, or name a repository of your own."
    return f"{repo} on {constants.ENDPOINT} could not be used ({reason(error)}); try again later."
