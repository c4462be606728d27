"""The command line: `dpo-jax COMMAND CONFIG [--key.sub value ...]`.

Exit codes: 0 done, 1 crashed, 2 a mistake in the configuration, the data or on the command line, 124 a step hung,
130 interrupted, 143 told to stop by SIGTERM. After 124 and 143 the same command goes on.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from dpo_jax import __version__, xla_flags
from dpo_jax.config import PictureConfig, load
from dpo_jax.errors import UserError, nearest
from dpo_jax.stages import STAGES
from dpo_jax.stages.pictures import PICTURE_STAGES

_EPILOG = """\
Every value of the configuration can be set after it:  --train.steps 200  --loss.options.beta 0.2
`dpo-jax config show CONFIG` prints the merged configuration and where each value came from."""


class _Parser(argparse.ArgumentParser):
    """argparse whose mistakes read like all the others."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(f"command line: {message}. See `{self.prog} --help`.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="dpo-jax",
        description="Preference optimisation of language models, and of diffusion models of images and video, in JAX.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"dpo-jax {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, stage in STAGES.items():
        command = commands.add_parser(name, help=stage.help, description=stage.help, allow_abbrev=False)
        command.add_argument("config", metavar="CONFIG", help="an experiment file")
        for flag, text in stage.flags.items():
            command.add_argument(f"--{flag}", metavar=flag.upper(), help=text)
        for flag, text in stage.lists.items():
            command.add_argument(f"--{flag}", metavar=flag.upper(), help=text, action="append")
        for flag, text in stage.switches.items():
            command.add_argument(f"--{flag}", action="store_true", help=text)
        for flag, key in stage.settings.items():
            command.add_argument(f"--{flag}", metavar=flag.upper(), dest=key, help=f"short for --{key}")
    show = commands.add_parser("config", help="config show: print the merged configuration", allow_abbrev=False)
    show.add_argument("action", choices=["show"])
    show.add_argument("config", metavar="CONFIG")
    store = commands.add_parser("store", help="store ls: the reference stores below a folder", allow_abbrev=False)
    store.add_argument("action", choices=["ls"])
    store.add_argument("folder", metavar="FOLDER", nargs="?", default=".")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `dpo-jax` command."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        _dispatch(arguments)
    except UserError as error:
        _leave(2, str(error))
    except KeyboardInterrupt:
        _leave(130, "interrupted; the same command goes on from the last checkpoint")


def _leave(code: int, message: str) -> NoReturn:
    if "jax" not in sys.modules:  # a mistake that was found at once
        print(f"dpo-jax: {message}", file=sys.stderr)
        raise SystemExit(code)
    from dpo_jax.stages.hosts import leave

    leave(code, message)


def _dispatch(arguments: Sequence[str]) -> None:
    commands = [*STAGES, "config", "store"]
    if arguments and not arguments[0].startswith("-") and arguments[0] not in commands:
        raise UserError(f"command line: {arguments[0]!r} is not a command. {nearest(arguments[0], commands)}")
    known, overrides = _parser().parse_known_args(arguments)
    if known.command == "store":
        _list_stores(Path(known.folder), overrides)
        return
    for key in STAGES[known.command].settings.values() if known.command in STAGES else ():
        if (value := getattr(known, key)) is not None:
            overrides += [f"--{key}", value]
    config, origins = load(known.config, overrides)
    if known.command == "config":
        from dpo_jax.stages.rendering import render

        print(render(config, origins, comments=True), end="")
        return
    _run_stage(known, config, origins, shlex.join(["dpo-jax", *arguments]))


def _list_stores(root: Path, unknown: Sequence[str]) -> None:
    from dpo_jax.stages.stores import describe

    if unknown:
        raise UserError(f"command line: store ls: {unknown[0]!r} is not understood. Give one folder.")
    print(describe(root))


def _run_stage(known: argparse.Namespace, config: object, origins: dict[str, str], command: str) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that PyTorch is not there
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells there of its every move
    xla_flags.apply(os.environ)
    import jax

    from dpo_jax.stages import hosts, preemption

    stage = STAGES[known.command]
    setup, run = _opened(known.command, config, origins, command)
    names = (flag.replace("-", "_") for flag in (*stage.flags, *stage.lists, *stage.switches))
    flags = {name: getattr(known, name) for name in names}
    if stage.dry:
        run(setup, **flags)
        return
    hosts.join_run()
    try:
        setup.begin()
        hosts.check_shared(setup.workdir)
        with jax.set_mesh(setup.mesh):
            run(setup, **flags)
    except preemption.Preempted as told:
        hosts.leave_together(preemption.EXIT_CODE, str(told))
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException:
        hosts.crash()
        raise


def _opened(name: str, config: object, origins: dict[str, str], command: str) -> tuple[Any, Callable[..., None]]:
    """The experiment, of pictures or of texts, and what runs the command."""
    if isinstance(config, PictureConfig):
        from dpo_jax.stages.pictures.setup import PictureSetup

        if name not in PICTURE_STAGES:
            raise UserError(f"command line: {name} is not for experiments on pictures. {nearest(name, PICTURE_STAGES)}")
        return PictureSetup(config, origins, command=command), PICTURE_STAGES[name]
    from dpo_jax.stages.setup import Setup

    return Setup(config, origins, command=command), STAGES[name].run  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
