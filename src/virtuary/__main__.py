"""`python -m virtuary` and the `virtuary` command."""

from __future__ import annotations


def main() -> None:
    from virtuary.cli.main import main as cli

    cli()


if __name__ == "__main__":
    main()
