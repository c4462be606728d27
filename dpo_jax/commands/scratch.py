"""A small Llama made from nothing: a tokenizer that some texts teach, random weights. What experiments start from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from dpo_jax.config import ScratchConfig
from dpo_jax.data.sources import read_completions
from dpo_jax.errors import UserError
from dpo_jax.experiments.texts import TextExperiment
from dpo_jax.models.decoder import make_model
from dpo_jax.reading import locate
from dpo_jax.runtime.progress import say
from dpo_jax.training.state import param_shardings
from dpo_jax.weights.export import export_folder
from dpo_jax.weights.folder import no_tensor
from dpo_jax.weights.resolve import resolve_spec
from dpo_jax.weights.source import WeightsSource, token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END = "<|endoftext|>"


def run(experiment: TextExperiment) -> None:
    """Writes the folder that `model.weights` names.

    Raises:
        UserError: the configuration does not say what to make, or the folder would be no folder.
    """
    options = experiment.config.scratch
    if options is None:
        raise UserError("scratch: the configuration has no `scratch:` section, which would say what to make.")
    folder = Path(experiment.config.model.weights)
    if ":" in folder.name or folder.suffix == ".gguf":
        at = locate("model.weights", experiment.origins)
        raise UserError(f"{at}: model.weights: {folder} is not the name of a folder, into which `scratch` would write.")
    if folder.exists():
        say("scratch", f"already there: {folder}")
        return
    _check(options, experiment)
    tokenizer = learn_tokenizer(_texts(experiment, options), options.vocabulary)
    config = _config(options, len(tokenizer), tokenizer.get_vocab()[END])
    source = WeightsSource(str(folder), config, token_ids(config), {}, no_tensor, lambda: tokenizer)
    resolved = resolve_spec(source)
    model = make_model(resolved.spec)
    shardings = param_shardings(experiment.mesh, *model.tree)
    params = jax.jit(model.init, out_shardings=shardings)(jax.random.key(options.seed))
    export_folder(folder, params, model, resolved.rules, source, tokenizer=tokenizer)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    say("scratch", f"wrote {folder}: {size:,} random parameters, {len(tokenizer):,} tokens")


def prepare(experiment: TextExperiment) -> None:
    """The same where the configuration asks for it and the folder is not there."""
    if experiment.config.scratch and not Path(experiment.config.model.weights).exists():
        run(experiment)


def _check(options: ScratchConfig, experiment: TextExperiment) -> None:
    if options.width % (2 * options.heads):
        at = locate("scratch.width", experiment.origins)
        raise UserError(
            f"{at}: scratch.width: {options.width} is no multiple of {2 * options.heads}, twice scratch.heads: each "
            "head takes an even part of it."
        )
    if options.vocabulary <= 256:
        at = locate("scratch.vocabulary", experiment.origins)
        raise UserError(f"{at}: scratch.vocabulary: {options.vocabulary}; there are 256 bytes and {END}: at least 257.")


def _texts(experiment: TextExperiment, options: ScratchConfig) -> Iterator[str]:
    for row in read_completions(options.data, on_error=experiment.config.data.on_error, seed=options.seed).rows:
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
