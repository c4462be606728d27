"""Sampling: what may be drawn, rows and their streams, and the command that writes them."""

from __future__ import annotations

from tests.contracts.mutants.mutant import Mutant, planted

LEFT = ("tests/models/test_truncation.py",)
ROWS = ("tests/models/test_sampling.py",)
COMMAND = ("tests/stages/test_sample.py",)

MUTANTS: list[Mutant] = [
    *planted(
        "models/truncation.py",
        LEFT,
        ("k + 1 tokens are kept", ">= wanted_R", "> wanted_R"),
        ("scores are compared 0.1 too high", "_score(middle_R)[:, None]\n", "_score(middle_R)[:, None] + 0.1\n"),
        ("the search ends too early", "fori_loop(0, 32,", "fori_loop(0, 24,"),
        (
            "negative scores in the wrong order",
            "    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)",
            "    return bits",
        ),
        (
            "top_p reads what top_k left out",
            "mass_RV = jnp.where(logits_RV < least_R[:, None], 0.0, mass_RV)",
            "pass",
        ),
        ("top_p at temperature 1", "keepdims=True)) / temperature)", "keepdims=True)))"),
        ("top_p of a mass that is not 1", "top_p * jnp.sum(mass_RV, axis=-1)", "top_p + jnp.zeros_like(all_R)"),
        ("no token may be left", "_rank(jnp.max(scores_RV, axis=-1))", "_rank(jnp.full_like(wanted_R, 1e38))"),
        ("top_p 1 is not off", "top_p < 1,", "top_p < 2,"),
    ),
    *planted(
        "models/sampling.py",
        LEFT,
        ("the last token that may be drawn is not", "logits_RV < least_R[:, None]", "logits_RV <= least_R[:, None]"),
    ),
    *planted(
        "models/sampling.py",
        ROWS,
        ("top_p at temperature 1, asked so", "least_drawn(logits_RV, divisor,", "least_drawn(logits_RV, 1.0,"),
        ("top_k is ignored", "temperature, top_p=top_p, top_k=top_k)\n\n", "temperature, top_p=top_p)\n\n"),
        (
            "samples of a prompt stand apart",
            "for prompt in prompts for _ in range(samples)]",
            "for _ in range(samples) for prompt in prompts]",
        ),
        (
            "streams by prompt, not by row",
            "key, temperature, start, top_p",
            "key, temperature, start // samples, top_p",
        ),
        ("each batch begins the streams anew", "first_row + jnp.arange(rows)", "jnp.arange(rows)"),
        (
            "what is returned is split over devices",
            "return constrain(state.tokens_RM, None, None), constrain(state.lengths_R, None)",
            "return state.tokens_RM, state.lengths_R",
        ),
        (
            "something else is compiled ahead",
            "jax.random.key(0), 1.0, 0, top_p=1.0, top_k=0)",
            "jax.random.key(0), 1.0)",
        ),
        (
            "each top_p is compiled",
            "max_new_tokens, stop_tokens))",
            'max_new_tokens, stop_tokens), static_argnames=("top_p", "top_k"))',
        ),
        ("nothing is told of the progress", "        progress(len(responses))\n", ""),
    ),
    *planted(
        "stages/sample.py",
        COMMAND,
        (
            "the policy is the reference",
            'setup.trained_params() if chosen == "policy" else setup.start_params()',
            "setup.start_params()",
        ),
        ("responses beside other prompts", "prompts[row // samples]", "prompts[row % len(prompts)]"),
        ("samples are numbered by prompt", "row % samples", "row // samples"),
        ("top_p is not passed on", "top_p=options.top_p", "top_p=1.0"),
        ("top_k is not passed on", "top_k=options.top_k", "top_k=0"),
        ("temperature is not passed on", "temperature=options.temperature", "temperature=1.0"),
        ("max_new_tokens is not passed on", "max_new_tokens=options.max_new_tokens", "max_new_tokens=7"),
        ("the seed is not used", "jax.random.key(setup.config.seed)", "jax.random.key(0)"),
        ("the reference is called by the run's name", ' if chosen == "policy" else chosen\n', "\n"),
        ("lines in a .json file", 'if path.suffix == ".json":', "if False:"),
        ("a data set that no row names", "if prompt.dataset is not None:", "if True:"),
        ("bad rows always stop", "on_error=setup.config.data.on_error", 'on_error="stop"'),
        ("line separators inside a line", "json.dumps(each)", "json.dumps(each, ensure_ascii=False)"),
    ),
    *planted(
        "stages/samples.py",
        COMMAND,
        ("one sample a prompt", "            samples=samples,\n", ""),
        ("no progress is shown", "            progress=progress,\n", ""),
    ),
    *planted(
        "data/sources/rows.py",
        COMMAND,
        ("`instruction` is no prompt", "for column in PROMPT_COLUMNS if", "for column in PROMPT_COLUMNS[:1] if"),
        (
            "prompts are not checked",
            """found = messages.check(values[column], f"column {column!r}", where)""",
            "found = values[column]",
        ),
    ),
    *planted(
        "data/tokenize.py",
        ("tests/data/test_tokenize.py",),
        (
            "a prompt that just fits counts as cut",
            "len(whole.ids) > limit for",
            "len(whole.ids) >= limit for",
        ),
    ),
]
