"""The command line: `dpo-jax COMMAND CONFIG [--key.sub value ...]`.

Exit codes: 0 done, 1 crashed, 2 a mistake in the configuration, the data or on the command line, 124 a step hung,
130 interrupted, 143 told to stop by SIGTERM. After 124 and 143 the same command goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from dpo_jax import __version__

try:
    from dpo_jax.commands.table import COMMANDS, Command
    from dpo_jax.config import AnyConfig, PictureConfig, load
except ModuleNotFoundError as error:  # installed for the losses alone
    raise SystemExit(
        f"dpo-jax: the package {error.name} is not installed; the commands need all of `pip install dpo-jax`."
    ) from None
from dpo_jax.errors import UserError, check_local, nearest, printable
from dpo_jax.masking import mask
from dpo_jax.runtime import xla_flags

if TYPE_CHECKING:
    from dpo_jax.experiments.steps import Steps

_EPILOG = """\
Every value of the configuration can be set after it:  --train.steps 200  --loss.options.beta 0.2
`dpo-jax COMMAND --help` lists the settings that a command reads, `dpo-jax losses` the losses with their options.
`dpo-jax config show CONFIG` prints the merged configuration and where each value came from.
Every command takes --verbose, which shows the whole traceback of an error."""


@dataclasses.dataclass
class _Running:
    """The facts of a crash: the command line, the command, and its working directory once that is known."""

    line: str
    command: str = "dpo-jax"
    workdir: Path | None = None
    verbose: bool = False
    owns_process: bool = False  # else it is called from Python, by who has own ways to hear of errors


class _Parser(argparse.ArgumentParser):
    """argparse whose mistakes read like all the others, and whose help is made when it is asked for."""

    more: Callable[[], str] | None = None
    """What stands at its end."""

    def format_help(self) -> str:
        """The help, with what stands at its end."""
        return super().format_help() + (self.more() if self.more else "")

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
    common = argparse.ArgumentParser(add_help=False)  # `main` has taken it out of the line
    common.add_argument("--verbose", action="store_true", help="show the whole traceback of an error")
    shared: dict[str, Any] = {"parents": [common], "allow_abbrev": False}
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, stage in COMMANDS.items():
        command = commands.add_parser(name, help=stage.help, description=stage.help, **shared)
        command.more = functools.partial(_settings_of, stage)
        command.add_argument("config", metavar="CONFIG", help=stage.named)
        for flag, text in stage.flags.items():
            command.add_argument(f"--{flag}", metavar=flag.upper(), help=text)
        for flag, text in stage.lists.items():
            command.add_argument(f"--{flag}", metavar=flag.upper(), help=text, action="append")
        for flag, text in stage.switches.items():
            command.add_argument(f"--{flag}", action="store_true", help=text)
        for flag, key in stage.settings.items():
            command.add_argument(f"--{flag}", metavar=flag.upper(), dest=key, help=f"short for --{key}")
    text = "config show: print the merged configuration; config schema: its JSON schema, for editors"
    show = commands.add_parser("config", help=text, description=text, **shared)
    show.add_argument("action", choices=["show", "schema"])
    show.add_argument("config", metavar="CONFIG", nargs="?", help="an experiment file, to be shown")
    commands.add_parser("losses", help="the losses with their options and defaults", **shared)
    store = commands.add_parser("store", help="store ls: the reference stores below a folder", **shared)
    store.add_argument("action", choices=["ls"])
    store.add_argument("folder", metavar="FOLDER", nargs="?", default=".")
    text = "check the digests of all that a run has written: checkpoints, stores, exports"
    verify = commands.add_parser("verify", help=text, description=text, **shared)
    verify.add_argument("folder", metavar="RUN", help="a working directory, or a store, checkpoints or export folder")
    text = "the configurations that come with the package: what each shows and costs; one of them, printed or copied"
    configs = commands.add_parser("configs", help=text, description=text, **shared)
    configs.add_argument("name", metavar="NAME", nargs="?", help="the one to print; default: all are listed")
    configs.add_argument("--copy", metavar="FILE", nargs="?", const="", help="write it there; default: NAME.yaml")
    configs.add_argument("--force", action="store_true", help="replace the file if it is there")
    text = "draft an experiment file for your rows, a model and this machine, with the reason beside each value"
    init = commands.add_parser("init", help=text, description=text, **shared)
    init.add_argument("data", metavar="DATA", nargs="*", help="files with rows, folders, hub ids; default: an example")
    init.add_argument("--model", metavar="MODEL", help="a folder, a hub id or a .gguf file; default: SmolLM2-135M")
    text = "the file to write, - for standard output; default: experiment.yaml in a terminal, else standard output"
    init.add_argument("--out", metavar="FILE", help=text)
    init.add_argument("--force", action="store_true", help="replace the file if it is there")
    init.add_argument("--yes", action="store_true", help="ask for nothing: take the defaults")
    text = "what this machine has, what of it will not work, and what to do"
    doctor = commands.add_parser("doctor", help=text, description=text, **shared)
    doctor.add_argument("--workdir", metavar="FOLDER", default=".", help="where runs are to be written; default: here")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `dpo-jax` command."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    running = _Running(mask(shlex.join(["dpo-jax", *given])), owns_process=arguments is None)
    running.verbose = "--verbose" in given
    try:
        _dispatch([each for each in given if each != "--verbose"], running)
    except UserError as error:
        _leave(2, mask(str(error)), error, running)
    except BrokenPipeError:  # who read what is printed has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor is it complained of at the end
        raise SystemExit(141) from None
    except KeyboardInterrupt as error:
        _leave(130, "interrupted; the same command goes on from the last checkpoint", error, running)
    except Exception as error:
        from dpo_jax.commands import crash

        kept = crash.keep(error, running.workdir, running.line)
        _leave(1, f"{crash.explain(error, running.command)}\n{kept}", error, running)


def _leave(code: int, message: str, error: BaseException, running: _Running) -> NoReturn:
    if running.verbose:
        from dpo_jax.commands import crash

        message += f"\n\n{crash.details(error)}"
    message = printable(message, lines=True)
    if "jax" not in sys.modules:  # a mistake that was found at once
        print(f"dpo-jax: {message}", file=sys.stderr)
        raise SystemExit(code)
    from dpo_jax.runtime.hosts import leave

    leave(code, message)


def _dispatch(arguments: Sequence[str], running: _Running) -> None:
    commands = [*COMMANDS, "config", *_WITHOUT_CONFIG]
    if arguments and not arguments[0].startswith("-") and arguments[0] not in commands:
        raise UserError(f"command line: {arguments[0]!r} is not a command. {nearest(arguments[0], commands)}")
    if "--config" in (word.partition("=")[0] for word in arguments):
        raise UserError("command line: name the experiment file without --config: `dpo-jax COMMAND FILE --key value`.")
    known, overrides = _parser().parse_known_args(arguments)
    running.command = known.command
    _check_local(known)
    schema = known.command == "config" and known.action == "schema"
    if known.command in _WITHOUT_CONFIG or schema:
        if overrides or (schema and known.config):
            word = (overrides or [known.config])[0]
            see = f"See `dpo-jax {known.command} --help`."
            raise UserError(f"command line: {known.command}: {word!r} is not understood. {see}")
        (_print_schema if schema else _WITHOUT_CONFIG[known.command])(known)
        return
    if known.config is None:
        raise UserError("command line: config show: name the experiment file, `dpo-jax config show CONFIG`.")
    for key in COMMANDS[known.command].settings.values() if known.command in COMMANDS else ():
        if (value := getattr(known, key)) is not None:
            overrides += [f"--{key}", value]
    stage = COMMANDS.get(known.command)
    config, origins = (stage.read if stage else load)(known.config, overrides)
    if known.command == "config":
        from dpo_jax.config import render

        print(render(config, origins, comments=True), end="")
        return
    _run_stage(known, config, origins, running)


def _check_local(known: argparse.Namespace) -> None:
    """Refuse flags that name what is not on this machine."""
    for name, value in vars(known).items():
        for each in value if isinstance(value, list) else [value]:
            try:
                check_local(each if isinstance(each, str) else "")
            except ValueError as error:
                flag = name.upper() if name in ("config", "folder", "data", "name") else f"--{name.replace('_', '-')}"
                raise UserError(f"command line: {flag}: {error}") from None


def _list_stores(known: argparse.Namespace) -> None:
    from dpo_jax.experiments.stores import describe

    print("\n".join(map(printable, describe(Path(known.folder)).split("\n"))))


def _verify(known: argparse.Namespace) -> None:
    from dpo_jax.commands.verify import verify

    verify(Path(known.folder))


def _doctor(known: argparse.Namespace) -> None:
    _quieten()
    asked = dict(os.environ)
    xla_flags.apply(os.environ)  # before jax is imported, which reads some of it then
    from dpo_jax.runtime import doctor

    doctor.run(Path(known.workdir), asked)


def _init(known: argparse.Namespace) -> None:
    _quieten()
    xla_flags.apply(os.environ)
    from dpo_jax.commands.init import run

    run(known.data, model=known.model, out=known.out, yes=known.yes, force=known.force)


def _configs(known: argparse.Namespace) -> None:
    from dpo_jax.commands.configs import run

    run(known.name, copy=known.copy, force=known.force)


def _print_losses(known: argparse.Namespace) -> None:
    from dpo_jax.commands.help import print_losses

    print_losses()


def _print_schema(known: argparse.Namespace) -> None:
    from dpo_jax.commands.help import print_schema

    print_schema()


def _settings_of(stage: Command) -> str:
    from dpo_jax.commands.help import describe_settings

    return describe_settings(stage.kinds, stage.sections)


_WITHOUT_CONFIG: dict[str, Callable[[argparse.Namespace], None]] = {
    "store": _list_stores,
    "verify": _verify,
    "doctor": _doctor,
    "init": _init,
    "configs": _configs,
    "losses": _print_losses,
}


def _quieten() -> None:
    """Libraries neither chatter nor send anything home."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that PyTorch is not there
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # of datasets and transformers too
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells there of its every move


