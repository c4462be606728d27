"""Weights: placed block by block, tensors that fill several parameters, and what is refused before it is too late."""

from __future__ import annotations

from tests.contracts.mutants.mutant import Mutant, planted

BLOCKS = ("tests/weights/test_memory.py -k 'not largest'",)
MEMORY = ("tests/weights/test_memory.py -k largest",)
FUSED = ("tests/weights/test_phi3.py",)
DEPTH = ("tests/models/test_depth.py",)
POSITIONS = ("tests/stages/test_gpt2.py -k 'table or sampling or checked'",)

MUTANTS: list[Mutant] = [
    *planted(
        "mesh.py",
        MEMORY,
        ("all of an array at once", "BLOCK_BYTES = 4 * 2**20", "BLOCK_BYTES = 2**40"),
        ("a block for each device", " // len(sharding.addressable_devices)", ""),
    ),
    *planted(
        "weights/gguf.py",
        MEMORY,
        (
            "a tensor is dequantised whole for each block",
            "dequantize(tensor.data[rows], tensor.tensor_type)",
            "dequantize(tensor.data, tensor.tensor_type)[rows]",
        ),
    ),
    *planted(
        "weights/load.py",
        MEMORY,
        ("what stays counts as more", "            memory.stays(size if _on_host(mesh) else 0)\n", ""),
    ),
    *planted(
        "mesh.py",
        BLOCKS,
        ("copies of a part are read again", "        if corner not in held:", "        if True:"),
        (
            "the last block runs over the end",
            "min(at, size - step) for at, size, step in zip(corner, own, block, strict=True)",
            "at for at, size, step in zip(corner, own, block, strict=True)",
        ),
        (
            "every device gets the first one's part",
            "slice(at, at + size) for at, size in zip(corner, block, strict=True)))",
            "slice(at, at + size) for at, size in zip(start, block, strict=True)))",
        ),
        ("blocks are cut in the order of the axes", "cut or range(len(shape))", "range(len(shape))"),
    ),
    *planted(
        "weights/load.py",
        BLOCKS,
        (
            "rows counted in heads",
            "slice(first + taken.start * each, first + taken.stop * each)",
            "slice(first + taken.start, first + taken.stop)",
        ),
        ("cut along the rows last", "(*inner[first:], *inner[:first])))", "inner))"),
    ),
    *planted(
        "models/families/phi3.py",
        FUSED,
        (
            "the key is the value",
            "Part(queries, queries + 2 * keys)",
            "Part(queries + keys, queries + 2 * keys)",
        ),
        ("gate and up are the same rows", "Part(width, 2 * width)", "Part(0, 2 * width)"),
        ("half a pair is turned", "if turned % 2 or not turned:", "if False:"),
        ("no window at all", 'config["sliding_window"], partial', "None, partial"),
    ),
    *planted(
        "weights/load.py",
        FUSED,
        ("every part is the first", "first = rule.part.first if rule.part else 0", "first = 0"),
    ),
    *planted(
        "weights/export.py",
        FUSED,
        ("only the first part is written", "parts[0] if len(parts) == 1 else np.concatenate(parts)", "parts[0]"),
        ("only the first part is counted", "sum(map(math.prod, shapes))", "math.prod(shapes[0])"),
    ),
    *planted(
        "weights/adapter.py",
        FUSED,
        ("a fused tensor is a map", "if rule.inputs and not rule.part and", "if rule.inputs and"),
        ("fused tensors are passed over", "[name for name in fused if _is_named(name, target)]", "[]"),
    ),
    *planted(
        "models/families/family.py",
        FUSED,
        ("whole heads are turned", "window, rotary_share=share)", "window)"),
        ("the shape of a part", "return (self.part.of, *stored[1:]) if self.part else stored", "return stored"),
    ),
    *planted(
        "models/stack.py",
        DEPTH,
        ("layers one after the other", "jnp.arange(layers)))", "jnp.arange(layers)), unroll=layers)"),
    ),
    *planted(
        "stages/positions.py",
        POSITIONS,
        ("samples are not checked", "if config.evaluation.samples:", "if False:"),
        ("checked where none is asked for", "if config.evaluation.samples:", "if True:"),
        ("samples of a KL budget are not checked", "if term.budget:", "if False:"),
        ("the last token is looked up", "prompt + new - 1 <= limit", "prompt + new <= limit"),
        ("one position too many", "prompt + new - 1 <= limit", "prompt + new - 2 <= limit"),
    ),
    *planted(
        "stages/sample.py",
        POSITIONS,
        (
            "the command does not check",
            '    check_new_tokens("sampling.max_new_tokens", new, setup.config, setup.origins, spec)\n',
            "",
        ),
    ),
]
