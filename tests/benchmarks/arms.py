"""The two arms of `against_trl.py`, each a process that trains when it is told to: `python arms.py JSON`.

A worker trains its real loop, stops before a step and says `{"ready": ...}`; each line `N` that it reads lets it go on
for N steps, after which it says what they took; `end` ends it. So the arms can take turns in one run.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Turns:
    """Stops a training loop after each turn of steps and says what the turn took; at its end, the memory it needed."""

    def __init__(self, peak_bytes: Callable[[], int], **about: Any):
        self._left, self._about, self._said, self._peak_bytes = 0, about, sys.stdout, peak_bytes
        sys.stdout = sys.stderr  # what libraries print is no answer

    def after_step(self, compiled: int) -> None:
        """Called when a step and all that it did are done; `compiled` counts compilations so far."""
        if self._left > 1:
            self._left -= 1
            return
        if self._left == 1:
            wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
            self._say({"wall": wall, "cpu": cpu, "compiled": compiled - self._compiled})
        else:
            self._say({"ready": True, **self._about})
        told = sys.stdin.readline().strip()
        if told in ("end", ""):
            self._say({"peak_bytes": self._peak_bytes()})
            os._exit(0)
        self._left, self._compiled = int(told), compiled
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def is_last(self) -> bool:
        """True if the step that is done ends the turn."""
        return self._left <= 1

    def _say(self, answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=self._said, flush=True)


def resident_bytes() -> int:
    """The most memory this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def train_ours(work: dict[str, Any], workdir: Path) -> None:
    """`dpo-jax train`, with our defaults: the layout that shares prompts, the reference from the store."""
    import jax
    from work import write_config

    from dpo_jax import cli
    from dpo_jax.experiments import training

    compiled = 0

    def count(name: str, *_: Any, **__: Any) -> None:
        nonlocal compiled
        compiled += name.endswith("backend_compile_duration")

    jax.monitoring.register_event_duration_secs_listener(count)
    device = jax.devices()[0]
    on_device = device.platform != "cpu"
    turns = Turns(
        lambda: device.memory_stats()["peak_bytes_in_use"] if on_device else resident_bytes(),
        version=f"jax {jax.__version__}, {device.device_kind}",
    )
    train_loop = training.train_loop

    def gated(*arguments: Any, callbacks: Any, **options: Any) -> Any:
        def after(done: int, state: Any) -> tuple[Any, dict[str, float]]:
            if turns.is_last():
                jax.block_until_ready(state)
            turns.after_step(compiled)
            return state, {}

        return train_loop(*arguments, callbacks=dataclasses.replace(callbacks, after=after), **options)

    training.train_loop = gated
    path = write_config(
        workdir.with_suffix(".yaml"),
        work["model"],
        work["rows"],
        model={"dtype": work.get("dtype", "float32")},
        data={"max_tokens": work["tokens"], "max_prompt_tokens": work["tokens"] - 1},
        train={"batch_pairs": work["pairs"], "steps": 1_000_000, "log_every": 1000},
    )
    cli.main(["train", str(path)])


def train_trl(work: dict[str, Any], workdir: Path) -> None:
    """TRL's DPOTrainer without gradient checkpointing, with the settings that the arm asks for.

    Parameters are float32, as ours are; with `dtype: bfloat16` it computes under autocast.
    """
    import datasets
    import torch
    import trl
    from transformers import TrainerCallback
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    warnings.simplefilter("ignore")
    torch.set_num_threads(os.cpu_count() or 1)
    on_device = torch.cuda.is_available()
    turns = Turns(
        torch.cuda.max_memory_allocated if on_device else resident_bytes,
        version=f"trl {trl.__version__}, torch {torch.__version__}",
    )

    class Gate(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if on_device and turns.is_last():
                torch.cuda.synchronize()
            turns.after_step(0)

    rows = [json.loads(line) for line in Path(work["rows"]).read_text().splitlines()]
    if work.get("sorted"):
        rows.sort(
            key=lambda row: len(row["prompt"].split()) + max(len(row[name].split()) for name in ("chosen", "rejected"))
        )
    config = DPOConfig(
        output_dir=str(workdir),
        max_length=work["tokens"],
        per_device_train_batch_size=work["pairs"],
        max_steps=1_000_000,
        bf16=work.get("dtype") == "bfloat16",
        use_cpu=not on_device,
        model_init_kwargs={"dtype": "float32"},
        gradient_checkpointing=False,
        precompute_ref_log_probs=work["cached"],
        train_sampling_strategy="sequential" if work.get("sorted") else "random",
        logging_steps=1000,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    DPOTrainer(work["model"], args=config, train_dataset=datasets.Dataset.from_list(rows), callbacks=[Gate()]).train()


ARMS = {"ours": train_ours, "trl": train_trl}

if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    ARMS[asked["arm"]](asked, Path(asked["workdir"]))
