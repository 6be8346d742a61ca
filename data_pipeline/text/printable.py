"""Text from storage as it may stand in a terminal or a log: what is no visible character is spelt out.

A class name, a key or a message of a server may hold control characters, an escape sequence that moves the cursor, sets
the window's title or copies to the clipboard (OSC 52), a line feed that begins a line of its own, or an override of the
direction of writing that shows a name as another one.
"""

from __future__ import annotations

import re

# C0 and C1 controls and DEL; ends of lines and paragraphs; marks, embeddings, overrides and isolates of direction;
# the byte order mark; interlinear annotation; halves of surrogate pairs. Joiners stay: Indic names need them.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]")
_UNSEEN_BUT_LINES = re.compile(_UNSEEN.pattern.replace("\x00-\x1f", "\x00-\x09\x0b-\x1f"))


def printable(text: str, *, lines: bool = False) -> str:
    r"""The text with \uXXXX in place of each character that is none to be seen. JSON stays the same JSON by it.

    Args:
        text: from anywhere.
        lines: leave line feeds.
    """
    if text.isascii() and text.isprintable():
        return text
    return (_UNSEEN_BUT_LINES if lines else _UNSEEN).sub(lambda match: f"\\u{ord(match[0]):04x}", text)
