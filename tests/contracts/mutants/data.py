"""Labelled and mismatched completions, their order and their batches; what is scored."""

from __future__ import annotations

from tests.contracts.mutants.mutant import Mutant, planted

UNPAIRED = "tests/data/sources/test_unpaired.py tests/data/sources/test_sources.py"

MUTANTS: list[Mutant] = [
    *planted(
        "data/sources/mismatched.py",
        (UNPAIRED,),
        (
            "the order of rows with one prompt depends on the file",
            "key=lambda row: (key_of(row.prompt), row.row_id))",
            "key=lambda row: key_of(row.prompt))",
        ),
        ("a repeated row counts twice", "{row.row_id: row for row in rows}.values()", "rows"),
        (
            "the place is counted from the row's own prompt",
            "(end + int(row.row_id, 16) % others) % size",
            "(first + int(row.row_id, 16) % others) % size",
        ),
        ("the row id does not matter", "(end + int(row.row_id, 16) % others) % size", "end % size"),
        (
            "the row's own prompt is not left out",
            "(end + int(row.row_id, 16) % others) % size",
            "int(row.row_id, 16) % size",
        ),
        (
            "the own text may come back",
            (
                "            elif self._completions[place] == row.completion:\n"
                "                place = self._next_other[place]\n"
            ),
            "",
        ),
        (
            "a row's own prompt is not skipped",
            "            if first <= place < end:\n                place = end % size\n            elif",
            "            if",
        ),
        ("one try less", "in range(4):", "in range(3):"),
        (
            "the next place, though it may hold the same text",
            "place = self._next_other[place]",
            "place = (place + 1) % size",
        ),
        (
            "the next other text is not sought around the end",
            "reversed(range(2 * len(values)))",
            "reversed(range(len(values)))",
        ),
        ("no mismatched completion is kept", "with_partner(row, pool.pick(row))", "with_partner(row, None)"),
    ),
    *planted(
        "data/sources/labels.py",
        (UNPAIRED,),
        (
            "the row id leaves the label out",
            '"completion": row.completion, "label": row.desirable}',
            '"completion": row.completion}',
        ),
        (
            "the row id leaves the mismatched completion out",
            '        content["mismatched"] = mismatched\n',
            "        pass\n",
        ),
        ("the rejected half of a pair is desirable", "pair.rejected, desirable=False", "pair.rejected, desirable=True"),
        (
            "the chosen half of a pair holds the rejected text",
            "labelled(pair.prompt, pair.chosen, desirable=True",
            "labelled(pair.prompt, pair.rejected, desirable=True",
        ),
    ),
    *planted(
        "data/sources/rows.py",
        (UNPAIRED,),
        ("any label above 0 is taken", "label not in (0, 1)", "label < 0"),
        ("labels with a swapped sign", "desirable=bool(label), where", "desirable=not label, where"),
        ("pairs are never taken apart", 'and {"chosen", "rejected"} <= values.keys():', "and False:"),
    ),
    *planted(
        "data/sources/__init__.py",
        (UNPAIRED,),
        (
            "KTO's mismatched completion is drawn where none is needed",
            "if mismatched else found",
            "if not mismatched else found",
        ),
        (
            "`unpair` is a key of pairs too",
            '{"rankings": rows.RANKINGS}, labels',
            '{"rankings": rows.RANKINGS, "unpair": (True, False)}, labels',
        ),
    ),
    *planted(
        "data/sources/keys.py",
        ("tests/data/sources/test_unpaired.py tests/data/sources/test_sources.py",),
        ("any value of `unpair` is taken", "    if not any(value is known", "    if False and not any(value is known"),
    ),
    *planted(
        "data/tokenize.py",
        ("tests/data/test_tokenize.py",),
        (
            "single completions are compared with each other",
            "compared = isinstance(row, PreferencePair) and len",
            "compared = len",
        ),
        ("pairs are not compared", "compared = isinstance(row, PreferencePair) and", "compared = False and"),
    ),
    *planted(
        "data/order.py",
        ("tests/data/test_order.py", "tests/data/test_labelled_batches.py"),
        (
            "turns by the other label",
            "np.arange(len(rows) + 1) * desirable.sum()",
            "np.arange(len(rows) + 1) * (~desirable).sum()",
        ),
        (
            "both labels in data order, whatever the shuffle",
            "    mixed[is_turn] = rows[desirable[rows]]\n    mixed[~is_turn] = rows[~desirable[rows]]\n",
            "    mixed[is_turn] = np.flatnonzero(desirable)\n    mixed[~is_turn] = np.flatnonzero(~desirable)\n",
        ),
        (
            "all desirable rows first",
            "is_turn = np.diff(np.arange(len(rows) + 1) * desirable.sum() // len(rows)) > 0",
            "is_turn = np.arange(len(rows)) < desirable.sum()",
        ),
        ("labels are not mixed", "return rows if desirable is None else _mixed(rows, desirable)", "return rows"),
        (
            "a batch that just holds both labels is refused",
            "batch_pairs * fewer < len(desirable)",
            "batch_pairs * fewer <= len(desirable)",
        ),
        ("any batch of two is taken for mixed", "batch_pairs * fewer < len(desirable)", "batch_pairs < 2"),
        (
            "the advised batch is too small",
            "{-(-len(desirable) // fewer)} or more",
            "{len(desirable) // fewer} or more",
        ),
        ("a missing undesirable label is let through", "    if not fewer:\n", "    if not good:\n"),
    ),
    *planted(
        "data/batches.py",
        ("tests/data/test_batches.py", "tests/data/test_labelled_batches.py"),
        (
            "`~` of labels that are numbers",
            "            desirable = np.asarray(desirable, bool)",
            "            desirable = np.asarray(desirable)",
        ),
        (
            "batches of one label are let through",
            "            require_both_labels(desirable, batch_pairs=batch_pairs)\n",
            "",
        ),
        (
            "the order does not know the labels",
            "seed=seed, order=order, desirable=desirable)",
            "seed=seed, order=order)",
        ),
        ("labels of other rows", "self._desirable[picks].astype", "self._desirable[np.sort(picks)].astype"),
        ("labels are bools", "self._desirable[picks].astype(np.float32)", "self._desirable[picks]"),
        (
            "the mismatched completion is the completion",
            "mismatched=mismatched[0] if mismatched else None",
            "mismatched=arrays if mismatched else None",
        ),
        (
            "mismatched completions of other rows",
            "(part, own) for own in self._slots for",
            "(part if own.start == 0 else part[::-1], own) for own in self._slots for",
        ),
        ("mismatched completions are missing", "mismatched[0] if mismatched else None", "None"),
        ("the reference's log-probs of the first response for all", "array[part, own]", "array[part, :1]"),
        ("the reference's log-probs of other rows", "array[part, own]", "array[np.sort(part), own]"),
        (
            "both responses stand in either batch",
            "[self._rows[pick] for pick in part], own)",
            "[self._rows[pick] for pick in part], slice(None))",
        ),
        (
            "a resumed run begins the epoch anew",
            "+ step * self._batch_pairs, len(self._rows))",
            "+ step % 2 * self._batch_pairs, len(self._rows))",
        ),
    ),
    *planted(
        "data/layouts.py",
        ("tests/data/test_layouts.py", "tests/data/test_batches.py"),
        (
            "wrong mask shift: a response is predicted from its own first token",
            "source = start - 1 + np.arange(len(response))",
            "source = start + np.arange(len(response))",
        ),
        (
            "wrong mask shift: the first rejected token is predicted from the last chosen one",
            "    source[0] = len(row.prompt) - 1  # the first token follows the prompt, wherever it lies\n",
            "",
        ),
        ("masks are forgotten", "kept = slice(None) if row.masks is None else row.masks[slot]", "kept = slice(None)"),
        ("padding is scored", "np.full((count, scored), -1, np.int32)", "np.zeros((count, scored), np.int32)"),
        (
            "chosen and rejected concatenated, not side by side",
            "np.full(len(response), number, np.int32)",
            "np.full(len(response), number // 2, np.int32)",
        ),
        (
            "token counts of other rows",
            "_filled(sizes_of(rows).scored, pairs)",
            "_filled(sizes_of(rows).scored[::-1], pairs)",
        ),
        (
            "a pair that only fills the batch counts",
            "_filled(np.ones(len(rows)), pairs)",
            "_filled(np.ones(pairs), pairs)",
        ),
        (
            "shared: the responses see each other",
            "np.full(len(response), slot + 1, np.int32)",
            "np.full(len(response), 1, np.int32)",
        ),
        (
            "shared: the responses are part of the prompt",
            "np.full(len(response), slot + 1, np.int32)",
            "np.full(len(response), 0, np.int32)",
        ),
        (
            "shared: the rejected response goes on where the chosen one ends",
            "positions.append(len(row.prompt) + np.arange(len(response)))",
            "positions.append(start + np.arange(len(response)))",
        ),
        ("packed: runs of a row see each other", "1 + SEGMENT_PARTS * groups[row] + run.parts", "1 + run.parts"),
        ("packed: segments are numbered one by one", "SEGMENT_PARTS * groups[row]", "groups[row]"),
        ("packed: sources count from the run", "start + run.source, run.target", "run.source, run.target"),
        ("packed: runs over the end of the row", "tokens + lengths[run] <= length", "tokens <= length"),
        ("packed: runs over each other", "used[at] += int(lengths[run])", "used[at] += int(lengths[run]) - 1"),
    ),
    *planted(
        "models/attention/seen.py",
        ("tests/logprobs/test_layouts.py", "tests/models/attention/test_dense.py"),
        ("responses to one prompt see each other", "key.segment == query.segment", "key.segment >= shared"),
        ("a response does not see its prompt", " | (key.segment == shared))", ")"),
        (
            "windows by the place in the row",
            "key.position > query.position - window",
            "key.order > query.order - window",
        ),
    ),
    *planted(
        "data/tokens.py",
        ("tests/data/test_tokens.py",),
        (
            "tokens that are not scored are scored",
            "yield tokens if row.masks is None else np.where(row.masks[slot], tokens, ~tokens)",
            "yield tokens",
        ),
        ("masked tokens stay negative", "np.where(tokens < 0, ~tokens, tokens)", "tokens"),
        (
            "rows begin where the one before ends, prompt left out",
            "lengths_nP.sum(axis=1, dtype=np.int64)",
            "lengths_nP[:, 1:].sum(axis=1, dtype=np.int64)",
        ),
        (
            "a selection has the ids of the first rows",
            "self.row_ids[picks], self.sizes",
            "self.row_ids[: len(picks)], self.sizes",
        ),
        ("the file stays", 'prefix="tokens-")', 'prefix="tokens-", delete=False)'),
    ),
]
