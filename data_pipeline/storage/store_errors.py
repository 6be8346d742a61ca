"""What obstore raises becomes what the rest of storage knows: an answer of the server, a broken connection, no object.

obstore tells a failure as text: "… status code: 403 Forbidden: <the server's own XML>", and details for debugging.
"""

from __future__ import annotations

import html
import re
from http import HTTPStatus
from typing import Any

_STATUS = re.compile(r"status code: (\d{3})[^:\n]*: ?(.*)", re.DOTALL)
_ELEMENT = r"<{0}>(.*?)</{0}>"
_DETAILS = "\n\nDebug source:"
_CAUSE = re.compile(r'message: "([^"]*)"|error: "([^"]*)"')
_BROKEN = ("HTTP error", "Requested ", "error decoding response body", "Content-Length Header missing")
_MOVED = "Received redirect"
_WHOLE = "Received non-partial response"
"""To the question for a range, by servers that know none; by others if the object is empty."""


class AnswerError(OSError):
    """The server answered that something cannot be. `response` says it as botocore's ClientError does."""

    def __init__(self, status: int, body: str) -> None:
        found = {name: _element(body, name) for name in ("Code", "Message", "Region")}
        code = found["Code"] or str(status)
        message = found["Message"] or (HTTPStatus(status).phrase if status in set(HTTPStatus) else "")
        super().__init__(f"{message} ({code})")
        region = {"Region": found["Region"]} if found["Region"] else {}
        self.response: dict[str, Any] = {
            "Error": {"Code": code, "Message": message, **region},
            "ResponseMetadata": {"HTTPStatusCode": status},
        }


class OtherClientError(Exception):
    """obstore does not take this answer: s3fs has to ask. Of a bucket that moved, it finds the new place."""


class TooLargeError(Exception):
    """An object has more bytes than it may have."""


def _element(body: str, name: str) -> str:
    found = re.search(_ELEMENT.format(name), body, re.DOTALL)
    return html.unescape(found[1]) if found else ""


def translated(error: Exception) -> Exception:
    """The failure of a request, in the terms of the other clients."""
    text, _, details = str(error).partition(_DETAILS)
    if found := _STATUS.search(text):
        answer = AnswerError(int(found[1]), found[2])
        code = answer.response["Error"]["Code"]
        if answer.response["ResponseMetadata"]["HTTPStatusCode"] == 404 and code != "NoSuchBucket":
            return FileNotFoundError(text)
        if found[1] in {"301", "302", "307", "308"} or code in {"PermanentRedirect", "AuthorizationHeaderMalformed"}:
            return OtherClientError(text)
        return answer
    if _MOVED in text or _WHOLE in text:
        return OtherClientError(text)
    if "TimedOut" in details or "kind: Timeout" in details:
        return TimeoutError()
    if any(sign in text for sign in _BROKEN):
        causes = [message or other for message, other in _CAUSE.findall(details)]
        return ConnectionError(f"{text} ({causes[-1]})" if causes else text)
    return ValueError(text)
