"""What a route costs before it is called: nothing of it is built, and it is built alone."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import routing
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from virtuary.api.routing import LateRoute, make_router
from virtuary.base.paths import Paths

sys.path.insert(0, str(Path(__file__).parent))  # test folders are no packages; these share a file
from service import Service, make_parts

WIDGETS = make_router("/v1/widgets", tags=["widgets"])


@WIDGETS.get("/{name}")
async def show_widget(name: str, size: int = 1) -> dict[str, int]:
    return {name: size}


def test_a_route_is_known_by_its_path_and_built_with_the_first_question() -> None:
    (route,) = WIDGETS.routes
    assert isinstance(route, LateRoute) and not route.built
    assert (route.path, route.methods) == ("/v1/widgets/{name}", {"GET"})
    assert route.path_regex.match("/v1/widgets/a") and not route.built
    with pytest.raises(AttributeError):
        _ = route.no_such_thing
    assert [field.name for field in route.dependant.query_params] == ["size"]
    assert route.built and (route.unique_id, route.tags) == ("show_widget", ["widgets"])


def test_no_file_is_parsed_for_the_line_of_a_function_that_nobody_is_told() -> None:
    (route,) = WIDGETS.routes
    assert isinstance(route, LateRoute) and route.dependant.call is show_widget
    assert routing._extract_endpoint_context(show_widget).get("line") is None


async def test_a_request_builds_its_own_route_only(paths: Paths) -> None:
    api = Service(make_parts(paths))
    routes = [route for route in _routes(api) if not route.built]
    assert (await api.call("GET", "/v1/vms/nobody")).status == 404
    assert {route.name for route in routes if route.built} <= {"show_vm"}


def test_nothing_of_a_request_is_done_in_a_thread(paths: Paths) -> None:
    """What is no coroutine the framework calls in a thread, which takes longer than most of it."""
    for route in _routes(Service(make_parts(paths))):
        assert [call for call in _calls(route) if not inspect.iscoroutinefunction(call)] == []


def _routes(api: Service) -> list[LateRoute]:
    found = [route for route in api.app.app.routes if isinstance(route, APIRoute)]
    assert len(found) > 50 and all(isinstance(route, LateRoute) for route in found)
    return [route for route in found if isinstance(route, LateRoute)]


def _calls(route: LateRoute) -> Iterator[object]:
    todo: list[Dependant] = [route.dependant]
    while todo:
        dependant = todo.pop()
        yield dependant.call
        todo += dependant.dependencies
