"""The type of every path and URI in a config: checked, and spelt in one way, when the config loads.

A place is a path of this machine, or a URI that fsspec opens (s3://bucket/folder). `~` becomes the home folder,
`file:///x` the path /x, `S3://` becomes `s3://`, and a slash at the end goes. Everything else that looks like something
other than what it would be taken for is refused, with the way to write it: `s3:/x` would be a folder called `s3:`.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import AfterValidator

from data_pipeline.errors import UsageError
from data_pipeline.storage import uris
from model.config.section import LOCAL_FILE

EMBEDDED = "embedded:"
"""How the names of files begin that come with foldtrain."""
LONGEST_PART, LONGEST_PATH, LONGEST_KEY = 255, 4095, 1024
"""Most bytes of one name of a path, of a path of this machine, and of a key on S3."""
LONGEST_BELOW = 200
"""Most bytes of the names that a stage makes below a folder that it is given."""

_S3 = frozenset({"s3", "s3a"})
_READ_ONLY = frozenset({"http", "https", "github", "git"})
_WRAPPERS = frozenset(
    {"local", "dir", "data", "reference", "zip", "tar", "libarchive", "generic", "asyncwrapper", "jlab", "jupyter"}
    | {"blockcache", "filecache", "simplecache", "cached"}
)
"""What fsspec knows that is no storage by itself."""
_SAME = {"abfss": "abfs"}
"""Schemes that a package adds to fsspec once it is installed, and one of the same package that fsspec knows."""
_URLS = frozenset({"http", "https"})
"""Schemes of addresses, in which an empty name or a query may stand."""
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_TEMPLATE = re.compile(r"\{\{(?!.*\.\.)[^{},]*\}\}|\{%.*?%\}")
_VARIABLE = re.compile(r"\$\{[^}]*\}?|\$\([^)]*\)?|(?:^|(?<=/))\$[A-Za-z_]\w*")
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_CHAIN = re.compile(r"(?:^\w+|)::(?:\w+)://")
_PASSWORD = re.compile(r"[^/@]*:[^/@]*@")


@dataclass(frozen=True)
class PlaceRules:
    """Which places a field takes. Called with a text, it gives the place in its one spelling.

    Raises:
        ValueError: if the text is no place, or none for this field; it says how to write it.
    """

    written: bool = False
    """Whether something is put there."""
    local: bool = False
    """Whether it has to be on this machine's disk."""
    embedded: bool = False
    """Whether it may be a file that comes with foldtrain."""

    def __call__(self, text: str) -> str:
        """The place."""
        _check_text(text)
        if self.embedded and text.startswith(EMBEDDED):
            return text
        if _CHAIN.search(text):
            raise ValueError(f"{text}: storage inside other storage is not read; give the place itself")
        scheme, rest = uris.split_scheme(text)
        if scheme is None:
            return self._local(text)
        if scheme == "file":
            return self._local(_path_of_file_uri(text, rest))
        if self.local:
            raise ValueError(f"{text} is not on this machine: give a folder of its disk")
        return self._remote(scheme, rest)

    def _local(self, text: str) -> str:
        path = _expanded(text) if text.startswith("~") else text
        path = re.sub("/{2,}", "/", path)
        path = path.rstrip("/") or "/"
        _check_length(path, LONGEST_PATH - (LONGEST_BELOW if self.written else 0), "a path")
        return path

    def _remote(self, scheme: str, rest: str) -> str:
        if _PASSWORD.match(rest):
            raise ValueError(
                f"this {scheme}:// URI holds a user's name and password, which the run's config.yaml would keep; give "
                "them in the environment"
            )
        if self.written and scheme in _READ_ONLY:
            raise ValueError(f"{scheme}://{rest} can only be read, and this is written to: give s3://… or a folder")
        require_package(scheme)
        bucket, _, key = rest.partition("/")
        if scheme in _URLS and bucket:
            return f"{scheme}://{rest}"
        key = key.rstrip("/")
        _check_bucket(scheme, bucket, rest)
        _check_key(f"{scheme}://{bucket}", key)
        if scheme in _S3:
            _check_length(key, LONGEST_KEY - (LONGEST_BELOW if self.written else 0), "a key on S3", part=LONGEST_KEY)
        return f"{scheme}://{bucket}/{key}" if key else f"{scheme}://{bucket}"


def require_package(scheme: str) -> None:
    """Make sure that there is a filesystem for URIs of this scheme.

    Raises:
        ValueError: if fsspec knows none, or its package is not installed; it names the package.
    """
    if scheme in _S3 and importlib.util.find_spec("s3fs"):
        return
    from fsspec.registry import get_filesystem_class, known_implementations

    if scheme not in known_implementations:
        scheme = _SAME.get(scheme, scheme)
    if scheme not in known_implementations or scheme in _WRAPPERS:
        raise ValueError(
            f"{scheme}:// is no kind of storage that is known here: give s3://bucket/folder, or a path; a folder of "
            f"that name is written ./{scheme}:/…"
        )
    try:
        get_filesystem_class(scheme)
    except ImportError as error:
        known = known_implementations[scheme]
        module = str(known["class"]).partition(".")[0]
        named = re.search(r'requires "(\w+)"', f"{known.get('err', '')} {error}")
        package = module if module != "fsspec" else named[1] if named else f"fsspec[{scheme}]"
        raise ValueError(f"{scheme}:// needs a package that is not installed: pip install '{package}'") from None


