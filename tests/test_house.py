"""The house rules, held against the source itself: who may import whom, what starts fast, what is
never written.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

import virtuary
from virtuary.cli.main import COMMANDS, group

SOURCE = Path(virtuary.__file__).parent
FILES = sorted(path for path in SOURCE.rglob("*.py"))
NAMES = [str(path.relative_to(SOURCE)) for path in FILES]

ROOMS = {
    "base": "",
    "model": "base",
    "store": "base model",
    "jail": "base",
    # the mechanisms do not know the store, nor each other but for what they stand on
    "qemu": "base model jail",
    "storage": "base model jail qemu",  # QEMU's block layer, in the jail
    "images": "base model jail storage",  # as qcow2 files, by that layer
    "network": "base model",
    "guest": "base model",
    "host": "base model",
    "planning": "base model",  # pure arithmetic, in a process of its own
    "actions": "base model store",
    "node": "base model store jail qemu storage images network guest host",
    "api": "base model store actions planning node.touch",  # and of the host what is to be touched
    "client": "base model",
    "cli": "base model client",  # the command line proves that the API suffices
}
# they stand above the rooms and wire them
ABOVE = ("daemon.py", "settings.py", "__main__.py", "__init__.py")
ALLOWED = {
    ("api/capacity.py", "virtuary.node.site"): "a touch: the host's figures",
    ("api/deps.py", "virtuary.node.node"): "the type of what the daemon lends",
    ("cli/service.py", "virtuary.daemon"): "the command that is the daemon",
}


@cache
def trees() -> list[tuple[str, ast.Module]]:
    return [
        (name, ast.parse(path.read_text(encoding="utf-8")))
        for path, name in zip(FILES, NAMES, strict=True)
    ]


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Every call with the last word of what is called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                yield node.func.id, node
            elif isinstance(node.func, ast.Attribute):
                yield node.func.attr, node


def imports(tree: ast.AST) -> Iterator[str]:
    """Modules of ours that are imported; `from virtuary.node import x` counts as
    `virtuary.node`.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("virtuary."))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if node.module and node.module.startswith("virtuary."):
                yield node.module
            elif node.module == "virtuary":
                yield from (
                    f"virtuary.{alias.name}"
                    for alias in node.names
                    if not alias.name.startswith("__")
                )


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_stands_on_its_line(room: str) -> None:
    wrong = []
    for name, tree in trees():
        if not name.startswith(f"{room}/"):
            continue
        for module in imports(tree):
            words = module.split(".")
            allowed = {words[1], ".".join(words[1:3])} & {room, *ROOMS[room].split()}
            if not allowed and (name, module) not in ALLOWED:
                wrong.append(f"{name} imports {module}")
    assert not wrong


KEYS = re.compile(
    r"(vm|image|network|template|operation|firewall|host|secret|idempotency|turn)(-name)?/"
)
OWNERS = {
    ("store/api.py", "secret/"): "what is under it the store treats in another way",
    ("store/marks.py", "idempotency/"): "the kind that owns it",
    ("actions/context.py", "turn/"): "the kind that owns it",
}


def test_a_key_of_the_store_is_spelled_by_the_kind_that_owns_it_alone() -> None:
    spelled = {
        (name, node.value)
        for name, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and KEYS.match(node.value)
        and " " not in node.value
    }
    assert spelled == set(OWNERS)


def test_every_file_lies_in_a_room() -> None:
    assert {name for name in NAMES if name.split("/")[0] not in ROOMS} == set(ABOVE)


def test_every_exception_from_the_table_is_still_needed() -> None:
    real = {(name, module) for name, tree in trees() for module in imports(tree)}
    assert set(ALLOWED) <= real


@pytest.mark.parametrize("name", ["jail/launcher.py", "images/fetcher.py"])
def test_programs_of_their_own_need_nothing_but_the_standard_library(name: str) -> None:
    tree = ast.parse((SOURCE / name).read_text())
    modules = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    modules |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {module.split(".")[0] for module in modules} <= sys.stdlib_module_names


def test_devices_and_platforms_are_described_without_touching_the_world() -> None:
    """Values in, values out: what they may import is what can't open, ask or wait."""
    pure = {"__future__", "abc", "collections.abc", "dataclasses", "pathlib", "typing"}
    ours = ("base.units", "model", "qemu.parts", "qemu.platforms", "qemu.devices")
    wrong = [
        f"{name} imports {module}"
        for name, tree in trees()
        if name.startswith(("qemu/devices/", "qemu/platforms/"))
        for module in every_import(tree)
        if module not in pure and not module.startswith(tuple(f"virtuary.{one}" for one in ours))
    ]
    assert not wrong


