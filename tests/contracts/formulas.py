"""Each loss once more as its paper writes it, in NumPy and float64, and not from the code of the package.

`FORMULAS[name](b, still, **knobs)` gives the losses [B] of a batch `b`. What is detached is computed from `still`, an
equal batch that does not move: differences in `b` alone then give the gradient. A loss that is added to the tables
needs a line here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

Formula = Callable[..., np.ndarray]


def ls(x: np.ndarray) -> np.ndarray:
    return -np.logaddexp(0.0, -x)


def s(x: np.ndarray) -> np.ndarray:
    return np.exp(ls(x))


def smoothed(x: np.ndarray, e: Any) -> np.ndarray:
    return -(1 - e) * ls(x) - e * ls(-x)


def a(b: Any) -> np.ndarray:
    return b.chosen - b.frozen_chosen


def b_(b: Any) -> np.ndarray:
    return b.rejected - b.frozen_rejected


def h(b: Any) -> np.ndarray:
    return a(b) - b_(b)


def averaged(b: Any) -> np.ndarray:
    return b.chosen / b.chosen_tokens - b.rejected / b.rejected_tokens


def averaged_margin(b: Any) -> np.ndarray:
    return a(b) / b.chosen_tokens - b_(b) / b.rejected_tokens


def exo_pair(b: Any, still: Any, *, beta: Any = 0.1, label_smoothing: Any = 1e-3) -> np.ndarray:
    """The KL divergence of the policy's choice, (s(x), s(-x)), from the label, (1 - e, e)."""
    chosen = s(beta * h(b))
    return chosen * np.log(chosen / (1 - label_smoothing)) + (1 - chosen) * np.log((1 - chosen) / label_smoothing)


def discopop(b: Any, still: Any, *, beta: Any = 0.05, temperature: Any = 0.05) -> np.ndarray:
    x = beta * h(b)
    m = s(x / temperature)
    return -(1 - m) * ls(x) + m * np.exp(-x)


def f_dpo(b: Any, still: Any, *, beta: Any = 0.1, divergence: str = "reverse_kl", alpha: Any = 0.5) -> np.ndarray:
    bent = {
        "reverse_kl": lambda u: u,
        "forward_kl": lambda u: 1 - np.exp(-u),
        "js": lambda u: np.log(2) - np.log1p(np.exp(-u)),
        "alpha": lambda u: (1 - np.exp(-alpha * u)) / alpha,
    }[divergence]
    return -ls(beta * (bent(a(b)) - bent(b_(b))))


def chi_po(b: Any, still: Any, *, beta: Any = 0.1, clip: Any = None) -> np.ndarray:
    x = beta * (a(b) + np.exp(a(b)) - b_(b) - np.exp(b_(b)))
    return -ls(x if clip is None else np.clip(x, -2 * clip, 2 * clip))


def sppo(b: Any, beta: Any) -> np.ndarray:
    return (a(b) - 1 / (2 * beta)) ** 2 + (b_(b) + 1 / (2 * beta)) ** 2


def by_rank(upper: np.ndarray, lower: np.ndarray, beta: Any, e: Any) -> np.ndarray:
    return smoothed(beta * (np.sort(upper) - np.sort(lower)), e)


def orpo(b: Any, still: Any) -> np.ndarray:
    p, q = np.exp(b.chosen / b.chosen_tokens), np.exp(b.rejected / b.rejected_tokens)
    return -ls(np.log(p / (1 - p)) - np.log(q / (1 - q)))


def alpha_po(b: Any, still: Any, *, beta: Any = 2.5, gamma: Any = 1.375, alpha: Any = 0.25) -> np.ndarray:
    chosen, rejected = np.exp(-alpha * b.chosen / b.chosen_tokens), np.exp(-alpha * b.rejected / b.rejected_tokens)
    return -ls(beta * ((1 - chosen) / alpha - (1 - rejected) / alpha) - gamma)