def _check_text(text: str) -> None:
    """Refuse what is nothing, cannot be printed or stored, or was meant for another program to fill in."""
    if not text.strip():
        raise ValueError("is empty: give a path, or a URI such as s3://bucket/folder")
    if found := _UNPRINTABLE.search(text):
        raise ValueError(f"{text!r} holds the control character {found[0]!r}: take it out")
    if text != text.strip():
        raise ValueError(f"{text!r} begins or ends with a blank: take it out")
    if not is_utf8(text):
        raise ValueError(f"{text!r} is not UTF-8, and could not be written into the run's config.yaml: rename it")
    if found := _TEMPLATE.search(text):
        raise ValueError(f"{text} holds {found[0]}, a template that nothing has filled in: write the value itself")
    if found := _VARIABLE.search(text):
        name = found[0].strip("${}()")
        raise ValueError(
            f"{text} holds {found[0]}, and a config is taken as it is written: let the shell fill it in with an "
            f'override in double quotes, KEY="${name}/…", or write the value itself'
        )


def is_utf8(text: str) -> bool:
    """Whether a text can be written: arguments hold bytes that are no UTF-8 as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _path_of_file_uri(text: str, rest: str) -> str:
    path = rest.removeprefix("localhost")
    if not path.startswith("/"):
        raise ValueError(f"{text} names a machine where file:// has none: write file:///{rest}, or the path alone")
    return path


def _expanded(text: str) -> str:
    """A path whose first part is ~ or ~user."""
    try:
        path = str(Path(text).expanduser())
    except RuntimeError:
        path = text
    if not path.startswith("/"):
        user = text.partition("/")[0]
        raise ValueError(f"{text}: there is no home folder {user}; a folder of that name is written ./{text}")
    return path


def _check_bucket(scheme: str, bucket: str, rest: str) -> None:
    if not bucket:
        what = "host" if scheme in _URLS else "bucket"
        raise ValueError(f"{scheme}://{rest} names no {what}: write {scheme}://{what}/{rest.strip('/') or 'folder'}")
    if scheme in _S3 and not _BUCKET.fullmatch(bucket) and not bucket.startswith("arn:"):
        raise ValueError(
            f"{bucket!r} is no name of a bucket: write {scheme}://bucket/folder, with letters, digits, . - _"
        )


def _check_key(bucket: str, key: str) -> None:
    parts = key.split("/") if key else []
    if "" in parts:
        whole = "/".join([bucket, *filter(None, parts)])
        raise ValueError(f"{bucket}/{key} has an empty name between two slashes, which is a place of its own: {whole}?")
    if odd := {".", ".."}.intersection(parts):
        raise ValueError(f"{bucket}/{key}: {min(odd)} has no meaning in a bucket; write the folder itself")


def _check_length(path: str, most: int, kind: str, part: int = LONGEST_PART) -> None:
    if "{" in path:
        return  # a pattern, which stands for names that are shorter
    longest = max(path.split("/"), key=lambda name: len(name.encode()))
    if len(longest.encode()) > part:
        raise ValueError(f"a name of {len(longest.encode())} bytes ({longest[:40]}…): at most {part} are possible")
    if len(path.encode()) > most:
        raise ValueError(f"{kind} of {len(path.encode())} bytes ({path[:40]}…): at most {most} are possible here")


INPUT, OUTPUT = PlaceRules(), PlaceRules(written=True)

InputPlace = Annotated[str, AfterValidator(INPUT)]
"""Something that is read."""
PackagedPlace = Annotated[str, AfterValidator(PlaceRules(embedded=True))]
"""Something that is read; `embedded:` names a file that comes with foldtrain."""
OutputPlace = Annotated[str, AfterValidator(OUTPUT)]
"""A folder that is written to."""
DiskPlace = Annotated[str, AfterValidator(PlaceRules(written=True, local=True))]
"""A folder on this machine's disk."""


def rules_of(annotation: Any, metadata: tuple[Any, ...] | list[Any] = ()) -> PlaceRules | None:
    """The rules of a field that is a place, by its annotation and pydantic's metadata of it; None for other fields."""
    for found in metadata:
        if isinstance(found, AfterValidator) and isinstance(found.func, PlaceRules):
            return found.func
    if LOCAL_FILE in metadata:
        return PlaceRules(local=True)
    nested = (rules_of(part, getattr(part, "__metadata__", ())) for part in get_args(annotation))
    return next((rules for rules in nested if rules), None)


def place(text: str, rules: PlaceRules = INPUT) -> str:
    """A place that was named outside a config: in an argument, or by a file.

    Raises:
        UsageError: if it is none; it says how to write it.
    """
    try:
        return rules(text)
    except ValueError as error:
        raise UsageError(str(error) if text and text in str(error) else f"{text!r}: {error}") from None
