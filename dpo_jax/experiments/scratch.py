"""A small Llama made from nothing: a tokenizer that some texts teach, random weights. What experiments start from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import Mesh

from dpo_jax import locks
from dpo_jax.config import Config, ScratchConfig
from dpo_jax.data.sources import COMPLETIONS, read_sources
from dpo_jax.errors import UserError
from dpo_jax.models.model import make_model
from dpo_jax.reading import Origins, locate, located
from dpo_jax.runtime import hosts
from dpo_jax.runtime.progress import say
from dpo_jax.training.state import param_shardings
from dpo_jax.weights.export import export_folder
from dpo_jax.weights.resolve import resolve_spec
from dpo_jax.weights.source import WeightsSource, no_tensor, token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END = "<|endoftext|>"


def make(config: Config, origins: Origins, mesh: Mesh) -> None:
    """Writes the folder that `model.weights` names, with random weights made on the mesh.

    Raises:
        UserError: the configuration does not say what to make, or the folder would be no folder.
    """
    options, folder = config.scratch, Path(config.model.weights)
    if options is None:
        raise UserError("scratch: the configuration has no `scratch:` section, which would say what to make.")
    if ":" in folder.name or folder.suffix == ".gguf":
        at = locate("model.weights", origins)
        raise UserError(f"{at}: model.weights: {folder} is not the name of a folder, into which `scratch` would write.")
    if is_there(config):
        say("scratch", f"already there: {folder}")
        return
    _check(options, origins)
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    lock = locks.Lock(locks.beside(folder.resolve()), waits=True, tell=lambda words: say("scratch", words))
    with hosts.held(lock):
        if is_there(config):
            say("scratch", f"another run has made {folder}")
        else:
            with located("scratch.data", origins):
                texts = list(_texts(options, on_error=config.data.on_error))
            _write(folder, options, mesh, iter(texts))


def is_there(config: Config) -> bool:
    """True if the folder of weights is there, for all processes of the run."""
    there = Path(config.model.weights).exists()
    return hosts.alike(there) and there


def _write(folder: Path, options: ScratchConfig, mesh: Mesh, texts: Iterator[str]) -> None:
    tokenizer = learn_tokenizer(texts, options.vocabulary)
    outline = _config(options, len(tokenizer), tokenizer.get_vocab()[END])
    source = WeightsSource(str(folder), outline, token_ids(outline), {}, no_tensor, lambda: tokenizer)
    resolved = resolve_spec(source)
    model = make_model(resolved.spec)
    shardings = param_shardings(mesh, model.tree)
    params = jax.jit(model.init, out_shardings=shardings)(jax.random.key(options.seed))
    export_folder(folder, params, model, resolved.rules, source)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    say("scratch", f"wrote {folder}: {size:,} random parameters, {len(tokenizer):,} tokens")


def _check(options: ScratchConfig, origins: Origins) -> None:
    if options.width % (2 * options.heads):
        at = locate("scratch.width", origins)
        raise UserError(
            f"{at}: scratch.width: {options.width} is no multiple of {2 * options.heads}, twice scratch.heads: each "
            "head takes an even part of it."
        )
    if options.vocabulary <= 256:
        at = locate("scratch.vocabulary", origins)
        raise UserError(f"{at}: scratch.vocabulary: {options.vocabulary}; there are 256 bytes and {END}: at least 257.")


def _texts(options: ScratchConfig, *, on_error: str) -> Iterator[str]:
    for row in read_sources(COMPLETIONS, options.data, on_error=on_error, seed=options.seed).rows:
        for text in (row.prompt, row.completion):
            yield from [text] if isinstance(text, str) else [str(turn["content"]) for turn in text]


def learn_tokenizer(texts: Iterator[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of at most so many tokens, one of which ends and pads."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=END, clean_up_tokenization_spaces=False
    )


def _config(options: ScratchConfig, vocabulary: int, end: int) -> dict[str, Any]:
    """The `config.json` of a Llama with tied embeddings."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": options.width,
        "intermediate_size": options.mlp_width,
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.heads,
        "num_key_value_heads": options.heads,
        "hidden_act": "silu",
        "max_position_embeddings": options.max_positions,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
    }