def sft(b: Any, still: Any, *, nll_reduction: str = "token") -> np.ndarray:
    return -b.chosen / {"token": b.chosen_tokens.mean(), "sequence": b.chosen_tokens, "sum": 1.0}[nll_reduction]


def tdpo2(b: Any, still: Any, *, beta: Any = 0.1, alpha: Any = 0.5) -> np.ndarray:
    return -ls(beta * (h(b) - alpha * (b.rejected_kl - still.chosen_kl)))


def next_state(name: str, b: Any, state: Any, decay: Any) -> tuple[float, float, float]:
    """The averages after a batch: of its mean, of its standard deviation, and how many batches there were."""
    values = averaged_margin(b) if name == "alpha_dpo" else h(b)
    mean = decay * state.mean + (1 - decay) * values.mean()
    return mean, decay * state.std + (1 - decay) * values.std(ddof=1), state.count + 1


def alpha_dpo(b: Any, still: Any, *, state: Any, beta: Any = 2.5, gamma: Any = 1.5, alpha: Any = 0.2,
              decay: Any = 0.9, std_floor: Any = 1e-4, bias_correction: bool = False) -> np.ndarray:  # fmt: skip
    mean, std, count = next_state("alpha_dpo", still, state, decay)
    whole = 1 - decay**count if bias_correction else 1.0
    z = (averaged_margin(still) - mean / whole) / (std / whole) if std / whole > std_floor else 0.0
    return -ls(beta * (averaged(b) - (alpha * z + gamma / beta)))


def beta_dpo(b: Any, still: Any, *, state: Any, beta: Any = 0.1, a: Any = 0.6, filter_fraction: Any = 0.2,
             decay: Any = 0.9) -> np.ndarray:  # fmt: skip
    mean, std, _ = next_state("beta_dpo", still, state, decay)
    lots = -0.5 * ((h(still) - mean) / std) ** 2 + np.asarray(jax.random.gumbel(jax.random.key(0), (len(b.chosen),)))
    kept = int(len(lots) * (1 - filter_fraction))
    drawn = lots >= np.sort(lots)[-kept]
    used = max(1e-3, beta * (1 + a * (h(still)[drawn].mean() - mean)))
    return np.where(drawn, -ls(used * h(b)) * len(lots) / kept, 0.0)


def weighed(b: Any, good: np.ndarray, bad: np.ndarray, desirable_weight: Any, undesirable_weight: Any) -> np.ndarray:
    return np.where(b.desirable, desirable_weight * good, undesirable_weight * bad)


def kto(b: Any, still: Any, *, level: Any, beta: Any = 0.1, desirable_weight: Any = 1.0,
        undesirable_weight: Any = 1.0) -> np.ndarray:  # fmt: skip
    x = beta * (a(b) - max(0.0, level))
    return weighed(b, 1 - s(x), 1 - s(-x), desirable_weight, undesirable_weight)


def apo_zero_unpaired(b: Any, still: Any, *, beta: Any = 0.1, desirable_weight: Any = 1.0,
                      undesirable_weight: Any = 1.0) -> np.ndarray:  # fmt: skip
    return weighed(b, 1 - s(beta * a(b)), s(beta * a(b)), desirable_weight, undesirable_weight)


def plackett_luce(b: Any, still: Any) -> np.ndarray:
    """The best is drawn from three, then the second from the two that are left."""
    best, second, last = np.exp(b.chosen), np.exp(b.frozen_chosen), np.exp(b.rejected)
    return -np.log(best / (best + second + last)) - np.log(second / (second + last))


def diffusion_kto(b: Any, still: Any, *, level: Any, beta: Any = 5000.0) -> np.ndarray:
    return 1 - s(np.where(b.desirable, 1, -1) * beta * (-a(b) - level))


