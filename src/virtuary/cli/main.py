"""The command line: a group that loads a command's file only when it is called, and the one place
where errors are shown.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any

import click

from virtuary.base.errors import VirtuaryError
from virtuary.base.text import shown_value
from virtuary.cli.output import say, say_error

COMMANDS: dict[str, tuple[str, str]] = {
    "launch": ("launching", "Create a server, start it, and wait until a shell is possible."),
    "create": ("launching", "Create a server without starting it."),
    "start": ("lifecycle", "Start servers."),
    "stop": ("lifecycle", "Shut servers down: ask the guest, then pull the plug."),
    "restart": ("lifecycle", "Stop servers and start them again."),
    "pause": ("lifecycle", "Freeze servers where they are."),
    "resume": ("lifecycle", "Let paused servers go on."),
    "copy": ("copies", "Copy a server."),
    "rename": ("lifecycle", "Give a server another name."),
    "set": ("lifecycle", "Change a server."),
    "trim": ("lifecycle", "Have guests give back the space they do not use."),
    "delete": ("lifecycle", "Move servers to the trash, or remove them for good."),
    "undelete": ("lifecycle", "Take a server back from the trash."),
    "purge": ("lifecycle", "Remove a server in the trash for good."),
    "list": ("look", "List servers."),
    "show": ("look", "Show everything about servers."),
    "top": ("top", "Watch what servers and this host use."),
    "advise": (
        "advise",
        "Tell which servers are too big or too small, and the change that mends it.",
    ),
    "logs": ("look", "Show what a server's console printed."),
    "events": ("look", "Follow what happens."),
    "host": ("capacity", "Show this virtualization host."),
    "capacity": ("capacity", "Show how many more servers fit, and what runs out first."),
    "doctor": ("look", "Check everything a launch depends on."),
    "version": ("look", "Show the versions of the program and the daemon."),
    "shell": ("access", "Open a shell inside a server."),
    "exec": ("access", "Run a command inside a server."),
    "console": ("access", "Attach to a server's serial console."),
    "cp": ("copying", "Copy files into or out of a server."),
    "ssh-config": ("access", "Print an OpenSSH configuration for servers."),
    "image": ("images", "Build, pull, import, list and delete images."),
    "disk": ("disks", "Create, attach, detach, grow and delete disks."),
    "pool": ("pools", "Make directories pools, in which disks lie."),
    "network": ("networks", "Create, list, change and delete networks."),
    "firewall": ("firewalls", "Create, list, change, test and delete firewall groups."),
    "plan": ("plan", "Plan which servers go onto which hosts."),
    "operation": ("operations", "List, show, wait for and cancel operations."),
    "daemon": ("service", "Run the daemon in the foreground."),
    "completion": ("service", "Print shell completion."),
}
DELETING = ("delete", "purge")
"""What nobody is to begin by a typing error: these are not suggested."""
ALIASES = {
    "ls": "list",
    "info": "show",
    "rm": "delete",
    "images": "image",
    "disks": "disk",
    "pools": "pool",
    "networks": "network",
    "firewalls": "firewall",
    "operations": "operation",
}


class Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = ALIASES.get(cmd_name, cmd_name)
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"virtuary.cli.{COMMANDS[name][0]}")
        command: click.Command = getattr(module, name.replace("-", "_") + "_command")
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            import difflib

            close = difflib.get_close_matches(
                args[0], [name for name in COMMANDS if name not in DELETING], 1
            )
            ctx.fail(
                f"there is no command {args[0]!r}."
                + (f" Did you mean {close[0]!r}?" if close else " See virtuary --help.")
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.command(
    cls=Lazy,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Each command explains itself: virtuary COMMAND --help",
)
@click.option("--debug", is_flag=True, help="Show a traceback when something goes wrong.")
@click.version_option(message="virtuary %(version)s", package_name="virtuary")
def group(debug: bool) -> None:
    """Virtual servers on this machine.

    \b
    Examples:
      virtuary launch debian web1       a Debian server, and wait for it
      virtuary shell web1               a shell inside it
      virtuary list                     what is there
    """


def main() -> None:
    """Run the command line; ends the process with the exit code of the error's kind."""
    _have_descriptors()
    debug = "--debug" in sys.argv
    try:
        status = group(standalone_mode=False)
    except click.exceptions.Exit as ended:
        status = ended.exit_code
    except click.ClickException as error:
        error.show()
        status = 2
    except (KeyboardInterrupt, click.Abort):
        say()
        status = 130
    except VirtuaryError as error:
        if debug:
            import traceback

            say("".join(traceback.format_exception(error)))
        show_error(error)
        status = error.exit_code
    except BrokenPipeError:
        sys.stderr.close()
        status = 0
    sys.exit(status if isinstance(status, int) else 0)


def _have_descriptors() -> None:
    """Where this was started with standard input, output or errors closed, no file of ours takes
    their numbers: reading finds the end, writing fails.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)  # takes the least number that is free
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    if sys.stderr is None:  # print() would write to standard output instead
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def show_error(error: VirtuaryError) -> None:
    """The sentence, then the hint; the whole problem as JSON when JSON was asked for."""
    words = " ".join(sys.argv)
    if (
        "-o json" in words
        or "--output json" in words
        or "--output=json" in words
        or "-ojson" in words
    ):
        return say(json.dumps(shown_value(error.problem())))
    if error.details.get("errors"):
        from virtuary.cli.pointers import in_users_words, options_of

        error.sentence = in_users_words(error, options_of(group, sys.argv[1:]), sys.argv[1:])
    say_error(error)
