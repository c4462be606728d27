"""Makes an archive of runs half way, and of the ends they come to, with the code of the commit that is checked out.

    git worktree add ../old 4740043
    PYTHONPATH=../old python tests/commands/older/make.py tests/commands/older/4740043.tar.xz

It imports nothing of the tests, because it runs on the code of older commits. The compiler is told what
`tests/conftest.py` tells it, so that the test may compare bits.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

WORDS = ("the", "a", "warm", "cold", "old", "new", "quiet", "lamp", "film", "day", "plot", "was", "is", "good", "bad")
SPECIAL = ("<unk>", "<s>", "</s>")
WIDTH, MLP, VOCABULARY = 8, 16, 32
SHAPES = {
    "model.embed_tokens": (VOCABULARY, WIDTH),
    "model.layers.0.self_attn.q_proj": (WIDTH, WIDTH),
    "model.layers.0.self_attn.k_proj": (WIDTH // 2, WIDTH),
    "model.layers.0.self_attn.v_proj": (WIDTH // 2, WIDTH),
    "model.layers.0.self_attn.o_proj": (WIDTH, WIDTH),
    "model.layers.0.mlp.gate_proj": (MLP, WIDTH),
    "model.layers.0.mlp.up_proj": (MLP, WIDTH),
    "model.layers.0.mlp.down_proj": (WIDTH, MLP),
    "model.layers.0.input_layernorm": (WIDTH,),
    "model.layers.0.post_attention_layernorm": (WIDTH,),
    "model.norm": (WIDTH,),
    "lm_head": (VOCABULARY, WIDTH),
}
FULL = {
    "workdir": "runs/full",
    "model": {"weights": "model"},
    "data": {
        "train": [{"path": "pairs.jsonl"}],
        "eval": [{"path": "held.jsonl"}],
        "max_prompt_tokens": 8,
        "max_tokens": 16,
    },
    "reference": {"store": "runs/stores", "rows_per_shard": 8, "batch_pairs": 8},
    "sft": {
        "data": {"train": [{"path": "pairs.jsonl", "columns": {"completion": "chosen"}}]},
        "train": {"batch_pairs": 8, "steps": 2},
    },
    "loss": {"name": "dpo", "options": {"beta": 0.1}},
    "optimizer": {"learning_rate": 1e-3},
    "train": {"batch_pairs": 8, "micro_batch_pairs": 4, "steps": 4, "save_every": 2, "keep": 1},
    "evaluation": {"every": 2, "samples": 2, "max_new_tokens": 2, "batch_rows": 8},
}
ADAPTER = {  # its loss has a state, a running mean; the base under the adapter is its reference
    "workdir": "runs/adapter",
    **{name: FULL[name] for name in ("model", "data", "optimizer", "train")},
    "loss": {"name": "bco_pair"},
    "lora": {"rank": 2, "alpha": 4},
}


def main(archive: Path) -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("half").mkdir()
        with contextlib.chdir("half"):
            _write_files()
        shutil.copytree("half", "whole")
        for place, steps in (("half", "2"), ("whole", "4")):
            with contextlib.chdir(place):
                _run("full", steps, "train", "evaluate", "export", "report")
                _run("adapter", steps, "train", "export")
        for name in ("full", "adapter"):
            Path(f"half/ends/{name}").mkdir(parents=True)
            shutil.copy(f"whole/runs/{name}/metrics.jsonl", f"half/ends/{name}")
            shutil.copy(f"whole/runs/{name}/export/model.safetensors", f"half/ends/{name}")
        Path("half/ends/compiler.json").write_text(json.dumps(compiler()))
        with contextlib.chdir("half"), tarfile.open(archive, "w:xz", preset=9) as tar:
            for path in sorted(Path().rglob("*")):
                if path.is_file() and "tensorboard" not in path.parts and path.name != "report.html":
                    tar.add(path)


def _run(name: str, steps: str, *commands: str) -> None:
    from dpo_jax import cli

    for command in commands:
        cli.main([command, f"{name}.yaml", "--train.steps", steps])


def compiler() -> dict[str, str]:
    """Return what decides the bits of a training beside the code: another processor may add in another order."""
    import jax

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    processor = next((line for line in lines if line.startswith("flags")), platform.processor())
    return {"jax": jax.__version__, "processor": processor, "flags": os.environ["XLA_FLAGS"]}


def _write_files() -> None:
    import numpy as np
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    draw = np.random.default_rng(0)

    def say(count: int) -> str:
        return " ".join(draw.choice(WORDS, count))

    for name, count in (("pairs", 12), ("held", 4)):
        rows = [{"prompt": say(4), "chosen": f" good {say(3)}", "rejected": f" bad {say(3)}"} for _ in range(count)]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("full.yaml").write_text(json.dumps(FULL))  # which is YAML too
    Path("adapter.yaml").write_text(json.dumps(ADAPTER))
    Path("model").mkdir()
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*SPECIAL, *WORDS])}, SPECIAL[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(prefix="")
    tokenizer.save("model/tokenizer.json")
    names = dict(zip(("unk_token", "bos_token", "eos_token"), SPECIAL, strict=True))
    files = {
        "config.json": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": VOCABULARY,
            "hidden_size": WIDTH,
            "intermediate_size": MLP,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": WIDTH // 2,
            "hidden_act": "silu",
            "max_position_embeddings": 64,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e4,
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 2,
            "dtype": "float32",
        },
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2},
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": SPECIAL[2], **names},
    }
    for name, content in files.items():
        Path("model", name).write_text(json.dumps(content))
    tensors = {}
    for name, shape in SHAPES.items():
        values = draw.standard_normal(shape)
        tensors[f"{name}.weight"] = np.asarray(1 + 0.1 * values if len(shape) == 1 else 0.4 * values, np.float32)
    save_file(tensors, "model/model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUMPY_RANK_PROMOTION": "raise",
        "HF_HUB_OFFLINE": "1",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
        "--xla_cpu_experimental_ynn_fusion_type= --xla_cpu_use_fusion_emitters=false",
    }
    platform.platform = lambda *_, **__: "Linux"  # a run's history says on what machine it was
    main(Path(sys.argv[1]).absolute())
