"""Writes the reference from the code: commands, settings, errors, API, documents; and the manual
pages. The suite holds them together.

python docs/generate.py            write docs/reference/*.md and docs/man/*.1
python docs/generate.py --check    end with 1 when something written differs
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
from pydantic import BaseModel

from virtuary import __version__
from virtuary.base.errors import KINDS
from virtuary.base.paths import Paths, VmPaths
from virtuary.cli.main import COMMANDS, group
from virtuary.model.applies import Applies
from virtuary.model.firewall import Firewall
from virtuary.model.image import Image
from virtuary.model.operation import Operation
from virtuary.model.pool import Pool
from virtuary.model.settings import Settings
from virtuary.model.vm import Vm
from virtuary.model.volume import Volume

HERE = Path(__file__).parent


def commands() -> list[tuple[str, click.Command]]:
    """Every command with its whole name, groups opened."""
    found: list[tuple[str, click.Command]] = []
    context = click.Context(group)
    for name in COMMANDS:
        command = group.get_command(context, name)
        assert command
        found.append((name, command))
        if isinstance(command, click.Group):
            found += [
                (f"{name} {inner}", command.commands[inner])
                for inner in command.list_commands(context)
            ]
    return found


def usage(name: str, command: click.Command) -> str:
    parts = " ".join(command.collect_usage_pieces(click.Context(command)))
    return f"virtuary {name} {parts}".strip()


def paragraphs(command: click.Command) -> tuple[str, str]:
    """The text of a command and its example lines."""
    text, _, example = inspect.cleandoc(command.help or "").partition("\b")
    lines = [
        line.strip()
        for line in example.splitlines()
        if line.strip() and not line.strip().startswith("Example")
    ]
    return text.strip(), "\n".join(lines)


def first_paragraph(text: str) -> str:
    """The first paragraph, on one line. Pure."""
    return " ".join(text.split("\n\n")[0].split())


def options(command: click.Command) -> list[tuple[str, str]]:
    context = click.Context(command)
    rows = [
        param.get_help_record(context)
        for param in command.params
        if isinstance(param, click.Option)
    ]
    return [row for row in rows if row]


def commands_page() -> str:
    lines = ["# Commands", "", "Made from the program by `docs/generate.py`.", ""]
    for name, command in commands():
        text, example = paragraphs(command)
        lines += [f"## virtuary {name}", "", f"`{usage(name, command)}`", "", text, ""]
        if example:
            lines += ["```sh", example, "```", ""]
        if rows := options(command):
            lines += ["| option | meaning |", "|---|---|"]
            lines += [
                f"| `{flags.replace('|', chr(92) + '|')}` | {help.replace('|', chr(92) + '|')} |"
                for flags, help in rows
            ]
            lines += [""]
    return "\n".join(lines)


def errors_page() -> str:
    lines = [
        "# Errors",
        "",
        "Every error is one sentence, and a hint where there is one. Made by `docs/generate.py`.",
        "",
    ]
    lines += [
        "| code | meaning | HTTP status | exit code | worth repeating |",
        "|---|---|---|---|---|",
    ]
    for code, kind in KINDS.items():
        lines.append(
            f"| `{code}` | {(kind.__doc__ or '').strip()} | {kind.status} | {kind.exit_code} | "
            f"{'yes' if kind.retry else 'no'} |"
        )
    lines += [
        "",
        "Exit codes: 0 done, 1 a defect, 2 wrong usage or input, 3 not found, 4 can't be done "
        "now, 5 not allowed,",
    ]
    lines += [
        "6 time ran out, 7 the daemon can't be reached, 8 the operation failed, 130 interrupted. "
        "`exec` passes on the"
    ]
    lines += [
        "command's own status; 125 could not be run, 126 not executable, 127 not found in the "
        "guest.",
        "",
    ]
    return "\n".join(lines)


def fields(model: type[BaseModel], prefix: str = "", when: str = "") -> list[tuple[str, str, str]]:
    """Each field with its type, and when a change of it takes effect while a server runs."""
    rows: list[tuple[str, str, str]] = []
    for name, info in model.model_fields.items():
        inner = info.annotation
        mark = next((item.value for item in info.metadata if isinstance(item, Applies)), when)
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            rows += fields(inner, f"{prefix}{name}.", mark)
        elif part := part_of(inner):
            rows += fields(part, f"{prefix}{name}[].", mark)
        else:
            rows.append((f"{prefix}{name}", type_text(inner), mark))
    return rows


def type_text(annotation: Any) -> str:
    """A field's type in words."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_text(args[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in args)
    if origin is tuple:
        many = args[-1] is ...
        return f"list of {type_text(args[0])}" if many else " and ".join(map(type_text, args))
    if origin is dict:
        return f"table of {type_text(args[1])}"
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(type_text, args)))
    return "null" if annotation is type(None) else str(getattr(annotation, "__name__", annotation))


