"""Bugs in adapters: what they compute, where they lie, how they are written."""

from __future__ import annotations

from tests.contracts.mutants.mutant import Mutant, planted

BY_VALUE = "tests/models/test_lora.py"
RUNS = "tests/stages/test_lora.py"

MUTANTS: list[Mutant] = [
    *planted(
        "models/lora.py",
        (BY_VALUE,),
        ("scale: rank over alpha", "return self.alpha / self.rank", "return self.rank / self.alpha"),
        ("scale: forgotten in the forward pass", "(self.lora.scale * contract(", "(contract("),
        ("scale: forgotten in the merged weights", " + scale * product(a, b)", " + product(a, b)"),
        ("B is not zero at first", "zeros = jnp.zeros(", "zeros = 0.01 + jnp.zeros("),
        ("A is zero at first, and never learns", "nnx.Param(thin, axes", "nnx.Param(0 * thin, axes"),
        ("A begins twice as large", "bound = 1 / ", "bound = 2 / "),
        ("A begins by the outputs, not the inputs", "math.prod(sizes[:inputs])", "math.prod(sizes[inputs:])"),
        ("dropout: what is kept is not made larger", "wide / kept, 0.0", "wide, 0.0"),
        ("dropout: keeps what it should drop", "bernoulli(key, kept,", "bernoulli(key, self.lora.dropout,"),
        ("dropout: all layers drop alike", "fold_in(here.key, here.layer)", "fold_in(here.key, 0)"),
        ("dropout: all maps drop alike", ", self.number)", ", 0)"),
        (
            "the adapter computes in the dtype of the model",
            "wide = x.astype(jnp.float32)",
            "wide = x; a = a.astype(x.dtype)",
        ),
        ("merging changes the base", "merged = jax.tree.map(lambda leaf: leaf, base)", "merged = base"),
        ("joining drops the adapter", "return {**base, **adapter, **{", "return {**adapter, **base, **{"),
    ),
    *planted(
        "models/decoder.py",
        (BY_VALUE,),
        (
            "a model with an adapter is computed without it",
            "self.adapted if adapter_of(params) else",
            "self.graphdef if adapter_of(params) else",
        ),
        (
            "norms are held in the compute dtype",
            'leaf.dtype if "norm" in jax.tree_util.keystr(path) else self.dtype',
            "self.dtype",
        ),
        (
            "everything is held in float32",
            'leaf.dtype if "norm" in jax.tree_util.keystr(path) else self.dtype',
            "leaf.dtype",
        ),
        (
            "the key of the dropout is lost",
            "module(tokens_RT, seen, key=key)",
            "module(tokens_RT, seen)",
        ),
    ),
    *planted(
        "weights/adapter.py",
        (RUNS,),
        ("A is written as [in, rank]", "a.reshape(-1, lora.rank).T)", "a.reshape(-1, lora.rank))"),
        ("GPT-2's maps are said to be [out, in]", '"fan_in_fan_out": not all(', '"fan_in_fan_out": all('),
        ("PEFT's alpha is the scale", '"lora_alpha": lora.alpha', '"lora_alpha": lora.scale'),
        ("a name takes maps that only end alike", 'name.endswith(f".{target}")', "name.endswith(target)"),
        ("a target that names nothing is passed over", "        if not named:\n", "        if False:\n"),
        ("the embedding is only unknown", 'if target.rpartition(".")[2] in _NOT_YET:', "if False:"),
        ("other maps of the same name are adapted too", "if exact", "if True"),
    ),
    *planted(
        "stages/objectives.py",
        (RUNS,),
        (
            "adapter: the policy is the base",
            "join(jax.lax.stop_gradient(base), adapter)",
            "jax.lax.stop_gradient(base)",
        ),
        ("adapter: no dropout in training", "adapter), batch, key)", "adapter), batch)"),
        (
            "adapter: the mismatched completions of the reference are the policy's",
            "seen = _hidden(model, still, batch.mismatched)",
            "seen = policy(params, frozen, batch.mismatched, key)",
        ),
    ),
    *planted(
        "stages/experiment.py",
        (RUNS,),
        (
            "adapter: evaluated without it",
            "return join(base or self.start_params(), found) if self.model.lora else found",
            "return base or self.start_params()",
        ),
        (
            "adapter: exported without it",
            "return merge(self.start_params(held=False), found, lora) if lora else found",
            "return self.start_params(held=False)",
        ),
        (
            "adapter: that of the fine-tuning is forgotten",
            "            merged = merge(self.pretrained(), found, self.sft_model.lora)\n",
            "            merged = self.pretrained()\n",
        ),
        (
            "adapter: the base is held in float32",
            "held = self.config.lora is not None if held is None else held",
            "held = bool(held)",
        ),
    ),
    *planted(
        "stages/fit.py",
        (RUNS,),
        (
            "adapter: a checkpoint holds the base",
            "number, state if keeps_frozen else state._replace(frozen=None), record",
            "number, state, record",
        ),
    ),
    *planted(
        "stages/train.py",
        (RUNS,),
        (
            "adapter: held-out rows are scored without it",
            "return join(state.frozen or {}, state.params) if model.lora else state.params",
            "return state.frozen or state.params",
        ),
    ),
    *planted(
        "stages/export.py",
        (RUNS,),
        (
            "adapter: its base is the pretrained model, fine-tuned or not",
            "    if setup.config.sft:\n",
            "    if False:\n",
        ),
    ),
]
