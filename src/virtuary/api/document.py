"""The OpenAPI document: what the routes declare, and by one rule the errors that each of them can
answer with.

An error is `application/problem+json` on every path, its kind in `code`; which kinds there are says
`base/errors.py`.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.models import RequestBody
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from virtuary.api.answers import Problem
from virtuary.api.problems import MEDIA
from virtuary.base.loads import HOURS
from virtuary.model.consolidation import ConsolidationWish
from virtuary.model.placement import PlacementWish

EVERYWHERE = {
    403: "Not allowed",
    415: "The body is no JSON",
    422: "Not understood",
    500: "Failed, or a defect",
    503: "Not reachable now",
}
NAMED = {404: "Not there"}
CHANGES = {409: "Not as things are", 501: "The host lacks something", 507: "No room"}
CONDITIONAL = {412: "It was changed meanwhile"}
GUESTS = {
    409: "Not as things are",
    501: "The host lacks something",
    502: "The guest's answer makes no sense",
    504: "The guest is silent",
}
GONE = {410: "The revision is no longer remembered"}
IN_GUESTS = ("/doctor", "/ssh", "/logs", "/exec", "/trim")
REFERENCE = {"$ref": "#/components/schemas/Problem"}
UNPARSED: dict[str, type[BaseModel]] = {
    "/v1/plans/consolidation": ConsolidationWish,
    "/v1/plans/placement": PlacementWish,
}
"""Bodies that are read by another process, so that their routes do not declare them."""


def describe(app: FastAPI) -> dict[str, Any]:
    """The document, made once."""
    if app.openapi_schema is None:
        found = get_openapi(
            title=app.title,
            version=app.version,
            routes=app.routes,
            separate_input_output_schemas=app.separate_input_output_schemas,
        )
        schemas = found["components"]["schemas"]
        problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(problem.pop("$defs"))
        schemas["Problem"] = problem
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        for path, model in UNPARSED.items():
            content = {"application/json": {"schema": _inlined(model)}}
            body = RequestBody.model_validate({"content": content, "required": True})
            told = body.model_dump(mode="json", by_alias=True, exclude_none=True)
            found["paths"][path]["post"]["requestBody"] = told
        for path, methods in found["paths"].items():
            for method, operation in methods.items():
                _tell_errors(path, method, operation)
        app.openapi_schema = _flowing(found)
    return app.openapi_schema


def _flowing(item: Any) -> Any:
    """The same document, each paragraph of its descriptions on one line. Pure."""
    if isinstance(item, list):
        return [_flowing(entry) for entry in item]
    if not isinstance(item, dict):
        return item
    return {
        key: "\n\n".join(" ".join(part.split()) for part in value.split("\n\n"))
        if key == "description" and isinstance(value, str)
        else _flowing(value)
        for key, value in item.items()
    }


def errors_of(path: str, method: str, operation: dict[str, Any]) -> dict[int, str]:
    """Status codes of the errors that an operation can answer with, and what each means. Pure."""
    named = {parameter["name"].lower() for parameter in operation.get("parameters", [])}
    errors = dict(EVERYWHERE)
    if "requestBody" not in operation:
        del errors[415]
    if "{" in path:
        errors |= NAMED
    if method != "get" or path in ("/v1/capacity", "/v1/firewall-test"):
        errors |= CHANGES | NAMED
    if "if-match" in named:
        errors |= CONDITIONAL
    if path.startswith("/v1/vms/{") and path.endswith(IN_GUESTS):
        errors |= GUESTS
    if path == "/v1/events":
        errors |= GONE
    return errors


def _inlined(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a model without references, for a body that the daemon does not parse.

    Lengths of long arrays are left to the descriptions: whoever makes up requests from the schema
    would make up megabytes.
    """
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})

    def resolve(part: Any) -> Any:
        if isinstance(part, dict):
            if name := str(part.get("$ref", "")).removeprefix("#/$defs/"):
                return resolve(definitions[name])
            return {
                key: resolve(value)
                for key, value in part.items()
                if key not in ("minItems", "maxItems") or value < HOURS
            }
        return [resolve(item) for item in part] if isinstance(part, list) else part

    found: dict[str, Any] = resolve(schema)
    return found


def _tell_errors(path: str, method: str, operation: dict[str, Any]) -> None:
    answers = operation["responses"]
    for status, words in errors_of(path, method, operation).items():
        answers[str(status)] = {"description": words, "content": {MEDIA: {"schema": REFERENCE}}}
