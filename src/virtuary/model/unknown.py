"""Fields that are not known here, of documents and answers that a newer Virtuary wrote: they are
kept where they were found, at any depth, and written back with what changed.

Whatever a user sends is held to the fields there are: this is for what is read.
"""

from __future__ import annotations

from functools import cache
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

M = TypeVar("M", bound=BaseModel)


def read(kind: type[M], body: Any) -> M:
    """A model of what was written elsewhere. Raises ValidationError for what is not to be
    understood, but not for what is not known.
    """
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        if all(finding["type"] != "extra_forbidden" for finding in error.errors()):
            raise
    found = kind.model_validate(body, extra="allow")
    _settle(found)
    return found


def carry(source: BaseModel, made: M) -> M:
    """What was made of `source`, with the fields of it that are not known."""
    if source.__pydantic_extra__:
        object.__setattr__(made, "__pydantic_extra__", source.__pydantic_extra__)
    return made


def weave(value: object, body: Any) -> None:
    """Put what is kept of unknown fields into the JSON of a model, which goes without them."""
    if isinstance(value, BaseModel):
        for name in _parts(type(value)):
            if item := getattr(value, name):
                weave(item, body[name])
        if value.__pydantic_extra__:
            body.update(value.__pydantic_extra__)
    elif isinstance(value, tuple):
        for item, part in zip(value, body, strict=True):
            weave(item, part)
    elif isinstance(value, dict):
        for item, part in zip(value.values(), body.values(), strict=True):
            weave(item, part)


@cache
def _parts(kind: type[BaseModel]) -> tuple[str, ...]:
    """The fields of a kind that can hold models."""
    fields = kind.model_fields.items()
    return tuple(name for name, field in fields if _holds_models(field.annotation))


def _holds_models(annotation: Any) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return True
    return any(map(_holds_models, get_args(annotation)))


def _settle(value: object) -> None:
    """Have models without unknown fields equal those that never looked for any."""
    if isinstance(value, BaseModel):
        if not value.__pydantic_extra__:
            object.__setattr__(value, "__pydantic_extra__", None)
        for item in value.__dict__.values():
            _settle(item)
    elif isinstance(value, tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            _settle(item)
