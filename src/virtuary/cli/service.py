"""Commands about the program itself."""

from __future__ import annotations

import click

from virtuary.cli.output import tell


@click.command()
def daemon_command() -> None:
    """Run the daemon in the foreground. Stopping it stops no server.

    Other commands start it by themselves, through systemd where that runs, else in the background.

    \b
    Example:
      virtuary daemon
    """
    from virtuary.base import startup

    startup.begin()
    from virtuary.daemon import main

    main()


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion_command(shell: str) -> None:
    """Print shell completion.

    \b
    Example:
      virtuary completion bash > /etc/bash_completion.d/virtuary
    """
    from click.shell_completion import get_completion_class

    from virtuary.cli.main import group

    kind = get_completion_class(shell)
    assert kind
    tell(kind(group, {}, "virtuary", "_VIRTUARY_COMPLETE").source())