def part_of(annotation: Any) -> type[BaseModel] | None:
    """The model of which a field holds a list; None where it holds something else."""
    part = next(iter(get_args(annotation)), None) if get_origin(annotation) is tuple else None
    if get_origin(part) is Annotated:
        part = get_args(part)[0]
    return part if isinstance(part, type) and issubclass(part, BaseModel) else None


def documents_page() -> str:
    lines = [
        "# Documents",
        "",
        "What the API shows and the store keeps. `spec` is wished, `status` is seen. Made by "
        "`docs/generate.py`.",
        "",
    ]
    for model in (Vm, Volume, Pool, Image, Firewall, Operation):
        lines += [
            f"## {model.__name__}",
            "",
            (model.__doc__ or "").strip(),
            "",
            "| field | type | a change takes effect |",
            "|---|---|---|",
        ]
        lines += [f"| `{name}` | {text} | {when} |" for name, text, when in fields(model)] + [""]
    return "\n".join(lines)


def settings_page() -> str:
    lines = [
        "# Settings",
        "",
        "`/etc/virtuary/virtuary.toml` for root, `~/.config/virtuary/virtuary.toml` for a user. "
        "Made by `docs/generate.py`.",
        "",
    ]
    lines += ["| setting | meaning | default |", "|---|---|---|"]
    for section, info in Settings.model_fields.items():
        model: Any = info.annotation
        for name, item in model.model_fields.items():
            default = item.get_default(call_default_factory=True)
            lines.append(f"| `{section}.{name}` | {item.description} | `{default}` |")
    lines += ["", "| variable | meaning |", "|---|---|"]
    for name, text in VARIABLES.items():
        lines.append(f"| `{name}` | {text} |")
    return "\n".join(lines) + "\n"


VARIABLES = {
    "VIRTUARY_ROOT": "put everything (state, cache, sockets, configuration) below this folder: a private instance",
    "VIRTUARY_HOST": "`unix:///path/to/socket` of the daemon to speak to",
    "VIRTUARY_OUTPUT": "how to print when `-o` is not given: table, json, yaml or name",
    "VIRTUARY_LOG": "how much the daemon logs: debug, info, warning, error",
    "VIRTUARY_CRASH": "for tests: end the daemon at a named crash point",
    "VIRTUARY_CRASH_TRACE": "for tests: write every crash point passed to this file",
    "VIRTUARY_TEST_PROC": "for tests: a folder with `meminfo` and `pressure/memory`, by which the daemon judges whether memory is short",
}


def files_page() -> str:
    lines = ["# Files", "", "Every place on disk. Made by `docs/generate.py`.", ""]
    lines += ["| | system mode | user mode |", "|---|---|---|"]
    lines += [
        "| state | `/var/lib/virtuary` | `~/.local/state/virtuary` |",
        "| cache | `/var/cache/virtuary` | `~/.cache/virtuary` |",
    ]
    lines += [
        "| sockets | `/run/virtuary` | `$XDG_RUNTIME_DIR/virtuary` |",
        "| settings | `/etc/virtuary` | `~/.config/virtuary` |",
        "",
    ]
    for title, kind in (("Of the host", Paths), ("Of each server, by its id", VmPaths)):
        lines += [f"## {title}", ""]
        for name, value in vars(kind).items():
            if isinstance(value, property) and value.__doc__:
                lines.append(f"- `{name.replace('_', '-')}`: {value.__doc__.strip()}")
        lines += [""]
    lines += ["## Keys of the store", ""]
    lines += [f"- `{key}`: {text}" for key, text in KEYS.items()] + [""]
    return "\n".join(lines)


KEYS = {
    "vm/ID": "a server's document",
    "vm-name/NAME": "the id of the server of this name; gone while it lies in the trash",
    "image/ID": "an image's document",
    "image-name/NAME": "the id of the image of this name",
    "disk/ID": "a disk's document, of those that are no server's root disk",
    "disk-name/NAME": "the id of the disk of this name; gone while it lies in the trash",
    "pool/ID": "a pool's document",
    "pool-name/NAME": "the id of the pool of this name",
    "firewall/ID": "a firewall group's document",
    "firewall-name/NAME": "the id of the firewall group of this name",
    "operation/ID": "an operation; the last 500 that ended are kept",
    "secret/VM-ID": "a server's user data, never shown; sealed under `secret-key`, and gone without a trace with its server",
    "host/ID": "the host as it described itself when the daemon started",
    "idempotency/DIGEST": "what a request with an Idempotency-Key did; kept for 24 hours",
}