FORMULAS: dict[str, Formula] = {
    "dpo": lambda b, _, *, beta=0.1, label_smoothing=0.0: smoothed(beta * h(b), label_smoothing),
    "robust_dpo": lambda b, _, *, beta=0.1, label_smoothing=0.1: (
        (-(1 - label_smoothing) * ls(beta * h(b)) + label_smoothing * ls(-beta * h(b))) / (1 - 2 * label_smoothing)
    ),
    "ipo": lambda b, _, *, beta=0.1, average=True: ((averaged_margin(b) if average else h(b)) - 1 / (2 * beta)) ** 2,
    "hinge": lambda b, _, *, beta=0.1: np.maximum(0, 1 - beta * h(b)),
    "exo_pair": exo_pair,
    "nca_pair": lambda b, _, *, beta=0.1: -ls(beta * a(b)) - 0.5 * ls(-beta * a(b)) - 0.5 * ls(-beta * b_(b)),
    "bco_pair": lambda b, _, *, beta=0.1, delta=0.0: -ls(beta * a(b) - delta) - ls(-(beta * b_(b) - delta)),
    "sppo_hard": lambda b, _, *, beta=0.001: sppo(b, beta),
    "aot": lambda b, _, *, beta=0.1, label_smoothing=0.0: by_rank(
        b.chosen - b.rejected, b.frozen_chosen - b.frozen_rejected, beta, label_smoothing
    ),
    "aot_unpaired": lambda b, _, *, beta=0.1, label_smoothing=0.0: by_rank(a(b), b_(b), beta, label_smoothing),
    "apo_zero": lambda b, _, *, beta=0.1: 1 - s(beta * a(b)) + s(beta * b_(b)),
    "apo_down": lambda b, _, *, beta=0.1: s(beta * a(b)) + 1 - s(beta * h(b)),
    "discopop": discopop,
    "f_dpo": f_dpo,
    "chi_po": chi_po,
    "dpop": lambda b, _, *, beta=0.3, penalty=50.0: -ls(beta * (h(b) - penalty * np.maximum(0, -a(b)))),
    "length_normalized_dpo": lambda b, _, *, beta=5.0: -ls(beta * averaged_margin(b)),
    "r_dpo": lambda b, _, *, beta=0.1, penalty=0.05: -ls(beta * h(b) + penalty * (b.chosen_tokens - b.rejected_tokens)),
    "cal_dpo": lambda b, _, *, beta=0.001: -ls(h(b)) + 0.5 * sppo(b, beta),
    "simpo": lambda b, _, *, beta=2.5, gamma=1.375, label_smoothing=0.0: smoothed(
        beta * averaged(b) - gamma, label_smoothing
    ),
    "cpo": lambda b, _, *, beta=0.1, label_smoothing=0.0: smoothed(beta * (b.chosen - b.rejected), label_smoothing),
    "orpo": orpo,
    "slic_hf": lambda b, _, *, delta=1.0: np.maximum(0, delta - b.chosen + b.rejected),
    "alpha_po": alpha_po,
    "sft": sft,
    "tdpo1": lambda b, _, *, beta=0.1: -ls(beta * (h(b) - (b.rejected_kl - b.chosen_kl))),
    "tdpo2": tdpo2,
    "alpha_dpo": alpha_dpo,
    "beta_dpo": beta_dpo,
    "kto": kto,
    "apo_zero_unpaired": apo_zero_unpaired,
    "bco": lambda b, _, *, level, beta=0.1: -ls(np.where(b.desirable, 1, -1) * (beta * a(b) - level)),
    "bradley_terry": lambda b, _, *, margin=0.0, center=0.0: (
        -ls(b.chosen - b.rejected - margin) + center * (b.chosen + b.rejected) ** 2
    ),
    "preference_score": lambda b, _, *, beta=1.0: np.log1p(np.exp(beta * (b.rejected - b.chosen))),
    "plackett_luce": plackett_luce,
    # Half of beta times the margin of the errors, of which less is better.
    "diffusion_dpo": lambda b, _, *, beta=5000.0: -ls(-0.5 * beta * h(b)),
    "diffusion_kto": diffusion_kto,
}
