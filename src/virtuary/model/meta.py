"""What every document has: an identity, a name, labels, revision and generation."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
)

from virtuary.base.errors import Invalid
from virtuary.base.units import MIB, format_size
from virtuary.model import keys, unknown
from virtuary.model.upgrade import as_now

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_IMAGE_NAME = re.compile(
    r"[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?(?::[a-z0-9](?:[a-z0-9._-]{0,30}[a-z0-9])?)?"
)
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9./_-]{0,61}[a-z0-9])?")


def check_name(text: str) -> str:
    """A server's or host's name: 1-63 of a-z, 0-9 and inner dashes; compared in lower case. Raises
    ValueError.
    """
    name = text.strip().lower()
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{text[:80]!r} is not a valid name: use 1 to 63 letters, digits and inner dashes, "
            "for example web1"
        )
    return name


def check_image_name(text: str) -> str:
    """An image's name: like a server's, with dots, and at most one `:tag`. Raises ValueError."""
    name = text.strip().lower()
    if not _IMAGE_NAME.fullmatch(name):
        raise ValueError(
            f"{text[:80]!r} is not a valid image name: write NAME or NAME:TAG, for example "
            "debian:12"
        )
    return name


def _check_labels(labels: dict[str, str]) -> dict[str, str]:
    if len(labels) > 64:
        raise ValueError("at most 64 labels are allowed")
    for key, value in labels.items():
        if not _LABEL.fullmatch(key):
            raise ValueError(
                f"{key[:80]!r} is not a valid label: use lower-case letters, digits and . / _ -"
            )
        if len(value) > 256 or not value.isprintable():
            raise ValueError(
                f"the value of label {key!r} must be printable and at most 256 characters long"
            )
    return labels


Name = Annotated[str, AfterValidator(check_name)]
ImageName = Annotated[str, AfterValidator(check_image_name)]
Labels = Annotated[dict[str, str], AfterValidator(_check_labels)]


def utcnow() -> datetime:
    return datetime.now(UTC)


def new_id() -> str:
    return str(uuid.uuid4())


class Model(BaseModel):
    """Frozen; fields that are not known are refused, but where something kept is read
    (`model/unknown.py`). What validates it is built with the first one there is.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", ser_json_timedelta="float", defer_build=True
    )

    def but(self, **changes: Any) -> Self:
        """A copy with some fields changed, validated; what is not known of it stays."""
        own = {name: getattr(self, name) for name in self.__class__.model_fields}
        return unknown.carry(self, self.model_validate({**own, **changes}))

    @classmethod
    def from_body(cls, body: Any) -> Self:
        """What another Virtuary wrote, perhaps a newer one: fields that are not known here are
        kept. Raises ValidationError.
        """
        return unknown.read(cls, body)

    def body(self) -> dict[str, Any]:
        """As JSON, with what is not known of it."""
        found = self.model_dump(mode="json")
        unknown.weave(self, found)
        return found

    def overlaid(self, change: Model, leave: Collection[str] = (), **instead: Any) -> Self:
        """The same with what a change says, validated as a whole: what it leaves out stays, parts
        are changed by their parts, those of a list by their `number`; what is not known of it
        stays.

        `leave`: fields of the change that are somebody else's. `instead`: fields with these values.
        A field that is null as a whole is left out; a part that is null is taken away. Raises
        pydantic's ValidationError, with places as the change has them.
        """
        given = {
            name: value
            for name, value in change.model_dump(exclude_unset=True).items()
            if name not in leave and name not in instead and value is not None
        }
        return self.from_body(_merged(self.body(), given) | instead)


