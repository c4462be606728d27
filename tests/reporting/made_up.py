"""A made-up run, whole and lifelike: 40 steps of DPO on one-line reviews, judged on samples."""

from __future__ import annotations

import math
import random
from typing import Any

from dpo_jax.evaluation.records import Evaluation, Fitted
from dpo_jax.reporting.data import SplitReport
from dpo_jax.reporting.report import RunReport

SAMPLES = (
    ("A film so slow that the popcorn aged.", "A small, bright film that earns each of its tears.", 0.08, 0.97),
    ("The cast tries; the script does not.", "Funny, humane and beautifully played to the last scene.", 0.21, 0.98),
    ("Two hours of fog, and then the credits.", "A warm and clever story, told with a light hand.", 0.12, 0.95),
    ("Pleasant enough, though it never wakes up.", "One of the year's gentlest surprises.", 0.55, 0.93),
    ("It has its moments, all of them early.", "It has its moments, and they are wonderful.", 0.33, 0.91),
    ("An honest picture of a small town.", "An honest, moving picture of a small town. " * 12, 0.78, 0.96),
    ("Loud.", "Loud, proud and joyful.", 0.4, 0.9),
    ("I left early.", "I would gladly see it again.", 0.1, 0.88),
)
EVALUATION: dict[str, Any] = {
    "heldout": {"pairs": 64, "accuracy": 0.813, "accuracy_interval": [0.7, 0.89], "margin": 13.42, "loss": 0.412},
    "kl": {"sequence_kl": 4.83, "interval": [4.31, 5.36], "samples": 128},
    "judged": {
        "judge": "classifier",
        "reference": {"positive": 0.555, "interval": [0.468, 0.638]},
        "policy": {"positive": 0.906, "interval": [0.844, 0.946]},
        "difference": 0.351,
        "difference_interval": [0.25, 0.449],
        "samples": 128,
    },
    "samples": [
        {"prompt": "Write a one-line movie review.", "reference": before, "policy": after}
        | {"reference_score": low, "policy_score": high}
        for before, after, low, high in SAMPLES
    ],
}
_TEXTS = {"words": 10.0, "words_interval": [9.0, 11.0], "empty": 0.0, "distinct_1": 0.4, "distinct_2": 0.8}
WHOLE: dict[str, Any] = EVALUATION | {
    "heldout": EVALUATION["heldout"]
    | {
        "by_length": {"chosen_longer": {"pairs": 40, "accuracy": 0.9, "accuracy_interval": [0.77, 0.96]}},
        "by_source": {"one": {"pairs": 64, "accuracy": 0.813, "accuracy_interval": [0.7, 0.89]}},
    },
    "kl": EVALUATION["kl"]
    | {"exact": 4.7, "exact_interval": [4.2, 5.2], "k1": 4.83, "k1_interval": [4.31, 5.36], "k2": 6.1, "k3": 4.9},
    "entropy": {"token": 2.31, "sequence": 30.1, "sequence_interval": [28.0, 32.0]},
    "tokens": 13.5,
    "tokens_interval": [12.5, 14.5],
    "texts": {"policy": {**_TEXTS, "words": 11.0, "repeated": 0.02}, "reference": {**_TEXTS, "repeated": 0.01}},
    "judged": {
        "judge": "http",
        "samples": 128,
        **{"win_rate": 0.875, "win_rate_interval": [0.81, 0.93], "wins": 110, "ties": 4, "losses": 14},
        "order": {"flipped": 0.08, "first_preferred": 0.56}
        | {"policy_first": 0.93, "policy_first_interval": [0.88, 0.97]}
        | {"policy_second": 0.82, "policy_second_interval": [0.75, 0.88]},
        "usage": {"requests": 256, "retries": 0, "cached": 0, "not_understood": 0, "cost": 0.0123},
        "length_controlled": {"win_rate": 0.85, "win_rate_interval": [0.77, 0.92], "length_effect": 0.3, "longer": 0.6},
    },
    "rewardbench": {
        "policy": {"accuracy": 0.61, "sections": {"Chat": {"accuracy": 0.7}, "Safety": {"accuracy": 0.5}}},
        "judge": {
            "name": "http",
            "accuracy": 0.88,
            "sections": {"Chat": {"accuracy": 0.9}, "Safety": {"accuracy": 0.8}},
        },
    },
    "samples": [
        {"prompt": f"Write review {number}.", "reference": before, "policy": after, "verdict": verdict}
        for number, ((before, after, _, _), verdict) in enumerate(
            zip(SAMPLES, (1, 0.75, 0.5, 0, 1, 1, 1, 1), strict=True)
        )
    ],
}
FITTED = Fitted(responses=64, perplexity=18.2, before_fine_tuning=32.4, fitted=True)
_FACTS = ("pairs labelled both ways", "prompts also in data.train", "of the pairs have the longer response chosen")
DATA = [
    SplitReport(
        name=name,
        facts=[("rows kept", rows, False)]
        + [(what, count, count in marked) for what, count in zip(_FACTS, counts, strict=True)],
        percentiles=[50, 90, 99, 100],
        lengths={"prompt": [11, 14, 20, 23], "chosen": [16, 30, 41, 1200]},
        examples=[],
    )
    for name, rows, counts, marked in (
        ("data.train", "1,256", ("0", "0", "52%"), ()),
        ("data.eval", "64", ("0", "3", "64%"), ("3", "64%")),
    )
]
CONFIG: dict[str, Any] = {
    "workdir": "runs/reviews",
    "seed": 0,
    "model": {"weights": "package:some-model", "dtype": "float32"},
    "data": {"train": [{"path": "data/pairs.jsonl"}], "template": "tokenizer", "max_tokens": 512},
    "loss": {"name": "dpo", "options": {"beta": 0.1}},
    "optimizer": {"name": "adamw", "learning_rate": 3e-5, "warmup_steps": 4},
    "train": {"batch_pairs": 8, "micro_batch_pairs": 4, "steps": 40},
    "sft": {"train": {"steps": 40, "batch_rows": 16}, "optimizer": {"learning_rate": 1e-4}},
}


