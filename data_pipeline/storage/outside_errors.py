"""What a failure of remote storage means: whether it passes by itself, and otherwise what the user can do.

Here the exceptions of botocore, aiohttp, s3fs and other filesystems become ours, and those of obstore, which
`store_errors` gives the same form. The server's own reason is kept.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Any

from data_pipeline.errors import FoldtrainError, NotAFileError, StorageAwayError, UsageError
from data_pipeline.storage.object_clients import S3, endpoint_variable

_STATUSES = {408, 429, 500, 502, 503, 504}
_CODES = {
    *("SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "Throttling", "ThrottlingException"),
    *("TooManyRequests", "RequestLimitExceeded", "OperationAborted", "ConditionalRequestConflict"),
    *("IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"),
}
_SLOW_DOWN = {"SlowDown", "ServiceUnavailable", "Throttling", "ThrottlingException", "TooManyRequests", "503", "429"}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired", "RequestTimeTooSkewed"}
_LOGIN_ENDED = {"SSOTokenLoadError", "UnauthorizedSSOTokenError", "TokenRetrievalError", "CredentialRetrievalError"}
_ROTATED = {"InvalidAccessKeyId", "InvalidToken"}
_UNSET = {"NoCredentialsError", "PartialCredentialsError"}
_NAMES = {
    *("ConnectError", "ConnectTimeout", "ReadError", "ReadTimeout", "WriteError", "RemoteProtocolError", "PoolTimeout"),
    "IncompleteRead",
    "IncompleteReadError",
    "ClientPayloadError",
    "FlexibleChecksumError",
    "ResponseParserError",
}
"""Failures whose classes lie in several libraries, some of which may not be loaded."""
_FINAL = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError, FoldtrainError)
_ERRNOS = {None, errno.EIO, errno.EAGAIN, errno.EBUSY}
_LONGEST_REASON = 300
_OURS = {"model", "data_pipeline", "trainer", "cluster", "tests"}

_KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE and ~/.aws/credentials"
_FORBIDDEN = (
    "These credentials may not do that: the bucket's policy has to allow s3:ListBucket, s3:GetObject, and for what is "
    f"written s3:PutObject and s3:DeleteObject. Or they are others than you meant: check {_KEYS}"
)
_UNKNOWN = f"The server does not take these credentials: check {_KEYS}, and AWS_ENDPOINT_URL"
_RENEW = (
    "The credentials have expired: renew them (aws sso login, or new keys in ~/.aws/credentials; a command that runs "
    "reads them again), and run the command again"
)
_ELSEWHERE = "The bucket is in another region, or at another server: set AWS_REGION, or AWS_ENDPOINT_URL"
_FULL = "The storage is full, or your quota of it: free some space, and run the command again"
_NO_CREDENTIALS = f"There are no credentials: set {_KEYS}"
_REMEDIES = {
    **dict.fromkeys(("AccessDenied", "AllAccessDisabled", "AccountProblem", "403"), _FORBIDDEN),
    **dict.fromkeys(("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "InvalidSecurity"), _UNKNOWN),
    **dict.fromkeys((*_EXPIRED, *_LOGIN_ENDED), _RENEW),
    "RequestTimeTooSkewed": "The clock of this machine is wrong: set it (timedatectl set-ntp true)",
    **dict.fromkeys(("PermanentRedirect", "TemporaryRedirect", "Redirect", "301", "307"), _ELSEWHERE),
    **dict.fromkeys(("AuthorizationHeaderMalformed", "IllegalLocationConstraintException"), _ELSEWHERE),
    **dict.fromkeys(("QuotaExceeded", "XMinioStorageFull", "InsufficientCapacity", "507"), _FULL),
    "NoSuchBucket": "Correct the bucket's name, create it (aws s3 mb s3://NAME), or check AWS_ENDPOINT_URL",
    "InvalidBucketName": "Correct the bucket's name",
    "KeyTooLongError": "Give a shorter place",
    "EntityTooLarge": "The server takes no object of that size: set a smaller shard_bytes or shard_samples",
    **dict.fromkeys(_UNSET, _NO_CREDENTIALS),
    "ProfileNotFound": "Set AWS_PROFILE to a profile of ~/.aws/config",
    "ConfigParseError": "Mend ~/.aws/config",
    "NoRegionError": "Set AWS_REGION",
    "RecursionError": _ELSEWHERE,  # botocore follows a redirect without a region for ever
}
"""By the code of an answer, or the name of an exception."""
_GENERAL = f"Check the URI, AWS_ENDPOINT_URL, and the credentials ({_KEYS})"


def service_code(error: BaseException) -> tuple[int, str] | None:
    """HTTP status and error code of what the server answered; None if it did not answer."""
    response = _response(error)
    if response is None:
        return None
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return int(status), str(response["Error"].get("Code", ""))


def _response(error: BaseException) -> dict[str, Any] | None:
    """Botocore's record of an answer; s3fs raises an OSError from the exception that has it."""
    current: BaseException | None = error
    while current is not None:
        response = getattr(current, "response", None)
        if isinstance(response, dict) and "Error" in response:
            return response
        current = current.__cause__
    return None


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later."""
    if isinstance(error, FoldtrainError):
        return False
    answer = service_code(error)
    if answer is not None:
        return answer[0] in _STATUSES or answer[1] in _CODES or answer[1] in map(str, _STATUSES)
    if isinstance(error, _FINAL):
        return False
    if isinstance(error, ConnectionError | TimeoutError) or _is_cut(error):
        return True
    return isinstance(error, OSError) and error.errno in _ERRNOS


def is_slow_down(error: BaseException) -> bool:
    """Whether the server asks for fewer requests."""
    answer = service_code(error)
    return answer is not None and (answer[0] in {429, 503} or answer[1] in _SLOW_DOWN)


def is_expired(error: BaseException, *, worked_before: bool) -> bool:
    """Whether the same request may succeed with credentials that are read anew.

    Where there were some before: a file of credentials that is being rewritten may have none for a moment, and keys
    that were rotated are unknown until it is.
    """
    answer = service_code(error)
    code = answer[1] if answer else type(error).__name__
    return code in _EXPIRED | _LOGIN_ENDED or (worked_before and code in _UNSET | _ROTATED)


def _is_cut(error: BaseException) -> bool:
    """Whether a connection could not be made or broke. botocore's and aiohttp's errors for that are no OSErrors."""
    botocore = sys.modules.get("botocore.exceptions")
    if botocore is not None and isinstance(error, botocore.ConnectionError | botocore.HTTPClientError):
        return True
    aiohttp = sys.modules.get("aiohttp")
    if aiohttp is not None and isinstance(error, aiohttp.ClientResponseError):
        return error.status in _STATUSES
    if aiohttp is not None and isinstance(error, aiohttp.ClientConnectionError):
        return True
    return type(error).__name__ in _NAMES


def explain(uri: str, error: Exception, waited: float | None) -> FoldtrainError | None:
    """A failure as it is told to the user; None for what the caller knows the meaning of, and for bugs.

    Args:
        uri: what was asked for.
        error: the last failure.
        waited: seconds for which it was tried again; None if it was not.
    """
    answer = service_code(error)
    missing_bucket = answer is not None and answer[1] == "NoSuchBucket"
    if isinstance(error, FoldtrainError) or not (_is_foreign(error) or missing_bucket):
        return None
    if isinstance(error, IsADirectoryError | NotADirectoryError):
        return NotAFileError(f"{uri}: {error}: give the place of a file")
    again = "" if waited is None else f", again and again for {waited:.0f} seconds"
    text = f"{uri}: {reason(error)}{again}. {_remedy(uri, error)}"
    if is_transient(error):
        return StorageAwayError(text)
    return UsageError(text) if missing_bucket else FoldtrainError(text)


def _is_foreign(error: Exception) -> bool:
    """Whether an exception comes from outside, and no caller asks for it."""
    if isinstance(error, FileNotFoundError | FileExistsError):
        return False
    kinds = (OSError, ValueError, ImportError, RecursionError, NotImplementedError)
    library = type(error).__module__.partition(".")[0]
    return isinstance(error, kinds) or library not in sys.stdlib_module_names | _OURS


def reason(error: BaseException) -> str:
    """The server's own words where it answered, with its code."""
    response, answer = _response(error), service_code(error)
    if isinstance(error, NotImplementedError):
        return "that storage cannot do this; it may be one that can only be read"
    if isinstance(error, TimeoutError) and not str(error):
        return "the server does not answer, or only a few bytes at a time"
    if isinstance(error, RecursionError):
        return "the server sends the request to another one, and does not say to which"
    if response is None or answer is None:
        return _plain(str(error) or type(error).__name__)
    said = _plain(str(response["Error"].get("Message") or error))
    return f"{said} ({', '.join(filter(None, (answer[1], f'HTTP {answer[0]}' if answer[0] else '')))})"


def _plain(text: str) -> str:
    """Text of a server in one line, without control characters."""
    return "".join(sign if sign.isprintable() else " " for sign in text)[:_LONGEST_REASON].strip()


def _remedy(uri: str, error: Exception) -> str:
    answer = service_code(error)
    code = answer[1] if answer else type(error).__name__
    if uri.partition("://")[0] not in S3:
        return "Check the URI, and the credentials of that storage"
    if answer is None and not is_transient(error) and "endpoint" in str(error).lower():
        variable = endpoint_variable()
        return f"Mend {variable[0] if variable else 'endpoint_url in ~/.aws/config'}: it is written http://host:port"
    region = _region(error) if _REMEDIES.get(code) == _ELSEWHERE else None
    if region:
        return f"The bucket is in the region {region}: set AWS_REGION={region}"
    return _REMEDIES.get(code) or (_REMEDIES.get(str(answer[0])) if answer else None) or _GENERAL


def _region(error: Exception) -> str | None:
    response = _response(error) or {}
    headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    found = headers.get("x-amz-bucket-region") or response.get("Error", {}).get("Region")
    region = _plain(str(found or ""))
    return region if region and region != os.environ.get("AWS_REGION") else None