def api_page() -> str:
    from fastapi.routing import APIRoute

    from virtuary.api import (
        disks,
        firewalls,
        images,
        metrics,
        networks,
        operations,
        plans,
        pools,
        vms,
    )
    from virtuary.api.app import BODY_CAP, HEAD_CAP
    from virtuary.base.jsontext import DEPTH_CAP, PARTS_CAP

    lines = [
        "# API",
        "",
        "HTTP on the daemon's Unix socket; the schema is at `/openapi.json`. Errors are RFC 9457 "
        "problem documents.",
    ]
    lines += ["What takes time answers 202 with an operation. Made by `docs/generate.py`.", ""]
    lines += [
        "The schema tells each operation's answers and errors. Clients can be made from it, for "
        "example by `openapi-python-client generate --path"
    ]
    lines += [
        "openapi.json` or `openapi-generator-cli generate -i openapi.json -g python`; a tour "
        "with each is a test.",
        "",
    ]
    lines += [
        f"A body has a length, of at most {BODY_CAP} bytes (a plan's {plans.BODY_CAP}, an image "
        f"as long as there is room), {PARTS_CAP} values and"
    ]
    lines += [
        f"{DEPTH_CAP} levels; address and headers have at most {HEAD_CAP} bytes.",
        "",
        "| request | what it does |",
        "|---|---|",
    ]
    for router in (
        vms.router,
        disks.router,
        pools.router,
        images.router,
        networks.router,
        firewalls.router,
        operations.router,
        plans.router,
        metrics.router,
    ):
        for route in router.routes:
            if isinstance(route, APIRoute):
                text = first_paragraph(
                    route.description or route.name.replace("_", " ").capitalize() + "."
                )
                lines.append(f"| `{' '.join(sorted(route.methods))} {route.path}` | {text} |")
    for path, text in {
        "/v1/host": "What this host has and uses.",
        "/v1/doctor": "Everything a launch depends on.",
    }.items():
        lines.append(f"| `GET {path}` | {text} |")
    lines += [
        "| `WebSocket /v1/vms/{name}/console/serial` | The serial console: binary frames both "
        "ways. |",
        "",
    ]
    return "\n".join(lines)


def manual(name: str, command: click.Command) -> str:
    """A manual page in man(7)."""

    def plain(text: str) -> str:
        text = text.replace("\\", "\\e").replace("-", "\\-")
        return "\n".join(
            f"\\&{line}" if line.startswith((".", "'")) else line for line in text.splitlines()
        )

    text, example = paragraphs(command)
    title = f"virtuary-{name}".replace(" ", "-")
    lines = [
        f'.TH {title.upper()} 1 "" "Virtuary {__version__}"',
        ".SH NAME",
        plain(f"{title} - {first_paragraph(text).rstrip('.')}"),
    ]
    lines += [
        ".SH SYNOPSIS",
        plain(usage(name, command)),
        ".SH DESCRIPTION",
        plain(text).replace("\n\n", "\n.PP\n"),
    ]
    if rows := options(command):
        lines += [".SH OPTIONS"]
        for flags, help in rows:
            lines += [".TP", f"\\fB{plain(flags)}\\fR", plain(help)]
    if example:
        lines += [".SH EXAMPLES", ".nf", plain(example), ".fi"]
    return "\n".join([*lines, ".SH SEE ALSO", ".BR virtuary (1)", ""])


def main_manual() -> str:
    lines = [
        f'.TH VIRTUARY 1 "" "Virtuary {__version__}"',
        ".SH NAME",
        "virtuary \\- virtual servers on this machine",
    ]
    lines += [".SH SYNOPSIS", "virtuary COMMAND [OPTIONS] [ARGS]", ".SH COMMANDS"]
    for name, (_, text) in COMMANDS.items():
        lines += [
            ".TP",
            f".BR virtuary\\-{name.replace('-', chr(92) + '-')} (1)",
            text.replace("-", "\\-"),
        ]
    return "\n".join([*lines, ""])


def pages() -> dict[Path, str]:
    reference, man = HERE / "reference", HERE / "man"
    found = {
        reference / "commands.md": commands_page(),
        reference / "errors.md": errors_page(),
        reference / "documents.md": documents_page(),
        reference / "settings.md": settings_page(),
        reference / "files.md": files_page(),
        reference / "api.md": api_page(),
        man / "virtuary.1": main_manual(),
    }
    return found | {
        man / f"virtuary-{name.replace(' ', '-')}.1": manual(name, command)
        for name, command in commands()
    }


def main() -> int:
    stale = [
        path
        for path, text in pages().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    if "--check" in sys.argv:
        for path in stale:
            print(
                f"{path.relative_to(HERE.parent)} is not what the code says: python "
                "docs/generate.py",
                file=sys.stderr,
            )
        return 1 if stale else 0
    for path in stale:
        path.parent.mkdir(exist_ok=True)
        path.write_text(pages()[path], encoding="utf-8")
    print(f"{len(stale)} of {len(pages())} pages written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
