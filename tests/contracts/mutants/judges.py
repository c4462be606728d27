"""Bugs in judges, in the pairs made of their scores, in sweeps, in models made from nothing, and in what is watched."""

from __future__ import annotations

from tests.contracts.mutants.mutant import Mutant, planted

INTERFACE = ("tests/evaluation/judges/test_interface.py",)
HTTP = ("tests/evaluation/judges/test_http.py",)
WORDING = ("tests/evaluation/judges/test_wording.py",)
PROGRAMS = ("tests/evaluation/judges/test_programs.py",)
LEXICON = ("tests/evaluation/judges/test_lexicon.py",)
SELECTION = ("tests/evaluation/test_selection.py",)
PAIRS = ("tests/stages/test_pairs.py",)
GRID = ("tests/stages/test_sweep.py -k 'section or names or numbers or nonsense'",)
SWEEP = ("tests/stages/test_sweep.py",)
SCRATCH = ("tests/stages/test_scratch.py",)
WATCH = ("tests/stages/test_watch.py",)

MUTANTS: list[Mutant] = [
    *planted(
        "evaluation/judges/interface.py",
        INTERFACE,
        ("the lower score wins", "scores[: len(a)] - scores[len(a) :]", "scores[len(a) :] - scores[: len(a)]"),
        ("the second order is not turned round", "1 - wins[len(asked) :]", "wins[len(asked) :]"),
        ("one order only", "(self.a_first + self.b_first) / 2", "self.a_first"),
        ("equal responses are asked about", "if both[0].strip() != both[1].strip()]", "if True]"),
        ("NaN is a score", "if not np.isfinite(found).all():", "if False:"),
        ("a verdict of 2 is one", "if wins.min() < 0 or wins.max() > 1:", "if False:"),
    ),
    *planted(
        "evaluation/judges/http.py",
        HTTP,
        (
            "nonsense is kept",
            "            if found is None:\n                return 0.5\n",
            "            found = 0.5 if found is None else found\n",
        ),
        ("known verdicts are asked again", "if cache.get(key) is None}", "if True}"),
        ("the template is not in the key", "chat.settings, template, text)", "chat.settings, text)"),
        ("the settings are not in the key", "chat.model, chat.settings, template", "chat.model, template"),
        ("mostly nonsense is fine", "_MUCH_NONSENSE = 0.5", "_MUCH_NONSENSE = 2.0"),
        (
            "the prices change places",
            "prompt_tokens * input_price + completion_tokens * output_price",
            "prompt_tokens * output_price + completion_tokens * input_price",
        ),
    ),
    *planted(
        "evaluation/judges/wording.py",
        WORDING,
        ("the first verdict counts", "label = bracketed[-1]", "label = bracketed[0]"),
        ("a thought is an answer", 'answer = _THOUGHT.sub("", answer)', "answer = answer"),
        ("B wins as A does", '"B": 0.0', '"B": 1.0'),
        (
            "fields within texts are filled",
            "_FIELD.sub(lambda match: texts.get(match[1], match[0]), template)",
            "template.format(**texts)",
        ),
        (
            "a template may lack a response",
            "for field in FIELDS if field not in found]",
            "for field in () if field not in found]",
        ),
    ),
    *planted(
        "evaluation/judges/command.py",
        PROGRAMS,
        ("a program that failed has said enough", "    if done.returncode:", "    if False:"),
        ("fewer lines than asked", "if len(lines) != len(rows):", "if len(lines) > len(rows):"),
        ("true is a number", "if isinstance(value, bool) or not", "if not"),
    ),
    *planted(
        "evaluation/judges/lexicon.py",
        LEXICON,
        ("long texts weigh more", " / max(1, len(found))", ""),
        ("a word may be there twice", "        if word in found:", "        if False:"),
    ),
    *planted(
        "evaluation/selection.py",
        SELECTION,
        (
            "the worse is chosen",
            "if scores_S[first] > scores_S[second] else (second, first)",
            "if scores_S[first] < scores_S[second] else (second, first)",
        ),
        ("a gap as large as asked is enough", "scores_S[rejected] > min_gap", "scores_S[rejected] >= min_gap"),
        (
            "an empty response is rejected",
            "for place, text in enumerate(texts) if text.strip()]",
            "for place, text in enumerate(texts)]",
        ),
        (
            "places of the written are those of all",
            "(int(written[a]), int(written[b])) for a, b in places",
            "(a, b) for a, b in places",
        ),
        (
            "the second wins what the first did",
            "np.add.at(row_S, second, 1 - won_C)",
            "np.add.at(row_S, second, won_C)",
        ),
        ("shares of all responses", "shares_NS / (samples - 1)", "shares_NS / samples"),
    ),
    *planted(
        "stages/pairs.py",
        PAIRS,
        (
            "every prompt has the responses of the first",
            "found.written[n * samples : (n + 1) * samples]",
            "found.written[:samples]",
        ),
        ("the trained policy is not asked", 'Checkpoints(setup.workdir / "checkpoints").latest() is None', "True"),
        (
            "scores change places",
            '"chosen_score": float(scores_NS[n, chosen])',
            '"chosen_score": float(scores_NS[n, rejected])',
        ),
    ),
    *planted(
        "stages/grid.py",
        GRID,
        (
            "small numbers are text",
            "return float(value) if isinstance(value, str) else",
            "return value if isinstance(value, str) else",
        ),
        ("a point may be there twice", "if labels.count(label) > 1:", "if False:"),
        (
            "the section comes beside the command line",
            "[_axes(grid)] if grid else [",
            "([_axes(grid)] if grid else []) + [",
        ),
        ("names that mean two keys are cut", "name if last.count(name) == 1 else key", "name"),
        (
            "folders with a slash",
            'return plain if plain == label else f"{plain}-{digest(label.encode())[:8]}"',
            "return label",
        ),
    ),
    *planted(
        "stages/sweep.py",
        SWEEP,
        ("each point has its own store", '        f"--reference.store={store}",\n', ""),
        (
            "each point has its own fine-tuning",
            "        return base.sft_folder\n",
            '        return base.workdir / "own"\n',
        ),
        (
            "points are done for ever",
            'if _decides(result["config"]) == _decides(json.loads(json.dumps(as_mapping(point.config)))):',
            "if True:",
        ),
        ("the best of n is that of any prompts", '"prompts": config["data"]["eval"], ', ""),
        ("how long it trains is no matter", 'for key in ("train", "evaluation")}', 'for key in ("evaluation",)}'),
        (
            "what is null decides",
            "for key, value in found.items() if value is not None}",
            "for key, value in found.items()}",
        ),
        (
            "a point that fails ends all",
            '    except UserError as error:\n        say("sweep", f"left out: {error}")\n        return',
            '    except ZeroDivisionError as error:\n        say("sweep", f"left out: {error}")\n        return',
        ),
    ),
    *planted(
        "stages/scratch.py",
        SCRATCH,
        ("the weights are always the same", "jax.random.key(options.seed)", "jax.random.key(0)"),
        ("what is there is made anew", "    if folder.exists():", "    if False:"),
        ("a head may be odd", "if options.width % (2 * options.heads):", "if options.width % options.heads:"),
    ),
    *planted(
        "stages/watch.py",
        WATCH,
        ("samples are drawn anew each time", "jax.random.key(setup.config.seed)", "jax.random.key(done)"),
        ("every step is looked at", "if not options.every or done % options.every:", "if not options.every:"),
        ("the file is named by nothing", 'f"{done:06}.jsonl"', '"samples.jsonl"'),
    ),
]
