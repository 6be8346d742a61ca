"""The client of a Ray cluster's dashboard: Ray's own, with time limits, and errors that say what is wrong.

Ray's client waits for an answer for ever, and its failures are RuntimeErrors and those of `requests`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from data_pipeline.errors import FoldtrainError

CONNECT_SECONDS, ANSWER_SECONDS = 10.0, 30.0
"""A dashboard that takes longer to accept a connection, or from one byte to the next, is given up."""
WHOLE_SECONDS = 120.0
"""Within which a request has to be answered whole."""
_LONGEST_REASON = 300
_NO_AGENT = "No available agent"
"""How Ray's answer begins, with HTTP 500, while the head's agent has not begun, or is away; it waits 10 s by itself."""


class AgentAwayError(FoldtrainError):
    """The dashboard answers, but what starts jobs on the head node does not, yet: ask again later."""


class UnansweredError(FoldtrainError):
    """A request got no answer: what it asked for may have been done, or not."""


def open_dashboard(address: str, headers: Mapping[str, str]) -> Any:
    """A JobSubmissionClient of the dashboard at a URL.

    Raises:
        FoldtrainError: if nothing answers there in time, or something that is no Ray dashboard. The client's methods
            raise it, too, and `AgentAwayError` and `UnansweredError`.
    """
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        def _do_request(self, method: str, endpoint: str, **arguments: Any) -> Any:
            arguments.setdefault("timeout", (CONNECT_SECONDS, ANSWER_SECONDS))
            ask = super()._do_request
            response = _within(lambda: ask(method, endpoint, **arguments), address)
            if response.status_code == 500 and response.text.startswith(_NO_AGENT):
                raise AgentAwayError(f"the Ray cluster at {address} starts no jobs yet: {response.text.strip()}")
            if response.status_code not in {200, 404}:
                raise _refusal(address, f"it answers HTTP {response.status_code}: {_line(response.text)}")
            return response

    try:
        return Client(address, headers=dict(headers))
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # its answer is not what Ray answers
        raise _refusal(address, "what answers there is no Ray dashboard; its port is 8265 by default") from error
    except (AuthenticationError, ConnectionError, RuntimeError, OSError) as error:
        raise _refusal(address, str(error)) from error


def _refusal(address: str, reason: str, kind: type[FoldtrainError] = FoldtrainError) -> FoldtrainError:
    return kind(f"no Ray cluster can be used at {address}: {_line(reason)}")


def _line(text: str) -> str:
    """What says most of a text: its first line, or of a traceback the last; shortened, and without control signs."""
    lines = text.strip().splitlines() or [""]
    line = lines[-1] if lines[0].startswith("Traceback") else lines[0]
    return "".join(sign if sign.isprintable() else " " for sign in line)[:_LONGEST_REASON]


def _within(ask: Callable[[], Any], address: str) -> Any:
    """The answer to a request. A server that sends a byte now and then keeps within the limits between them."""
    import requests

    found: list[Any] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            found.append(ask())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work, name="dashboard", daemon=True)
    thread.start()
    thread.join(WHOLE_SECONDS)
    if failed:
        if isinstance(failed[0], requests.exceptions.RequestException):
            raise _refusal(address, f"it does not answer ({failed[0]})", UnansweredError) from failed[0]
        raise failed[0]
    if not found:
        raise _refusal(address, f"it has not answered within {WHOLE_SECONDS:.0f} seconds", UnansweredError)
    return found[0]
