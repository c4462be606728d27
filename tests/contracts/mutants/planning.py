"""Plans: programs read, work and memory by arithmetic, the machines, and what is compiled for them."""

from __future__ import annotations

from tests.contracts.mutants.mutant import Mutant, planted

READ = ("tests/planning/test_hlo.py",)
COSTS = ("tests/models/test_costs.py",)
STAGE = "tests/stages/test_plan.py"

MUTANTS: list[Mutant] = [
    *planted(
        "planning/hlo.py",
        READ,
        ("the body of a loop counts once", "visit(called, count * (turns or 1)", "visit(called, count"),
        ("turns of inner loops do not multiply", "visit(called, count * (turns or 1)", "visit(called, (turns or 1)"),
        ("every counter moves by one", "-(-int(bound.operands[0]) // step)", "int(bound.operands[0])"),
        ("a loop until is a loop below", 'or "direction=LT" not in condition.root.rest ', ""),
        ("loops of unknown turns are not told", "sure and turns is not None", "sure"),
        ("dimensions add up", "math.prod(map(int, dims.split", "sum(map(int, dims.split"),
    ),
    *planted(
        "planning/traffic.py",
        READ,
        (
            "an all-reduce goes around once",
            "return 2 * size * (chips - 1) // chips",
            "return size * (chips - 1) // chips",
        ),
        ("a reduce-scatter sends what it gives", "return size * (chips - 1)\n", "return size\n"),
        (
            "a fused reduce-scatter counts as a reduce-scatter of all",
            "size // chips\n            total",
            "size\n            total",
        ),
        ("what starts a gather has its operands counted", "sum(arrays) * chips // (chips + 1)", "sum(arrays)"),
        ("pieces of one collective count each", "if channel[0] in begun:", "if False:"),
        ("the number of groups is taken for their size", r"\[\d+,(\d+)\]<=", r"\[(\d+),\d+\]<="),
    ),
    *planted(
        "planning/compiled.py",
        (STAGE + " -k bytes_are", "tests/planning"),
        (
            "results in the place of arguments count twice",
            "output_size_in_bytes - found.alias_size_in_bytes",
            "output_size_in_bytes",
        ),
    ),
    *planted(
        "models/costs.py",
        COSTS,
        (
            "a shared prompt counts for each response",
            "prompts = 1 if shared else",
            "prompts = len(responses) if shared else",
        ),
        (
            "the head counts at every token",
            "answered * spec.width * spec.vocabulary",
            "tokens * spec.width * spec.vocabulary",
        ),
        ("windows are forgotten", "keys.sum() if window is None else", "keys.sum() if True else"),
        ("responses do not see the prompt", "_keys_seen(spec, prompt, response)", "_keys_seen(spec, 0, response)"),
        (
            "biases are multiplied with every token",
            'len(set(names) - {"layers", "head_size", "qkv"}) > 1',
            "len(names) > 2",
        ),
        (
            "frozen parameters count as trained ones",
            "return forward + FORWARD * weights +",
            "return forward + 2 * FORWARD * weights +",
        ),
        ("dots are kept under full", '{"full": carried, "dots"', '{"full": carried + tokens * dots, "dots"'),
        (
            "scores of attention are forgotten",
            "all_of_layer = tokens * (dots + rest) + scores",
            "all_of_layer = tokens * (dots + rest)",
        ),
    ),
    *planted(
        "stages/planned.py",
        (STAGE + " -k 'very_ones or longest or largest or bytes_are'",),
        ("the schedule of another run", "planned_steps(setup.config.train, batches)", "batches.steps(1)"),
        ("rows of half the length", "np.zeros(longest - 1, np.int32)", "np.zeros(longest // 2, np.int32)"),
        (
            "the reference is held in float32 under an adapter",
            "lambda x, dtype: jax.ShapeDtypeStruct(x.shape, dtype)",
            "lambda x, dtype: x",
        ),
        ("the first batch for the largest", "return max(first,", "return min(first,"),
    ),
    *planted(
        "stages/plan.py",
        (STAGE + " -k 'analysis or longest'",),
        ("what does not fit is a success", "    _refuse_too_large(plan)\n", ""),
        ("the mfu is ignored", "share * machine.chip.peak_flops", "_MFU * machine.chip.peak_flops"),
        ("tokens are written into the working directory", "workdir=scratch)", "workdir=setup.config.workdir)"),
    ),
    *planted(
        "stages/plan_alternatives.py",
        (STAGE + " -k alternatives",),
        ("the search stops one too early", "while high - low > 1:", "while high - low > 2:"),
        ("what does not fit is taken for what does", "(middle, high) if fits", "(low, middle) if fits"),
        ("batches are not doubled", "2 * micro}\n", "micro}\n"),
    ),
    *planted(
        "training/optimizer.py",
        ("tests/training/test_step.py -k by_hand",),
        (
            "the decay of a bfloat16 moment is rounded",
            "return optax.GradientTransformation(narrow.init, update)",
            "return narrow",
        ),
        ("the first moment stays float32", "found.mu, jnp.dtype(moment_dtype)", "found.mu, jnp.float32"),
    ),
    *planted(
        "logprobs/tiling.py",
        ("tests/logprobs/test_tokens.py",),
        ("devices add up the head's gradient at every tile", "parts = _row_splits(side.hidden.shape[1])", "parts = 1"),
        ("tiles are those of all devices together", "tile_tokens * _row_splits(rows)", "tile_tokens"),
        (
            "columns of the overlapping tile are overwritten",
            "after = before + found_vD",
            "after = 0 * before + found_vD",
        ),
        ("parts of the rows are not added up", "d_weight_PvD.sum(axis=0)", "d_weight_PvD[0]"),
    ),
]
