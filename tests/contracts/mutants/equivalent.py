"""Bugs that are none: by file and name, why nothing that anyone could see changes."""

from __future__ import annotations

EQUIVALENT: dict[str, str] = {
    "losses/statistics.py: replicated: without a constraint on an Auto mesh": (
        "A constraint says where a value lies, never what it is: on an Auto mesh the compiler finds the shardings, and "
        "a sort over a split axis is gathered all the same."
    ),
    "losses/statistics.py: replicated: constrains inside shard_map": (
        "Inside shard_map a value is the shard's own and lies on one device, so a constraint asks for nothing."
    ),
    "losses/transport.py: aot: gradient asked of the order": (
        "The order is whole numbers, which carry no gradient; stopping it saves JAX the derivative of a sort."
    ),
    "losses/stateful.py: alpha_dpo: 0 / 0 where nothing deviates": (
        "z carries no gradient, so the where around the quotient is enough: what 0 / 0 gives is thrown away."
    ),
    "stages/objectives.py: gradient flows into the frozen reference": (
        "The step takes its gradient by the policy's parameters alone; the frozen ones are another argument."
    ),
    "stages/objectives.py: gradient flows through the mismatched completions": (
        "mismatched_kl detaches what it is given, and nothing else reads those log-probs."
    ),
}
