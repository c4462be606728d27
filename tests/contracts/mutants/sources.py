"""Files, hubs, formats and mixtures; what a row may hold; conversations as text and as tokens."""

from __future__ import annotations

from tests.contracts.mutants.mutant import Mutant, planted

SOURCES = "tests/data/sources/"
CHAT = "tests/data/test_chat.py"
MALFORMED = "tests/stages/test_malformed.py"

MUTANTS: list[Mutant] = [
    *planted(
        "data/sources/implicit.py",
        (SOURCES + "test_implicit.py",),
        (
            "the prompt is cut mid-word",
            "_BOUNDARY.finditer(chosen[: shared + 1])",
            're.finditer("", chosen[: shared + 1])',
        ),
        ("only the chosen response begins a word", "and _BOUNDARY.match(rejected, place) ", ""),
        ("a response may be left empty", "and rejected[place:].strip()", ""),
        ("the space goes to the prompt", r"(?=[ \t])", r"(?<=[ \t])"),
        ("turns of users are responses", '== "assistant":', '!= "system":'),
        ("turns may differ before the cut", "        if one != other:\n            break\n", ""),
    ),
    *planted(
        "data/sources/labels.py",
        (SOURCES + "test_rows.py", SOURCES + "test_mixture.py"),
        (
            "the id does not know the tools",
            "for name in TEMPLATE_COLUMNS if brings.get(name)",
            'for name in ("x",) if brings.get(name)',
        ),
        ("the id knows the margin", "{**content, **formats}", '{**content, **formats, "m": brings.get("margin")}'),
        ("a flipped pair keeps its id", "pair._replace(row_id=row_id, ", "pair._replace("),
        ("a flipped label stays", "desirable=not row.desirable", "desirable=row.desirable"),
    ),
    *planted(
        "data/sources/mixture.py",
        (SOURCES + "test_mixture.py",),
        ("flips are independent of their share", "< share * 2.0**128", "< 2.0**128 * (0.5 * (share > 0))"),
    ),
    *planted(
        "data/sources/rows.py",
        (SOURCES + "test_rows.py", MALFORMED),
        ("identical pairs are taken", "    if messages.key_of(chosen) == messages.key_of(rejected):", "    if False:"),
        ("neighbours are all pairs", 'if which == "adjacent"', 'if which != "adjacent"'),
        ("the worse response is chosen", "for better, worse in made", "for worse, better in made"),
        ("a ranking may repeat itself", "< len(responses):", "< 0:"),
        ("a column that is nearly a prompt is overlooked", "return not near and not any(", "return True or not any("),
        ("a conversation is scored from its last answer", "turns[:first]", "turns[:-1]"),
        ("soft labels beyond one", '"soft_label": (0.0, 1.0)', '"soft_label": (0.0, 2.0)'),
        ("negative weights", '"weight": (0.0, _INFINITE)', '"weight": (-1.0, _INFINITE)'),
        ("a ranking is unpaired", '        if _has(record, columns, "responses"):', "        if False:"),
    ),
    *planted(
        "data/sources/messages.py",
        (MALFORMED, SOURCES + "test_rows.py"),
        ("any role is taken", "    if role not in ROLES:", "    if False:"),
        ("null content", "    if content is None:", '    if content == "":'),
        ("empty turns", "    if not content.strip() and", "    if False and"),
        ("NaN is a margin", "not math.isfinite(value) or ", ""),
        ("true is a number", "isinstance(value, bool) or not", "not"),
        ("surrogates are letters", "        text.encode()\n", '        text.encode(errors="replace")\n'),
        ("a response may begin with the user", '(response[0], "begins"), ', ""),
        ("a response may end with the user", '(response[-1], "ends")', '(response[0], "begins")'),
        ("a prompt may end with the assistant", 'not in ("user", "tool")', 'not in ("user", "tool", "assistant")'),
        (
            "tools that are text stay text",
            "        try:\n            value = json.loads(value)",
            "        try:\n            json.loads(value)",
        ),
    ),
    *planted(
        "data/sources/formats.py",
        (SOURCES + "test_formats.py",),
        (
            "speakers are swapped",
            '"Human": "user", "Assistant": "assistant"',
            '"Human": "assistant", "Assistant": "user"',
        ),
        ("white space stays around turns", '"content": words.strip()}', '"content": words}'),
        ("the system column is dropped", '    if values.get("system"):', "    if False:"),
        ("the last turn is in the prompt too", '"prompt": turns[:-1], "completion"', '"prompt": turns, "completion"'),
        ("margins are dropped", "{key: values[key] for key in _BESIDE if key in values}", "{}"),
    ),
    *planted(
        "data/sources/mixture.py",
        (SOURCES + "test_mixture.py",),
        ("weights are rounded down", " + is_drawn(rest, row)", ""),
        ("weights are rounded up", " + is_drawn(rest, row)", " + (rest > 0)"),
        ("drawn by the length of the name", "files.digest(row.encode())", "files.digest(bytes(len(row)))"),
    ),
    *planted(
        "data/sources/__init__.py",
        (SOURCES + "test_mixture.py", SOURCES + "test_paths.py", SOURCES),
        ("the seed does not draw", 'f"{seed} {name} {number}"', 'f"{name} {number}"'),
        ("sources of one kind draw the same", 'f"{seed} {name} {number}"', 'f"{seed} {number}"'),
        (
            "a weight of 1 is of all",
            "weight, flip, name = weight_of(spec), flip_of(spec), name_of(spec, kind)",
            "weight, flip, name = 1.0, flip_of(spec), name_of(spec, kind)",
        ),
        ("all sources have one name", "row._replace(source=name)", "row._replace(source=kind)"),
        ("skipped rows are not counted", "                skipped[row.reason] += 1", "                pass"),
    ),
    *planted(
        "data/sources/paths.py",
        (SOURCES + "test_paths.py", MALFORMED),
        ("zstd is read as it is", 'elif path.suffix == ".zst":', 'elif path.suffix == ".zstd":'),
        (
            "a damaged file ends early",
            'raise UserError(f"data file {path} cannot be read to its end: {error}") from error',
            "return",
        ),
    ),
    *planted(
        "data/sources/tables.py",
        (SOURCES + "test_paths.py", MALFORMED),
        ("all cells may be numbers", "_number(cell) if name in numbers else cell", "_number(cell)"),
        ("a renamed column is text", "{renamed.get(name, name) for name in _NUMBERS}", "set(_NUMBERS)"),
        ("short rows are filled up", "        if len(cells) != len(header):", "        if False:"),
        ("rows of Parquet count in batches", "                number += 1\n", ""),
    ),
    *planted(
        "data/sources/json_files.py",
        (SOURCES, MALFORMED),
        ("columns of other lengths are cut", "if len(set(lengths.values())) != 1 or", "if"),
        ("lines in .json are not read", "        if not _begins_with_an_object(data):", "        if True:"),
    ),
    *planted(
        "data/sources/hub.py",
        (SOURCES + "test_hub.py",),
        ("a slice is the whole split", ".select(range(part.from_, part.to))", ""),
        ("the revision is dropped", 'revision=spec.get("revision")', "revision=None"),
        ("always the training split", 'split = spec.get("split", "train")', 'split = "train"'),
    ),
    *planted(
        "data/sources/tfds.py",
        (SOURCES + "test_tfds.py",),
        ("lost rows go unnoticed", "    if len(rows) != declared:", "    if False:"),
        (
            "bytes stay bytes",
            '        return value.decode("utf8", errors="surrogateescape")',
            "        return str(value)",
        ),
    ),
    *planted(
        "data/chat.py",
        (CHAT,),
        ("what the template does not read is dropped", "or name not in _variables(template):", "and False:"),
        ("arguments may pass for the template's own", "if name in _RESERVED or name", "if name"),
        (
            "the prompt does not ask",
            '_turns(row.prompt, "user"), asks=True)',
            '_turns(row.prompt, "user"), asks=False)',
        ),
        (
            "the response asks again",
            "turns, asks=False), tokenizer.eos_token)",
            "turns, asks=True), tokenizer.eos_token)",
        ),
        ("a response ends twice", "    return body.removesuffix(eos) + text[len(body) :]", "    return text"),
        ("users are scored", '        if turn["role"] != "assistant":\n            continue\n', ""),
        ("the header of a turn is scored", "spans.append((len(before), len(after)))", "spans.append((0, len(after)))"),
        (
            "forgetful templates are trusted",
            "        if not (whole.startswith(after) and after.startswith(before)):",
            "        if False:",
        ),
        ("the own template is not used", "if chat_template is None else", "if True else"),
        ("hh ends every turn", "eos_token if loop.last else ''", "eos_token"),
    ),
    *planted(
        "data/encoding.py",
        (CHAT, "tests/data/test_tokenize.py"),
        ("BOS comes twice", "            start = 1\n", "            start = 0\n"),
        ("an EOS that the tokenizer adds", "        while end and added[end - 1]:\n            end -= 1\n", ""),
        ("masks are one token late", "(starts < end) & (ends > start)", "(starts < end) & (starts > start)"),
        (
            "special tokens of messages are taken",
            "        for item in value.values():\n            yield from _strings(item)",
            "        pass",
        ),
        ("tools are not looked at", '"mismatched", "tools")', '"mismatched")'),
        (
            "added special tokens are not known",
            "{*added, *tokenizer.all_special_tokens}",
            "{*tokenizer.all_special_tokens[:1]}",
        ),
    ),
    *planted(
        "data/tokenize.py",
        (CHAT, "tests/stages/test_rows.py"),
        ("long rows are dropped in silence", "Counts(long_rows_dropped=1)", "Counts()"),
        ("dropped by the prompt alone", " or longest > rules.max_tokens)", ")"),
        (
            "a row that just fits is dropped",
            "len(prompt) > rules.max_prompt_tokens or",
            "len(prompt) >= rules.max_prompt_tokens or",
        ),
        ("masks are not cut", "one.touches(spans)[boundary:][:room]", "one.touches(spans)[boundary:]"),
        (
            "masks begin with the prompt",
            "one.touches(spans)[boundary:][:room]",
            "one.touches(spans)[: len(one.ids) - boundary][:room]",
        ),
        (
            "skipped rows keep their place",
            "                continue\n            totals",
            "                pass\n            totals",
        ),
        ("text alone has no first token", "        boundary = max(boundary, 1)", "        pass"),
        ("all rows at once", "itertools.islice(rest, _CHUNK_ROWS)", "rest"),
    ),
    *planted(
        "stages/rows.py",
        ("tests/stages/test_rows.py",),
        ("no margin is a margin of one", '"margin": 0.0', '"margin": 1.0'),
        (
            "arrays of the rows that were read",
            "            beside.add(chunk.rows)\n",
            "            beside.add(chunk.rows[::-1])\n",
        ),
        (
            "tools are not part of a prompt",
            "key_of((key_of(row.prompt), row.tools, row.chat_template_kwargs))",
            "key_of(row.prompt)",
        ),
        ("the seed is not passed on", '"seed": config.seed}', '"seed": 0}'),
    ),
]
