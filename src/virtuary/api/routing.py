"""Routes that are built when they are called first.

For each route FastAPI reads its function's parameters and builds a validator for each of them and
for the answers. All routes together would take a third of the daemon's start, and a daemon that
comes back after a crash is waited for. Until a route is called, or described, only its path and
its methods are known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, routing
from fastapi.routing import APIRoute
from starlette.routing import compile_path

_ENDPOINTS: dict[int, Any] = getattr(routing, "_endpoint_context_cache", {})
"""Where FastAPI remembers the line at which a function is defined, for messages that we do not
show. To find it the whole file is parsed; so it is said to be known.
"""


class LateRoute(APIRoute):
    """Whatever else than these is asked of a route builds it: its body is read by its `app`, its
    parameters and answers are in the document.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **declared: Any) -> None:
        self._declared = declared
        self.path, self.endpoint = path, endpoint
        self.methods = set(declared["methods"])
        self.max_body_size = declared["max_body_size"]
        self.path_regex, self.path_format, self.param_convertors = compile_path(path)

    def __getattr__(self, name: str) -> Any:
        """Called for what is not there yet."""
        declared = self.__dict__.pop("_declared", None)
        if declared is None or name.startswith("__"):
            raise AttributeError(name)
        super().__init__(self.path, self.endpoint, **declared)
        _ENDPOINTS[id(self.endpoint)] = {}
        return getattr(self, name)

    @property
    def built(self) -> bool:
        return "_declared" not in self.__dict__


def make_router(prefix: str = "", *, tags: list[str]) -> APIRouter:
    """A router of late routes. A generated client calls each by its function's name."""
    return APIRouter(
        prefix=prefix,
        tags=[*tags],
        route_class=LateRoute,
        generate_unique_id_function=lambda route: route.name,
    )
