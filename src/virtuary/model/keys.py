"""Keys of documents: the place of their kind, and their id. Needs nothing, so that the command line
starts without the documents.
"""

from __future__ import annotations


def key_of(prefix: str, identity: str) -> str:
    """The key of the document of a kind with this id."""
    return f"{prefix}/{identity}"


def kind_of(key: str) -> str:
    """The prefix of the kind whose document has this key."""
    return key.partition("/")[0]


def id_of(key: str) -> str:
    """The id of the document that has this key."""
    return key.partition("/")[2]