def _run_stage(known: argparse.Namespace, config: Any, origins: dict[str, str], running: _Running) -> None:
    _quieten()
    running.workdir = Path(config.workdir)
    xla_flags.apply(os.environ)
    from dpo_jax.runtime import hosts, preemption, progress

    if running.owns_process and not running.verbose:
        progress.tell_briefly()
    stage = COMMANDS[known.command]
    experiment = _opened(known.command, config, origins, running.line)
    names = (flag.replace("-", "_") for flag in (*stage.flags, *stage.lists, *stage.switches))
    flags = {name: getattr(known, name) for name in names}
    run = stage.load()
    if stage.dry:
        run(experiment, **flags)
        return
    hosts.join_run()
    try:
        with experiment.in_use():
            run(experiment, **flags)
    except preemption.Preempted as told:
        hosts.leave_together(preemption.EXIT_CODE, printable(str(told), lines=True))
    except (Exception, KeyboardInterrupt):  # `main` says it, and ends this process as it must
        raise
    except BaseException:
        hosts.crash()
        raise


def _opened(command: str, config: AnyConfig, origins: dict[str, str], line: str) -> Steps:
    """The experiment, opened for a command that its kind has."""
    if isinstance(config, PictureConfig):
        from dpo_jax.experiments.picture_steps import PictureSteps as Opened
    else:
        from dpo_jax.experiments.text_steps import TextSteps as Opened
    if Opened.kind not in COMMANDS[command].kinds:
        allowed = [name for name, each in COMMANDS.items() if Opened.kind in each.kinds]
        raise UserError(f"command line: {command} is not for experiments on {Opened.kind}. {nearest(command, allowed)}")
    return Opened(config, origins, command=line)  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    main()