def _merged(before: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    merged = dict(before)
    for name, value in given.items():
        had = before.get(name)
        if isinstance(value, dict) and isinstance(had, dict):
            merged[name] = _merged(had, value)
        elif _numbered(had) and isinstance(value, (list, tuple)):
            merged[name] = _merged_by_number(had, value)
        else:
            merged[name] = value
    return merged


def _numbered(value: Any) -> bool:
    parts = value if isinstance(value, (list, tuple)) else ()
    return bool(parts) and all(isinstance(item, dict) and "number" in item for item in parts)


def _merged_by_number(had: Any, given: Any) -> list[dict[str, Any]]:
    changes = {item.get("number", 0): item for item in given}
    if unknown := set(changes) - {item["number"] for item in had}:
        raise Invalid(f"there is no number {min(unknown)} to change")
    return [_merged(item, changes.get(item["number"], {})) for item in had]


def alone(field: str) -> BeforeValidator:
    """Lets a noun be written as its main value alone: `"memory": 1073741824` is
    `"memory": {"size": 1073741824}`.
    """

    def whole(value: Any) -> Any:
        return {field: value} if isinstance(value, (int, float, str)) else value

    return BeforeValidator(whole)


class Meta(Model):
    id: str = Field(default_factory=new_id)
    name: str
    labels: Labels = Field(default_factory=dict)
    created: datetime = Field(default_factory=utcnow)
    generation: int = 1
    """Counts changes of the spec; status.power.applied names the one that is in force."""
    deleted: datetime | None = None
    """Set while the document lies in the trash."""
    purge: bool = False
    """Set once the deletion is final; the worker removes everything, then the document."""
    revision: int = 0
    """The store's revision of the last write; never stored itself, it is the ETag."""


class Document(Model):
    """A noun with its identity. `prefix` is its place in the store."""

    prefix: ClassVar[str]
    local: ClassVar[tuple[str, ...]] = ()
    """Fields of its status that are true of one host only: kept apart for each host."""
    meta: Meta

    @classmethod
    def key_of(cls, identity: str) -> str:
        """The key of the document with this id."""
        return keys.key_of(cls.prefix, identity)

    @classmethod
    def place(cls) -> str:
        """What the keys of all documents of this kind begin with, and no other ones."""
        return cls.key_of("")

    @classmethod
    def name_key(cls, name: str) -> str:
        """The key under which the id of whoever has this name is kept: what makes names unique."""
        return f"{cls.prefix}-name/{name}"

    @property
    def key(self) -> str:
        return self.key_of(self.meta.id)

    @property
    def named(self) -> str:
        """The key of its name."""
        return self.name_key(self.meta.name)

    @property
    def name(self) -> str:
        return self.meta.name

    @property
    def id(self) -> str:
        return self.meta.id

    def seen(self, **changes: Any) -> Self:
        """The same document with other fields of its status, validated."""
        return self.but(status=getattr(self, "status").but(**changes))  # noqa: B009  (each kind's)

    def dump(self) -> bytes:
        """The bytes the store keeps; the revision is the store's own and left out."""
        body = self.body()
        body["meta"].pop("revision")
        return text_of(body)

    @classmethod
    def load(cls, value: bytes, revision: int, here: bytes | None = None) -> Self:
        """The document as any version wrote it: an older one's in today's format, and a newer one's
        with all that is not known here, which `dump` gives back. `here`: what this host has of it.
        """
        body = as_now(cls.prefix, json.loads(value))
        if here:
            body["status"] = body.get("status", {}) | json.loads(here)
        body["meta"]["revision"] = revision
        return cls.from_body(body)


def text_of(body: Any) -> bytes:
    """JSON as it is kept."""
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()


def invalid(error: ValidationError) -> Invalid:
    """The `Invalid` that tells all findings of a validation at once, each with its JSON pointer."""
    findings = [
        {"pointer": "/" + "/".join(str(part) for part in item["loc"]), "detail": sentence_of(item)}
        for item in error.errors()
    ]
    sentence = "; ".join(_line(finding) for finding in findings[:5])
    return Invalid(sentence, errors=findings)


def _line(finding: dict[str, str]) -> str:
    where = finding["pointer"].strip("/").replace("/", ".")
    return f"{where}: {finding['detail']}" if where else finding["detail"]


_SAID = {
    "missing": "is missing",
    "extra_forbidden": "is not known here",
    "string_pattern_mismatch": "is not written as it has to be ({pattern})",
    "string_too_long": "may have at most {max_length} characters",
    "string_too_short": "must have at least {min_length} characters",
    "too_long": "may hold at most {max_length} parts",
    "too_short": "must hold at least {min_length} parts",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "multiple_of": "must be a multiple of {multiple_of}",
    "literal_error": "must be one of {expected}",
    "enum": "must be one of {expected}",
    "finite_number": "must be a number that is not endless",
    "json_invalid": "is no JSON text",
    "none_required": "must be left out",
    "frozen_field": "can't be changed",
}
_KINDS = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "string": "a text",
    "list": "a list", "tuple": "a list", "set": "a list",
    "dict": "an object", "model": "an object", "datetime": "a time (RFC 3339)", "date": "a date",
    "bytes": "a text", "dataclass": "an object",
}  # fmt: skip


def sentence_of(finding: Mapping[str, Any]) -> str:
    """What is wrong with a field, in our words: of one of pydantic's findings. Pure."""
    kind, context = str(finding["type"]), dict(finding.get("ctx") or {})
    if said := _SAID.get(kind):
        field = ".".join(map(str, finding.get("loc") or ()))
        return said.format_map({key: _amount(field, value) for key, value in context.items()})
    if kind == "value_error":
        return str(finding["msg"]).removeprefix("Value error, ")
    wanted = _KINDS.get(kind.partition("_")[0])
    return f"must be {wanted}" if wanted else str(finding["msg"]).removeprefix("Value error, ")


def _amount(field: str, value: object) -> str:
    sized = (
        any(word in field for word in ("memory", "disk", "size", "bandwidth"))
        and isinstance(value, int)
        and value >= MIB
    )
    return format_size(value) if sized and isinstance(value, int) else str(value)
