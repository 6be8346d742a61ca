"""A page of a listing, read at a tenth of the processor time that botocore's general parser takes for it.

Set in front of that parser (`before-parse`), which still reads every answer that is not exactly as expected.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any
from xml.etree import ElementTree


def parse_page(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any) -> None:
    """Read the body of a ListObjectsV2. A handler of botocore's event `before-parse`."""
    if response_dict["status_code"] != 200:
        return
    try:
        page = _page(ElementTree.fromstring(response_dict["body"]))  # noqa: S314 - it is what botocore reads XML by
    except (ElementTree.ParseError, KeyError, ValueError, TypeError):
        return
    customized_response_dict.update(page)
    response_dict["body"] = b""


def _page(root: ElementTree.Element) -> dict[str, Any]:
    page: dict[str, Any] = {"Contents": [], "CommonPrefixes": []}
    found = {name: element for name, element in _children(root) if name not in page}
    page["IsTruncated"] = {"true": True, "false": False}[(found["IsTruncated"].text or "").lower()]
    for name in ("NextContinuationToken", "EncodingType"):
        if name in found and found[name].text:
            page[name] = found[name].text
    for name, element in _children(root):
        if name == "Contents":
            entry: dict[str, Any] = {inside: part.text or "" for inside, part in _children(element) if not len(part)}
            size, modified = int(entry["Size"]), datetime.fromisoformat(entry["LastModified"])
            page[name].append({**entry, "Key": entry["Key"], "Size": size, "LastModified": modified})
        elif name == "CommonPrefixes":
            page[name].append({"Prefix": dict(_children(element))["Prefix"].text or ""})
    return {name: value for name, value in page.items() if value != []}


def _children(element: ElementTree.Element) -> Iterator[tuple[str, ElementTree.Element]]:
    """The elements below one, by their names without a namespace."""
    for child in element:
        yield child.tag.rpartition("}")[2], child
