"""The way in from Python: `load` a model, `train` it on preferences, and ask the `Result`.

    import dpo_jax as dj

    policy = dj.load("Qwen/Qwen3-0.6B")
    result = dj.train(policy, "pairs.jsonl", loss="dpo", beta=0.1, steps=100, template="tokenizer")
    print(result.metrics[-1], result.sample(["Hello"]))
    result.save("out")

It opens the experiments that the command line opens: a run's folder can be read by `dpo-jax report`, and a call that
was interrupted goes on where the same call is made again with its `workdir`.
"""

from dpo_jax.api.model import Model, Policy, load
from dpo_jax.api.result import Result
from dpo_jax.api.train import train

__all__ = ["Model", "Policy", "Result", "load", "train"]
