"""The merged configuration as text."""

from __future__ import annotations

from typing import Any

from dpo_jax.config import AnyConfig, as_mapping
from dpo_jax.reading import Origins


def render(config: AnyConfig, origins: Origins, *, comments: bool) -> str:
    """The merged configuration as YAML; with comments, each value says where it came from."""
    import yaml

    mapping = as_mapping(config)
    if not comments:
        return yaml.safe_dump(mapping, sort_keys=False, allow_unicode=True)
    lines: list[str] = []

    def walk(value: Any, key: str, depth: int) -> None:
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            below = f"{key}.{name}" if key else str(name)
            label = f"{'  ' * depth}{name}:" if isinstance(value, dict) else f"{'  ' * depth}-"
            if isinstance(item, dict | list) and item:
                lines.append(label)
                walk(item, below, depth + 1)
            else:
                text = yaml.safe_dump(item, default_flow_style=True, allow_unicode=True).removesuffix("\n...\n").strip()
                lines.append(f"{label} {text}".ljust(48) + f"  # {origins.get(below, 'default')}")

    walk(mapping, "", 0)
    return "\n".join(lines) + "\n"
