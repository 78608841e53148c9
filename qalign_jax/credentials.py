"""Passwords and tokens in texts: refused in a recipe, which a run records, hidden in messages."""

import re

# user:password@ and ?token=... of a URL, and tokens that are told by how they begin
_SECRET = re.compile(
    r"(://)[^/\s@:]+:[^/\s@]+(?=@)"
    r"|([?&;][\w.-]*(?:token|key|secret|signature|sig|credential|password|passwd)=)[^&\s'\"]+"
    r"|\b(hf_|ghp_|github_pat_|AKIA|AIza|sk-)[A-Za-z0-9_]{16,}",
    re.IGNORECASE,
)
_KEY = re.compile(r"(password|passwd|secret|api_?key|(auth|access|hf)_?token)$", re.IGNORECASE)


def hidden(text: str) -> str:
    """The text with *** in the place of passwords and tokens."""
    return _SECRET.sub(lambda match: "".join(filter(None, match.groups())) + "***", text)


def are_in(key: str, text: str) -> bool:
    """Whether a text, the value of a recipe's key, is a password or a token, or holds one."""
    return bool(text) and (hidden(text) != text or _KEY.search(key) is not None)