def every_import(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_no_files_import_each_other_in_a_circle() -> None:
    """For types neither: what two need stands below both."""
    graph = {name: targets(tree) & set(NAMES) - {name} for name, tree in trees()}

    def reached(name: str) -> set[str]:
        found, todo = set[str](), list(graph[name])
        while todo:
            if (one := todo.pop()) not in found:
                found.add(one)
                todo += graph[one]
        return found

    assert not [name for name in graph if name in reached(name)]


def test_the_folders_of_the_host_stand_above_each_other() -> None:
    """A capability may use another one, and none that uses it in turn."""
    graph: dict[str, set[str]] = {}
    for name, tree in trees():
        if name.startswith("node/"):
            found = {place(target) for target in targets(tree) & set(NAMES)}
            graph.setdefault(place(name), set()).update(
                target for target in found if target.startswith("node/")
            )
    for name, found in graph.items():
        found.discard(name)
        todo, reached = list(found), set[str]()
        while todo:
            if (one := todo.pop()) not in reached:
                reached.add(one)
                todo += graph.get(one, ())
        assert name not in reached, f"{name} stands above and below itself"


def place(name: str) -> str:
    """The folder of a file of the host's, or the file where it lies in none."""
    return "/".join(name.split("/")[:2])


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("/plan.py")])
def test_what_decides_has_few_branches(name: str) -> None:
    tree = ast.parse((SOURCE / name).read_text())
    many = {
        function.name: branches(function)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef) and branches(function) > 12
    }
    assert not many


def branches(function: ast.FunctionDef) -> int:
    """How many decisions are in a function."""
    kinds = (ast.If, ast.IfExp, ast.For, ast.While, ast.comprehension, ast.match_case)
    found = sum(isinstance(node, kinds) for node in ast.walk(function))
    return found + sum(
        len(node.values) - 1 for node in ast.walk(function) if isinstance(node, ast.BoolOp)
    )


