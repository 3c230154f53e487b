"""What the command lines of all four programs have in common. Imports nothing heavy: ``--help`` answers at once.

``CommandParser`` is argparse with the project's errors (``error: …``, a blank line, ``hint: …``, exit status 2), a
suggestion for a mistyped option, value or command, ``--version`` and ``--print-completion SHELL``.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from reuse_distill.runtime.errors import EXIT_USAGE, RdError, nearest

SHELLS = ("bash", "zsh", "fish", "tcsh")
NUMBERS = {"int": "whole number", "float": "number"}
_NOT_A_NUMBER = re.compile(r"invalid (int|float) value: (.*)")  # argparse's own words


class Command(NamedTuple):
    """A subcommand of a program whose first word may also be a path: ``rd-export check`` beside ``rd-export STUDENT``.

    ``parser`` makes its parser; the program dispatches on the first word itself.
    """

    summary: str
    parser: Callable[[], argparse.ArgumentParser]


class HelpFormatter(argparse.HelpFormatter):
    """Wraps paragraphs; a paragraph with an indented line in it (examples, lists) stays as it is."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        filled = []
        for paragraph in text.strip("\n").split("\n\n"):
            as_it_is = any(line.startswith("  ") for line in paragraph.splitlines())
            filled.append(paragraph if as_it_is else super()._fill_text(paragraph, width, indent))
        return "\n\n".join(filled)


class CommandParser(argparse.ArgumentParser):
    """``argparse.ArgumentParser`` with suggestions, ``--version`` and shell completion.

    ``commands`` are the program's subcommands by name, where its first word may also be something else; parsers made
    by ``add_subparsers`` work as in argparse and are of this class too.
    """

    def __init__(self, *, commands: Mapping[str, Command] | None = None, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", HelpFormatter)
        super().__init__(**kwargs)
        self.commands = dict(commands or {})
        if self.commands:
            self._list_commands()
        if " " not in self.prog:  # the program itself, not one of its commands
            self.add_argument("--version", action=_VersionAction, help="print the version and exit")
            self.add_argument(
                "--print-completion",
                action=_CompletionAction,
                choices=SHELLS,
                metavar="SHELL",
                help=f"print a completion script for {', '.join(SHELLS)} and exit",
            )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse, after a look for mistyped commands and options: these are named before what they lead to."""
        words = sys.argv[1:] if args is None else [str(word) for word in args]
        if words == ["help"] and " " not in self.prog and not Path("help").exists():
            words = ["--help"]
        self._check_command(words)
        # A command's own parser knows the options behind its name.
        commands_at = next((at for at, word in enumerate(words) if not word.startswith("-")), len(words))
        self._check_options(words if self._subparsers is None else words[:commands_at])
        return super().parse_known_args(words, namespace)

    def error(self, message: str, *, hint: str | None = None) -> NoReturn:
        """Print the message and a hint on stderr; exit status 2."""
        text = _NOT_A_NUMBER.sub(lambda match: f"{match[2]} is not a {NUMBERS[match[1]]}", message)
        text = text.removeprefix("argument ")
        if self._subparsers is not None and message.startswith("the following arguments are required"):
            choices = next(one.choices for one in self._actions if isinstance(one, argparse._SubParsersAction))
            text, hint = "no command", f"one of {', '.join(choices)}; see {self.prog} --help"
        self.exit(EXIT_USAGE, f"error: {text}\n\nhint: {hint or f'see {self.prog} --help'}\n")
        raise AssertionError  # exit does not return

    def print_completion(self, shell: str) -> None:
        """Print the completion script of ``shell``. Raises RdError without shtab."""
        try:
            import shtab
        except ImportError:
            raise RdError("shell completion needs shtab, which is not installed", hint="pip install shtab") from None
        print(shtab.complete(self._completion_tree(), shell))

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse a value or command that is none of the choices, with the nearest one."""
        if action.choices is None or value in action.choices:
            return
        what = "unknown command" if isinstance(action, argparse._SubParsersAction) else _name(action)
        text = f"{what} {value!r}" if what == "unknown command" else f"{what}: unknown value {value!r}"
        choices = [str(choice) for choice in action.choices]
        close = get_close_matches(str(value), choices, n=1)
        one_of = f"one of {', '.join(choices)}"
        self.error(text, hint=f"did you mean {close[0]!r}? {one_of}" if close else one_of)

    def _check_command(self, words: Sequence[str]) -> None:
        if not self.commands or not words or words[0].startswith("-") or Path(words[0]).exists():
            return
        if get_close_matches(words[0], list(self.commands), n=1, cutoff=0.7):
            text = f"{words[0]!r} is neither a command of {self.prog} nor a path"
            self.error(text, hint=nearest(words[0], list(self.commands)))

    def _check_options(self, words: Sequence[str]) -> None:
        known = [name for name in self._option_string_actions if name.startswith("--")]
        for word in words:
            if word == "--":
                return
            name = word.partition("=")[0]
            if not name.startswith("--") or " " in name or any(option.startswith(name) for option in known):
                continue
            close = get_close_matches(name, known, n=1)
            self.error(f"unknown option {name}", hint=f"did you mean {close[0]}?" if close else None)

    def _list_commands(self) -> None:
        width = max(map(len, self.commands))
        lines = [f"  {name:<{width}}  {command.summary}" for name, command in self.commands.items()]
        lines.append(f"  (see {self.prog} COMMAND --help)")
        self.add_argument_group("commands", "\n".join(lines))

    def _completion_tree(self) -> argparse.ArgumentParser:
        """This parser with ``commands`` as argparse's own subparsers, which is where shtab looks for them."""
        _complete_paths(self)
        if not self.commands:
            return self
        tree = argparse.ArgumentParser(prog=self.prog, parents=[self], add_help=False, conflict_handler="resolve")
        for action in [action for action in tree._actions if not action.option_strings]:
            tree._remove_action(action)
        subparsers = tree.add_subparsers()
        for name, command in self.commands.items():
            made = command.parser()
            _complete_paths(made)
            subparsers.add_parser(name, help=command.summary, parents=[made], add_help=False)
        return tree


class _VersionAction(argparse._VersionAction):
    """``--version``, looked up when needed: the look-up takes a tenth of a second."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from reuse_distill.runtime import __version__

        print(f"{parser.prog} {__version__}")
        parser.exit()


class _CompletionAction(argparse.Action):
    """``--print-completion SHELL``."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, default=argparse.SUPPRESS, **kwargs)

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, shell: Any, *_: Any) -> None:
        assert isinstance(parser, CommandParser)  # noqa: S101  (this action is added by it only)
        parser.print_completion(shell)
        parser.exit()


def _complete_paths(parser: argparse.ArgumentParser) -> None:
    """Let options and positionals that take a path complete to files, of every command too."""
    import shtab

    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _complete_paths(command)
        elif action.type is Path or (not action.option_strings and action.choices is None):
            action.complete = shtab.FILE  # type: ignore[attr-defined]


def _name(action: argparse.Action) -> str:
    return "/".join(action.option_strings) or str(action.metavar or action.dest)


def bundle_or_shipped(path: Path | str | None) -> Path:
    """``path``, or the small bundle that is shipped, which is announced on stderr."""
    if path is not None:
        return Path(path)
    from reuse_distill.runtime.bundle_format.bundle import SHIPPED

    print(f"bundle: {SHIPPED.name}, shipped with this program; name a BUNDLE for another", file=sys.stderr)
    return SHIPPED
