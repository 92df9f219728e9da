"""Uploads a run to the Hub in one commit. Waits for the network: called in a process of its own."""

import os
import warnings
from pathlib import Path

import huggingface_hub
from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.utils import disable_progress_bars, get_session, logging

import hfbsz
from hfbsz.display import one_line
from hfbsz.errors import UserError
from hfbsz.records.folder import read_status
from hfbsz.report.hub.contents import contents
from hfbsz.report.hub.request import Outcome, Request

SILENCE_SECONDS = 30.0  # how long the server may send nothing before a request counts as failed
LOG_IN = "hf auth login, or set HF_TOKEN"
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE")


def why_unavailable() -> str | None:
    """Why nothing can be pushed from here, without asking the network: offline mode, or no token; None: it can."""
    if huggingface_hub.is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    path = Path(constants.HF_TOKEN_PATH)
    has_file = path.is_file() and path.stat().st_size > 0
    return None if has_file or any(map(os.environ.get, _TOKENS)) else f"nobody is logged in to the Hub ({LOG_IN})"


def upload(request: Request) -> Outcome:
    """Push a run: create its repository if it is missing, and commit the files that have changed. Every fault is the
    `error` of the outcome, one line without the token."""
    disable_progress_bars()
    logging.set_verbosity_error()
    token = None
    try:
        token = get_token()
        return _upload(request)
    except Exception as fault:
        return Outcome(error=_reason(fault, request.repository, token))


def _upload(request: Request) -> Outcome:
    if (why := why_unavailable()) is not None:
        raise UserError(why)
    get_session().timeout = SILENCE_SECONDS  # type: ignore[assignment]  # httpx makes a Timeout of it
    api = HfApi(library_name="hfbsz", library_version=hfbsz.__version__)
    url = api.create_repo(request.repository, private=request.private, exist_ok=True)
    before = api.model_info(url.repo_id)
    if request.private and before.private is False:
        raise UserError(f"{url.repo_id} exists and is public: hub.private=false pushes to it, or take another hub.id")
    files, notes = contents(request.folder, request.model, url.repo_id)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a table of records in a repository of a model is intended
        commit = api.create_commit(
            url.repo_id,
            [CommitOperationAdd(name, content) for name, content in files.items()],
            commit_message=f"{request.folder.resolve().name}: {_state(request)}",
        )
    return Outcome(url=str(url), is_new=commit.oid != before.sha, notes=tuple(notes))


def _state(request: Request) -> str:
    """What is pushed, for the history of the repository."""
    status = read_status(request.folder)
    return str(status.get("state", "unknown")) if request.model == request.folder else "in training"


def _reason(fault: Exception, repository: str, token: str | None) -> str:
    """The fault in one line of at most 300 characters, without the token."""
    if isinstance(fault, UserError):
        return "; ".join(fault.lines)
    status = getattr(getattr(fault, "response", None), "status_code", None)
    if status in (401, 403):
        return f"the Hub does not accept the token for {repository} ({status}): it needs the right to write; {LOG_IN}"
    message = " ".join(str(fault).split())
    if type(fault).__module__.startswith("httpx"):
        message += f" ({constants.ENDPOINT})"
    if token:
        message = message.replace(token, "****")
    return one_line(f"{type(fault).__name__}: {message}".removesuffix(": "))[:300]
