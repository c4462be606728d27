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
        "data/sources/rows.py",
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
        ("any label above 0 is taken", "label not in (0, 1)", "label < 0"),
        ("labels with a swapped sign", "desirable=bool(label), where", "desirable=not label, where"),
        ("the rejected half of a pair is desirable", "pair.rejected, desirable=False", "pair.rejected, desirable=True"),
        (
            "the chosen half of a pair holds the rejected text",
            "labelled(pair.prompt, pair.chosen, desirable=True",
            "labelled(pair.prompt, pair.rejected, desirable=True",
        ),
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
            '{"rankings": rows.RANKINGS})',
            '{"rankings": rows.RANKINGS, "unpair": (True, False)})',
        ),
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
        ("labels of other rows", "desirable_B=desirable[picks]", "desirable_B=desirable[np.sort(picks)]"),
        ("labels are bools", "desirable_B=desirable[picks].astype(np.float32)", "desirable_B=desirable[picks]"),
        (
            "the mismatched completion is the completion",
            "mismatched=self._arrays(picks, slice(1, 2))",
            "mismatched=self._arrays(picks, slice(0, 1))",
        ),
        (
            "mismatched completions of other rows",
            "mismatched=self._arrays(picks, slice(1, 2))",
            "mismatched=self._arrays(picks[::-1], slice(1, 2))",
        ),
        ("mismatched completions are missing", "if has_mismatched else None", "if not has_mismatched else None"),
        (
            "the mismatched completion as a second response",
            "return self._arrays(picks, slice(0, 1))",
            "return self._arrays(picks)",
        ),
        ("the reference's log-probs of the first response for all", "array[picks, slots]", "array[picks, :1]"),
        (
            "all responses stand in either batch",
            "_replace(responses=rows[pick].responses[slots])",
            "_replace(responses=rows[pick].responses)",
        ),
        (
            "wrong mask shift: a response is predicted from its own first token",
            "last_prompt_R1 = prompts_R[:, None] - 1",
            "last_prompt_R1 = prompts_R[:, None]",
        ),
        (
            "wrong mask shift: the first token of a response is not scored",
            '"target_RN": _right_padded([response for _, response in sequences]',
            '"target_RN": _right_padded([response[1:] for _, response in sequences]',
        ),
        (
            "padding is scored",
            "np.where(scored_RN, np.arange(count)[:, None], -1)",
            "np.broadcast_to(np.arange(count)[:, None], scored_RN.shape)",
        ),
        (
            "chosen and rejected concatenated, not side by side",
            "for row in rows for response in row.responses]",
            "for slot in range(slots) for row in rows for response in row.responses[slot : slot + 1]]",
        ),
        (
            "token counts of the unshifted row, prompt included",
            '"response_tokens_BP": responses_R[: pairs * slots]',
            '"response_tokens_BP": (prompts_R + responses_R)[: pairs * slots]',
        ),
        (
            "a pair that only fills the batch counts",
            '"weight_B": (np.arange(pairs) < len(rows)).astype(np.float32)',
            '"weight_B": np.ones(pairs, np.float32)',
        ),
        (
            "the reference's log-probs of other rows",
            "reference={name: array[picks, slots]",
            "reference={name: array[np.sort(picks), slots]",
        ),
        (
            "a resumed run begins the epoch anew",
            "+ step * self._batch_pairs, len(self._rows))",
            "+ step % 2 * self._batch_pairs, len(self._rows))",
        ),
    ),
]
