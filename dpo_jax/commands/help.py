"""The settings of a command for its `--help`, the losses for `dpo-jax losses`, and the schema for editors."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterable

from dpo_jax.config import Config, PictureConfig
from dpo_jax.config.settings import Setting, json_schema, settings_of

_KINDS = {"texts": Config, "pictures": PictureConfig}


def describe_settings(kinds: Iterable[str], sections: frozenset[str] | None) -> str:
    """The settings that a command reads, of each kind of experiment; those that both have stand there once."""
    lines: list[str] = []
    seen: set[Setting] = set()
    for kind in sorted(kinds, reverse=True):
        own = [each for each in settings_of(_KINDS[kind], sections) if each not in seen]
        seen.update(own)
        lines += ["", f"settings of an experiment on {kind}, {'others than those above' if lines else 'in CONFIG'}:"]
        lines += [_line(each) for each in own]
    return "\n".join(lines) + "\n"


def _line(setting: Setting) -> str:
    default = "it is needed" if setting.default == "needed" else f"default: {setting.default}"
    told = setting.default == "none" and "default:" in setting.meaning  # better than by a word
    text = "; ".join([setting.kind, *[default] * (not told), *[setting.meaning] * bool(setting.meaning)])
    width = max(60, shutil.get_terminal_size((120, 24)).columns)
    return textwrap.fill(text, width, initial_indent=f"  --{setting.key:<33} ", subsequent_indent=" " * 38)


def print_losses() -> None:
    """Print every loss with its options."""
    from dpo_jax.experiments.losses import describe

    for name, reads, summary, options in describe():
        print(f"{name}: {summary}\n  reads {reads}\n" + "".join(f"  --loss.options.{option}\n" for option in options))


def print_schema() -> None:
    """Print the JSON schema of experiment files, with the losses that they may name."""
    from dpo_jax.experiments.losses import TRAINED

    schema = json_schema(Config, PictureConfig)
    schema["$defs"]["LossConfig"]["properties"]["name"] |= {"enum": sorted(TRAINED)}
    print(json.dumps(schema, indent=1))
