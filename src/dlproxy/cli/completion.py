"""`dlproxy completion SHELL`: what makes the shell complete commands, options and files. Not aware of: the commands."""

import argparse

from dlproxy.cli.parser import Parser
from dlproxy.cli.terminal import OK, Commands, say

SHELLS = {
    "bash": 'eval "$(dlproxy completion bash)" in ~/.bashrc',
    "zsh": "dlproxy completion zsh > ~/.zfunc/_dlproxy, with `fpath+=~/.zfunc` before `compinit` in ~/.zshrc",
    "fish": "dlproxy completion fish > ~/.config/fish/completions/dlproxy.fish",
    "tcsh": "dlproxy completion tcsh > ~/.dlproxy.tcsh, and `source ~/.dlproxy.tcsh` in ~/.tcshrc",
}
FILES = ("FILE", "FOLDER", "MODEL", "CHEAP", "DEAR", "PATH", "LOG")  # what an argument is called that names a file


def add_to(commands: Commands) -> None:
    """Declare the command and its options."""
    completion = commands.add_parser(
        "completion",
        help="have your shell complete dlproxy's commands and options",
        description="Print what makes a shell complete dlproxy's commands, options and file names. To install it: "
        + "; ".join(f"{shell}: {how}" for shell, how in SHELLS.items())
        + ".",
    )
    completion.add_argument("shell", metavar="SHELL", choices=list(SHELLS), help=", ".join(SHELLS))
    completion.set_defaults(command=_complete)


def _complete(args: argparse.Namespace) -> int:
    import shtab

    from dlproxy.cli import whole_parser

    parser = whole_parser()
    _with_files(parser, shtab.FILE)
    say(shtab.complete(parser, shell=args.shell))
    return OK


def _with_files(parser: argparse.ArgumentParser, file: object) -> None:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                assert isinstance(one, Parser)
                _with_files(one, file)
        elif action.metavar in FILES and not action.choices:
            action.complete = file  # type: ignore[attr-defined] # as shtab looks for it
