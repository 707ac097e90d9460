"""`dlproxy models keygen`, `sign`, `verify` and `encrypt`: what is done with models' files before a server loads them.

Not aware of: servers.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from dlproxy.cli.terminal import FAILED, OK, USER_ERROR, Commands, complain, say


def add_to(actions: Commands) -> None:
    """Declare the four actions."""
    keygen = actions.add_parser("keygen", help="make keys to sign models with, or to encrypt them")
    keygen.add_argument("name", metavar="NAME", nargs="?", type=Path, help="writes NAME.key, which signs, and NAME.pub")
    keygen.add_argument("--master", metavar="FILE", type=Path, help="write a master key, which encrypts, to this file instead")
    keygen.set_defaults(command=_told(_keygen))
    sign = actions.add_parser("sign", help="list a model's files and sign the list")
    sign.add_argument("models", metavar="MODEL", nargs="+", help="a model's file or folder, as in its path")
    sign.add_argument("--key", metavar="FILE", type=Path, required=True, help="the private key")
    sign.add_argument(
        "--with",
        dest="beside",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help="a file beside it that belongs to it, such as what a Python class imports; of a folder all do",
    )
    sign.add_argument("--as", dest="served_as", metavar="NAME[/VERSION]", help="have it refused as any other model or version")
    sign.set_defaults(command=_told(_sign))
    verify = actions.add_parser("verify", help="compare a model's files with its signed list")
    verify.add_argument("models", metavar="MODEL", nargs="+")
    verify.add_argument("--trusted", metavar="FILE", action="append", required=True, help="a public key")
    verify.set_defaults(command=_verify)
    encrypt = actions.add_parser("encrypt", help="write a model encrypted, to be loaded so")
    encrypt.add_argument("model", metavar="MODEL", help="a model's file or folder")
    encrypt.add_argument("target", metavar="TARGET", type=Path, help="a new file or folder")
    encrypt.add_argument("--master-key", metavar="PLACE", required=True, help="file:PATH, env:NAME or command:WORDS")
    encrypt.set_defaults(command=_told(_encrypt))


def _told(act: Callable[[argparse.Namespace], None]) -> Callable[[argparse.Namespace], int]:
    """Its exit code: what cannot be used of a file or an option is told."""

    def command(args: argparse.Namespace) -> int:
        from dlproxy.config import ConfigError
        from dlproxy.instance.runtime import ModelError

        try:
            act(args)
        except (ConfigError, OSError, ModelError) as error:
            complain(_said(error))
        else:
            return OK
        return USER_ERROR

    return command


def _keygen(args: argparse.Namespace) -> None:
    from dlproxy.config import ConfigError
    from dlproxy.instance.integrity.writing import make_key_pair, make_master_key

    if (args.name is None) == (args.master is None):
        raise ConfigError("keygen makes one thing: NAME for a pair of keys that sign, or --master FILE for a key that encrypts")
    try:
        if args.master is not None:
            make_master_key(args.master)
            say(f"{args.master}: the master key; whoever has it can read what is encrypted, and without it nobody can")
            return
        private, public = make_key_pair(args.name)
    except FileExistsError as error:
        raise ConfigError(f"{error.filename} is there already, and is not overwritten") from None
    say(f"{private}: signs models; keep it away from servers")
    say(f'{public}: for servers ([integrity] trusted = ["{public.name}"])')


def _sign(args: argparse.Namespace) -> None:
    from dlproxy.config import ConfigError
    from dlproxy.instance.integrity.ciphers import KeyFormatError, private_key
    from dlproxy.instance.integrity.writing import sign

    model, slash, version = (args.served_as or "").partition("/")
    if slash and not (model and version.isdecimal()):
        raise ConfigError(f"--as {args.served_as}: write a name, or a name and a version like digits/3")
    if len(args.models) > 1 and (args.beside or args.served_as):
        raise ConfigError("--with and --as are about one model: sign the others by themselves")
    try:
        key = private_key(args.key.read_bytes())
    except KeyFormatError as error:
        raise ConfigError(f"{args.key}: {error}") from None
    for path in args.models:
        target, manifest = sign(path, key, beside=args.beside, model=model, version=version)
        count = len(manifest.files)
        say(f"{target}: {count} file{'s' * (count != 1)}, signed with key {manifest.signer}")


def _verify(args: argparse.Namespace) -> int:
    from dlproxy.config import ConfigError
    from dlproxy.instance.integrity.files import verified
    from dlproxy.instance.integrity.settings import read_signers
    from dlproxy.instance.integrity.writing import existing
    from dlproxy.instance.runtime import ModelError

    try:
        signers, places = read_signers(args.trusted, "--trusted"), [existing(path) for path in args.models]
    except (ConfigError, ModelError) as error:
        complain(str(error))
        return USER_ERROR
    failed = False
    for place in places:
        try:
            manifest = verified(place, signers)
        except (OSError, ModelError) as error:
            complain(_said(error))
            failed = True
            continue
        name = f", to be served as {manifest.model}{manifest.version and f'/{manifest.version}'}" if manifest.model else ""
        count = len(manifest.files)
        say(f"{place}: {count} file{'s' * (count != 1)} as signed with key {manifest.signer}{name}")
    return FAILED if failed else OK


def _encrypt(args: argparse.Namespace) -> None:
    from dlproxy.instance.integrity.settings import read_master_key
    from dlproxy.instance.integrity.writing import encrypt

    names = encrypt(args.model, args.target, read_master_key(args.master_key))
    say(f"{args.target}: {len(names)} file{'s' * (len(names) != 1)} encrypted; to have it signed, sign it now")


def _said(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error)
    return str(error)
