"""Passwords in URLs: they are for whoever reads the command line, not for files and tables that are passed on."""

import re
from typing import Any

MASK = "***"
USER_INFO = re.compile(r"(://[^:@/\s'\"]*):[^@\s'\"]+@")
"""`scheme://user:password@`, as SQLAlchemy reads it: a password ends at the first @."""
QUERY = re.compile(r"([?&](?:password|passwd|pwd|token|api_?key|secret|sslpassword)=)[^&\s'\"]+", re.IGNORECASE)


def without_password(text: str) -> str:
    """`text` with `***` for the password of every URL in it."""
    return QUERY.sub(rf"\1{MASK}", USER_INFO.sub(rf"\1:{MASK}@", text))


def masked(value: Any) -> Any:
    """Nested plain containers with `without_password` of every string in them."""
    if isinstance(value, dict):
        return {key: masked(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [masked(item) for item in value]
    return without_password(value) if isinstance(value, str) else value
