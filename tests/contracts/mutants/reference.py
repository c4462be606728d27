"""The store of reference log-probs, and the rows that are not trained on."""

from __future__ import annotations

from tests.contracts.mutants.mutant import Mutant, planted

HELDOUT = "tests/stages/test_heldout.py"
PAIRED = "tests/stages/test_losses.py -k 'kto_scores or ld_and_wpo or nothing_to_store or bco or simpo or scores_only'"
WHOLE = "tests/stages/test_pipeline.py -k 'data_order or nothing or killed_pass or whole_job'"

MUTANTS: list[Mutant] = [
    *planted(
        "stages/heldout.py",
        (HELDOUT,),
        (
            "labels of other rows",
            "return np.array([found[row_id] for row_id in row_ids])",
            "return np.array(values)",
        ),
        (
            "a loss on held-out rows goes on from training",
            "{**term.memory(), **steered}",
            "memory[index] if memory else term.memory()",
        ),
        ("the weight of a term is ignored", "total_n += term.weight * losses_n", "total_n += losses_n"),
        (
            "the steered alpha is not taken over",
            'steered = {"alpha": memory[index]["alpha"]} if term.budget and memory else {}',
            "steered = {}",
        ),
        (
            "heads of the reference are its whole log-probs",
            "reference_heads=as_pair(frozen._replace(logps_nP=frozen.heads_nP))",
            "reference_heads=as_pair(frozen)",
        ),
        (
            "policy and reference exchanged",
            "policy, reference = as_pair(now), as_pair(frozen)",
            "policy, reference = as_pair(frozen), as_pair(now)",
        ),
        (
            "KTO's KL is 0",
            "inputs._replace(mismatched_kl=mismatched_kl(policy.rejected, reference.rejected))",
            "inputs._replace(mismatched_kl=jnp.zeros(()))",
        ),
        (
            "KTO's KL is of the completions themselves",
            "mismatched_kl(policy.rejected, reference.rejected)",
            "mismatched_kl(policy.chosen, reference.chosen)",
        ),
        (
            "a loss that cannot be measured is shown",
            "    if any(term.name in TOKEN_LEVEL or term.wpo for term in setup.terms):",
            "    if any(term.name in TOKEN_LEVEL for term in setup.terms):",
        ),
        (
            "rewards without beta",
            "preference_metrics(now.logps_nP, frozen.logps_nP, beta=beta)",
            "preference_metrics(now.logps_nP, frozen.logps_nP, beta=1.0)",
        ),
    ),
    *planted(
        "stages/reference.py",
        (PAIRED, WHOLE),
        (
            "paired and unpaired rows share a store",
            "    if is_unpaired(config.loss):  # other rows of the same file",
            "    if False:",
        ),
        (
            "KTO and BCO share a store",
            'named.append("mismatched" if needs_mismatched(config.loss) else "unpaired")',
            'named.append("unpaired")',
        ),
        ("TR-DPO reads a store", "    if every:\n        return (", "    if False:\n        return ("),
        ("TDPO reads a store", "    if whole:\n", "    if False:\n"),
        (
            "a loss without a reference fills a store",
            "return needs_reference(setup.terms) and why_no_store(setup) is None",
            "return why_no_store(setup) is None",
        ),
        (
            "columns of completions named as pairs",
            "    if is_unpaired(setup.config.loss):\n        kinds",
            "    if False:\n        kinds",
        ),
        ("an evaluation scores the training rows too", "heldout_only=not reads_store(setup)", "heldout_only=False"),
        (
            "the pass scores what is stored again",
            "missing = store.missing(row_ids)",
            "missing = np.arange(len(row_ids))",
        ),
    ),
    *planted(
        "reference/store.py",
        ("tests/reference", PAIRED),
        ("digests are not compared", 'if damaged := changed(target, shard["digests"]):', "if damaged := []:"),
        ("fingerprints are not compared", "        if different:", "        if False:"),
        (
            "rows by their position, not their id",
            "found = self._index.find(as_ids(row_ids))",
            "found = np.minimum(self._index.find(as_ids(row_ids)), np.arange(len(row_ids)))",
        ),
        (
            "heads are whole log-probs",
            "zip(self._names, scores, strict=True)",
            "zip(self._names, (*scores[:2], *scores[:1]), strict=False)",
        ),
        ("every row is missing", "np.flatnonzero(self._index.find(ids) < 0)", "np.arange(len(ids))"),
        ("a log-prob that is not finite is stored", "if not np.isfinite(values_nP).all():", "if False:"),
        ("rows that are missing are overlooked", "if missing := int((found < 0).sum()):", "if False:"),
    ),
    *planted(
        "reference/rows.py",
        ("tests/reference",),
        ("ids by their first half", '.view("S16").ravel()', '.view("S8")[:, 0]'),
        (
            "the place of the next id",
            "np.searchsorted(self._keys, keys)",
            'np.searchsorted(self._keys, keys, side="right")',
        ),
        (
            "any place for what is not there",
            "np.where(self._keys[at] == keys, self._places[at], -1)",
            "self._places[at]",
        ),
    ),
    *planted(
        "reference/score.py",
        ("tests/reference", WHOLE),
        ("the rows that only fill the last batch are stored", "np.asarray(found)[:rows])", "np.asarray(found))"),
        (
            "scores of the batch before",
            "        late, rows_before = now, rows\n",
            "        late, rows_before = (late or now), rows\n",
        ),
        (
            "heads and log-probs exchanged",
            "zip((logps, heads), jax.device_get(late)",
            "zip((heads, logps), jax.device_get(late)",
        ),
    ),
]
