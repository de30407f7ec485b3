"""When the change of a field takes effect while a server runs: said once, on the field itself.

What has no mark takes effect with the document: nobody but the host looks at it.
"""

from __future__ import annotations

from enum import Enum

from pydantic import BaseModel


class Applies(Enum):
    AT_ONCE = "at once, by the host"
    BY_GUEST = "while it runs, when its guest has taken or given it"
    AT_START = "at the next start"


def fields_that(model: type[BaseModel], when: Applies) -> tuple[str, ...]:
    """The fields of a model whose change takes effect then, in their order. Pure."""
    return tuple(name for name, field in model.model_fields.items() if when in field.metadata)
