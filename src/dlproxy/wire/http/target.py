"""The path that a request's target means, in one spelling, so that routes need know no other (RFC 3986, section 6.2.2).

Called by oip/http.py and control/http.py. Not aware of: routes.
"""

import re
from reprlib import repr as brief  # bounds the length: the target is the client's
from urllib.parse import quote, unquote, unquote_to_bytes

from dlproxy.message import invalid

_AUTHORITY = re.compile(rb"[a-z][a-z0-9+.-]*://[^/?]*", re.IGNORECASE)  # as clients write it for a proxy
_NO_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


def path_of(target: bytes) -> str:
    """Without scheme, host, query, a slash at its end; whatever is no letter, digit, '-', '.', '_' or '~' is percent-encoded.

    A slash that came encoded is part of its segment, and stays so. Raises InferenceError(INVALID_ARGUMENT).
    """
    absolute = None if target.startswith(b"/") else _AUTHORITY.match(target)
    if absolute is not None:
        target = target[absolute.end() :]
    path = target.partition(b"?")[0] or b"/"
    if _NO_ESCAPE.search(path):
        shown = brief(path.decode("latin-1"))
        raise invalid(f"the path {shown} has a '%' that is not followed by two hexadecimal digits; write a literal '%' as %25")
    segments = [quote(unquote_to_bytes(segment), safe="") for segment in path.split(b"/")]
    if len(segments) > 2 and not segments[-1]:
        segments.pop()
    return "/".join(segments)


def name_in(segment: str) -> str:
    """The text that a segment of such a path stands for; bytes that are no UTF-8, which no name has, are shown escaped."""
    return unquote(segment, errors="backslashreplace")
