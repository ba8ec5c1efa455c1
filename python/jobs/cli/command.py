"""What a command is: a name, a sentence, its options, and the function that carries it out."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from jobs.cli import exits
from jobs.client import Client

if TYPE_CHECKING:
    from jobs.client.operations import Consistency

Function = Callable[[Client, argparse.Namespace], int]
SHORT_USAGE_LINES: Final = 3


class UsageError(Exception):
    """The command line asks for something that cannot be; the text says what would be right."""


class Command(NamedTuple):
    """One command; only the one that is called has its options made, which keeps the start short."""

    name: str
    function: Function | None
    """None for one that only holds others."""
    help: str
    configure: Callable[[Parser], object] = lambda parser: None
    epilog: str | None = None

    def add_to(self, commands: Any) -> None:
        """Add the command to a group that `Parser.add_commands` made."""
        parser = commands.add_parser(self.name, help=self.help, description=self.help, epilog=self.epilog)
        if self.function is not None:
            parser.set_defaults(function=self.function)
        self.configure(parser)


class Parser(argparse.ArgumentParser):
    """A parser with the options that every command has, before the command's name as well as after it."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(
            **settings,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self._rest: str | None = None
        absent = argparse.SUPPRESS
        self.add_argument("--json", action="store_true", default=absent, help="one JSON object a line")
        self.add_argument(
            "--socket", metavar="PATH", default=absent, help="the node's; else $JOBS_SOCKET or the system's"
        )

    def add_commands(self, name: str) -> Any:
        return self.add_subparsers(dest=name, metavar="COMMAND", required=True)

    def take_rest(self, name: str) -> None:
        """Keep what follows `--` out of the parsing, and leave it under this name: where another positional argument
        may be followed by options, argparse would take it for an empty list before it comes to it."""
        self._rest = name

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Return the options that are known, and what is left over."""
        if self._rest is None or args is None or "--" not in args:
            return super().parse_known_args(args, namespace)
        end = list(args).index("--")
        found, left = super().parse_known_args(args[:end], namespace)
        setattr(found, self._rest, [*getattr(found, self._rest), *args[end + 1 :]])
        return found, left

    def error(self, message: str) -> NoReturn:
        """End with what is wrong, and with the usage where it is short enough not to hide that."""
        if "unrecognized arguments" in message:
            message += " (a command to run goes after --)"
        usage = self.format_usage()
        help_at = usage if usage.count("\n") <= SHORT_USAGE_LINES else f"see {self.prog} --help\n"
        self.exit(exits.USAGE, f"{self.prog}: {message}\n{help_at}")


def add_stale(parser: Parser) -> None:
    parser.add_argument("--stale", action="store_true", help="as the node itself has it, which may be behind")


def consistency(options: argparse.Namespace) -> Consistency | None:
    """Return what `--stale` asks for."""
    return "stale" if options.stale else None


def at_least(lowest: int) -> Callable[[str], int]:
    """Return a parser of whole numbers that are not lower."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
        if number < lowest:
            raise argparse.ArgumentTypeError(f"{number} is less than {lowest}")
        return number

    return parse