def targets(tree: ast.Module) -> set[str]:
    """The files that one imports, whenever it does."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("virtuary"):
            words = [f"{node.module}", *(f"{node.module}.{alias.name}" for alias in node.names)]
            found |= {f"{word.removeprefix('virtuary.').replace('.', '/')}.py" for word in words}
        elif isinstance(node, ast.Import):
            found |= {
                f"{alias.name.removeprefix('virtuary.').replace('.', '/')}.py"
                for alias in node.names
            }
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_module_imports(name: str) -> None:
    if name == "__main__.py":
        return
    words = ["virtuary", *name.removesuffix(".py").split("/")]
    importlib.import_module(".".join(words).removesuffix(".__init__"))


def test_looking_commands_load_nothing_heavy() -> None:
    heavy = {
        "pydantic",
        "fastapi",
        "asyncio",
        "http.client",
        "ssl",
        "yaml",
        "rich",
        "httpx2",
        "uvicorn",
        "websockets",
    }
    code = (
        "import sys, json; import virtuary.cli.main, virtuary.cli.look, virtuary.client.wire, "
        "virtuary.client.start;"
        "print(json.dumps(sorted(sys.modules)))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True
    ).stdout
    assert heavy & set(json.loads(loaded)) == set()


def test_every_crash_point_is_declared_once_and_passed_somewhere() -> None:
    declared: Counter[str] = Counter()
    used: set[str] = set()
    for name, tree in trees():
        for called, call in calls(tree):
            if called in ("declare", "crashpoint") and name != "base/crash.py":
                words = [word.value for word in call.args if isinstance(word, ast.Constant)]
                assert len(words) == len(call.args), f"{name}: crash points are named by literals"
                declared.update(words) if called == "declare" else used.update(words)
    assert [point for point, times in declared.items() if times > 1] == []
    assert set(declared) == used


@pytest.mark.parametrize(
    "word", ["shell=True", "extractall", "unpack_archive", "pickle", "yaml.load("]
)
def test_dangerous_words_are_nowhere(word: str) -> None:
    assert [name for name, path in zip(NAMES, FILES, strict=True) if word in path.read_text()] == []


READS_SENTENCES = {"cli/launching.py": "whether the sentence names the file already"}


def test_nothing_reads_meaning_out_of_a_sentence() -> None:
    """What an error means is its kind or a field: its words are for people, and may change."""
    found = {
        name
        for name, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare)
        and any(isinstance(operator, ast.In | ast.NotIn | ast.Eq) for operator in node.ops)
        and any(is_sentence(part) for part in (node.left, *node.comparators))
    }
    assert found == set(READS_SENTENCES)


def is_sentence(node: ast.expr) -> bool:
    """Whether this is what an error says: `error.sentence` or `str(error)`."""
    if isinstance(node, ast.Call):
        return ast.unparse(node) == "str(error)"
    return isinstance(node, ast.Attribute) and node.attr == "sentence"


def test_nothing_is_evaluated() -> None:
    found = [
        name
        for name, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("eval", "exec")
    ]
    assert found == []


def test_no_tool_is_started_that_opens_images_by_name_or_probes_them() -> None:
    """What works on disks and images is given descriptors and formats, in the jail:
    storage/blocks.py.
    """
    words = ("qemu-img", "qemu-nbd", "qemu-io", "qemu-storage-daemon")
    said = [
        f"{name}:{node.lineno}"
        for name, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in words
    ]
    assert said == []


def test_each_node_of_the_block_layer_names_its_driver() -> None:
    seen = 0
    for name, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Dict) and any(
                isinstance(key, ast.Constant) and key.value == "node-name" for key in node.keys
            ):
                keys = {key.value for key in node.keys if isinstance(key, ast.Constant)}
                seen += "driver" in keys
                assert "driver" in keys or keys <= {"node-name", "size"}, f"{name}:{node.lineno}"
    assert seen > 5


@pytest.mark.parametrize("name", NAMES)
def test_no_file_is_a_monster(name: str) -> None:
    assert len((SOURCE / name).read_text().splitlines()) <= 600


@pytest.mark.parametrize("name", NAMES)
def test_every_file_tells_its_story_first(name: str) -> None:
    text = (SOURCE / name).read_text()
    assert not text.strip() or ast.get_docstring(ast.parse(text))


# ---- the command line explains itself


def commands(
    command: click.Command, path: tuple[str, ...] = ()
) -> Iterator[tuple[str, click.Command]]:
    if path:
        yield " ".join(path), command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner, f"{name} is listed but not there"
            yield from commands(inner, (*path, name))


EVERY = dict(commands(group))


@pytest.mark.parametrize("name", EVERY)
def test_every_command_and_option_has_a_help_text(name: str) -> None:
    command = EVERY[name]
    assert command.help, "the command has none"
    silent = [
        parameter.name
        for parameter in command.params
        if isinstance(parameter, click.Option) and not parameter.help
    ]
    assert silent == []


@pytest.mark.parametrize("name", EVERY)
def test_every_command_shows_an_example(name: str) -> None:
    assert f"virtuary {name}" in (EVERY[name].help or "")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_says_what_each_command_says(name: str) -> None:
    """The group does not load its commands to list them, so their first lines are written twice."""
    first = (EVERY[name].help or "").split()[0]
    assert first == COMMANDS[name][1].split()[0]


PARTS = {
    "power": "node/power", "tuning": "node/tuning", "pressure": "node/memory",
    "disks": "node/disks", "origin": "node/copies", "warm": "node/warm",
    "identity": "node/identity",
}  # fmt: skip
"""Who writes each part of a server's status; what others see happen to it parts.py says."""
STATUS_OF_OTHERS = {
    ("actions/vms.py", "disks"): "of a draft, whose disk takes room",
}


def test_each_part_of_a_servers_status_is_written_in_one_place() -> None:
    written = {
        (name, word.arg)
        for name, tree in trees()
        for called, node in calls(tree)
        if called in ("write", "seen", "without_process")
        for word in node.keywords
        if word.arg in PARTS
    }
    assert {pair for pair in written if place(pair[0]) != PARTS[str(pair[1])]} == set(
        STATUS_OF_OTHERS
    )
    assert {part for _, part in written} | {"origin"} == set(PARTS)


def test_what_is_wished_of_a_servers_power_no_host_changes() -> None:
    """But that a boot asks for what starts with its host."""
    wishing = {
        name
        for name, tree in trees()
        for called, node in calls(tree)
        if name.startswith("node/") and called == "but" and isinstance(node.func, ast.Attribute)
        if ast.unparse(node.func.value).endswith("spec")
        if {word.arg for word in node.keywords} & {"power", "asked"}
    }
    assert wishing == {"node/turns.py"}