def preference_rows(steps: int = 40) -> list[dict[str, float]]:
    dice, rows = random.Random(0), []
    for step in range(1, steps + 1):
        gain = (step - 1) / steps
        chosen, rejected = 1.5 * gain + dice.gauss(0, 0.6), -16 * gain**1.3 + dice.gauss(0, 1.2)
        base = -72 + dice.gauss(0, 4)
        margin = 0.1 * (chosen - rejected) if step > 1 else 0.0
        rows.append(
            {
                "step": step,
                "loss": math.log1p(math.exp(-margin)),
                "grad_norm": 9 + dice.gauss(0, 1.5) - 3 * gain,
                "learning_rate": 3e-5 * min(1, step / 4),
                "rewards/chosen": 0.1 * chosen,
                "rewards/rejected": 0.1 * rejected,
                "rewards/margins": margin,
                "rewards/accuracies": min(1.0, round(8 * (0.5 + 0.5 * gain + dice.gauss(0, 0.08))) / 8),
                "logps/chosen": base + chosen,
                "logps/rejected": base + 2 + rejected,
                "log_ratios/chosen": chosen if step > 1 else 0.0,
                "log_ratios/rejected": rejected if step > 1 else 0.0,
                "tokens_per_second": 410 + dice.gauss(0, 12),
                "pairs_per_second": 3.1 + dice.gauss(0, 0.1),
            }
        )
    return rows


def supervised_rows(steps: int = 40) -> list[dict[str, float]]:
    dice = random.Random(1)
    return [{"step": step, "loss": 3.4 + 0.9 * math.exp(-step / 9) + dice.gauss(0, 0.05)} for step in range(steps)]


def measured(evaluation: Any) -> Evaluation:
    """The record of what an evaluation.json holds."""
    return Evaluation.from_json(evaluation)


def made_up_run() -> RunReport:
    return RunReport(
        title="Kinder one-line reviews",
        command="dpo-jax run configs/reviews.yaml --loss.options.beta 0.1 --seed 0",
        created="2025-01-31",
        environment={"dpo_jax": "0.1.0", "python": "3.13.1", "jax": "0.12.0", "devices": "1 cpu", "machine": "2 cores"},
        config=CONFIG,
        metrics=preference_rows(),
        sft_metrics=supervised_rows(),
        evaluation=measured(EVALUATION),
    )
