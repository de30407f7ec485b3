"""Errors become RFC 9457 problem documents in one place; each answer carries the request's id."""

from __future__ import annotations

import json
import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from virtuary.base.errors import Bug, Invalid, NotFound, VirtuaryError, of_system
from virtuary.model.meta import invalid, sentence_of

logger = logging.getLogger("virtuary.api")
MEDIA = "application/problem+json"
MOST_FINDINGS = 100
"""Of what is wrong with a request, as many are told."""


def problem(error: VirtuaryError, request: Request, status: int | None = None) -> Response:
    body: dict[str, Any] = {
        **error.problem(),
        "instance": request.url.path,
        "request_id": request.state.request_id,
    }
    body["status"] = status or error.status
    return Response(json.dumps(body, default=str), status_code=body["status"], media_type=MEDIA)


def install(app: FastAPI) -> None:
    """Translate every kind of error the application can meet."""

    @app.exception_handler(VirtuaryError)
    async def on_kind(request: Request, error: VirtuaryError) -> Response:
        return problem(error, request)

    @app.exception_handler(OSError)
    async def on_system(request: Request, error: OSError) -> Response:
        return problem(of_system(error), request)

    @app.exception_handler(RequestValidationError)
    async def on_request(request: Request, error: RequestValidationError) -> Response:
        findings = [
            {
                "pointer": "/" + "/".join(str(part) for part in item["loc"][1:]),
                "detail": sentence_of(item),
            }
            for item in error.errors()[:MOST_FINDINGS]
        ]
        words = "; ".join(
            f"{finding['pointer'].strip('/') or 'the body'}: {finding['detail']}"
            for finding in findings[:5]
        )
        return problem(Invalid(words, errors=findings), request)

    @app.exception_handler(ValidationError)
    async def on_model(request: Request, error: ValidationError) -> Response:
        return problem(invalid(error), request)

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> Response:
        if error.status_code == 400:  # all that is left for it: the framework's own parser
            return problem(Invalid("the request body is no JSON text in UTF-8"), request)
        kind = NotFound if error.status_code == 404 else Invalid
        response = problem(kind(str(error.detail)), request, error.status_code)
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def on_defect(request: Request, error: Exception) -> Response:
        logger.exception("a defect in %s %s", request.method, request.url.path, exc_info=error)
        return problem(Bug("the daemon met a defect; its log tells more"), request)
