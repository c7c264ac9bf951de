"""Secrets never reach a screen: passwords in URLs and tokens in webhooks are masked."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

__all__ = ["mask_text", "mask_url"]

_PASSWORD = re.compile(r"(?P<head>[a-z][\w+.-]*://[^/\s:@]*):(?P<secret>\S+)@", re.IGNORECASE)
_QUERY_SECRET = re.compile(r"(?P<key>[?&](?:password|passwd|token|secret|sslpassword)=)[^&\s]+", re.IGNORECASE)


def mask_text(text: str) -> str:
    """``text`` with every password of a URL in it replaced by ``***``."""
    return _QUERY_SECRET.sub(r"\g<key>***", _PASSWORD.sub(r"\g<head>:***@", text))


def mask_url(url: str) -> str:
    """A webhook's URL with all after the host hidden: its path usually is the secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}/***"
