"""Files of responses as AlpacaEval and Arena-Hard have them: read to be judged, and written for their own judges.

AlpacaEval: objects of `instruction`, `output`, `generator`, as one JSON array; JSON Lines are read too. Arena-Hard:
JSON Lines of `uid`, `model`, `messages` (version 2) or of `question_id`, `model_id`, `choices` (0.1), whose questions
are in a file of their own. What is written for it holds both; the lengths and counts of Markdown that its style control
reads are added by a script of its own.

Dimension key: n responses.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dpo_jax.config.evaluation import OutputsConfig
from dpo_jax.data.sources import PAIRS, paths
from dpo_jax.data.sources.record import Record
from dpo_jax.errors import BadRow, UserError
from dpo_jax.files import digest, write_atomic, write_json
from dpo_jax.types import PreferencePair, Prompt


class Output(NamedTuple):
    """One response. `uid` is the question's id, None where nobody has given it one."""

    prompt: str
    text: str
    generator: str
    uid: str | None


class Matched(NamedTuple):
    """The responses of two models to the same prompts, side by side: n of each."""

    prompts: list[Prompt]
    policy: list[Output]
    reference: list[Output]
    difficulty_n: np.ndarray | None = None  # of their instructions, where it is known


def read_matched(config: OutputsConfig) -> Matched:
    """Both files of a configuration; the k-th response to a prompt in one belongs to the k-th in the other.

    Raises:
        UserError: a file cannot be read, a row is no response, a prompt is not in both files equally often, or there
            is not one difficulty for each response of the policy.
    """
    questions = _questions(config.questions) if config.questions else {}
    by_prompt: dict[str, list[Output]] = defaultdict(list)
    for output in _outputs(config.reference, questions):
        by_prompt[output.prompt].append(output)
    matched, alone = Matched([], [], []), []
    for output in _outputs(config.policy, questions):
        if not by_prompt[output.prompt]:
            alone.append(output.prompt)
            continue
        matched.prompts.append(Prompt(output.prompt, None, config.policy))
        matched.policy.append(output)
        matched.reference.append(by_prompt[output.prompt].pop(0))
    left = [output.prompt for outputs in by_prompt.values() for output in outputs]
    for path, prompts in ((config.reference, alone), (config.policy, left)):
        if prompts:
            raise UserError(
                f"evaluation.outputs: {path} has no response to {len(prompts)} of the prompts in the other file, such "
                f"as {prompts[0][:80]!r}. Both have to answer the same prompts, equally often."
            )
    if config.difficulty is None:
        return matched
    return matched._replace(difficulty_n=_difficulty(config.difficulty, len(matched.policy)))


def read_benchmark(path: str) -> tuple[list[PreferencePair], list[str]]:
    """The pairs of RewardBench, and the subset of each.

    Raises:
        UserError: the file cannot be read, or a row cannot be used.
    """
    pairs, subsets = list[PreferencePair](), list[str]()
    columns = {name: name for name in PAIRS.columns}
    for record in _records(path):
        (pair,) = PAIRS.make(record, columns)
        subset = record.values.get("subset")
        if not isinstance(subset, str) or not subset:
            raise UserError(f"{record.where}: subset is {subset!r}; evaluation.rewardbench wants its name, as text.")
        pairs.append(pair)
        subsets.append(subset)
    if not pairs:
        raise UserError(f"evaluation.rewardbench: {path} holds no rows: it is empty.")
    return pairs, subsets


def judged_text(pair: PreferencePair, slot: int) -> str:
    """A response of a benchmark, for a judge; raises UserError where it is no text."""
    response = pair.responses[slot]
    if not isinstance(response, str):
        raise UserError(f"{pair.where}: a judge of RewardBench reads texts, and this response is a list of messages.")
    return response


def write_outputs(folder: Path, matched: Matched) -> None:
    """`alpaca_eval/MODEL.json`, `arena_hard/model_answer/MODEL.jsonl` and `arena_hard/question.jsonl`."""
    now = time.time()
    for name, outputs in (("policy", matched.policy), ("reference", matched.reference)):
        rows = [{"instruction": each.prompt, "output": each.text, "generator": each.generator} for each in outputs]
        write_json(folder / "alpaca_eval" / f"{name}.json", rows)
        answers = [_answer(each, now) for each in outputs]
        _write_lines(folder / "arena_hard" / "model_answer" / f"{name}.jsonl", answers)
    asked = {_uid(each): each.prompt for each in matched.policy}
    _write_lines(folder / "arena_hard" / "question.jsonl", [_question(uid, prompt) for uid, prompt in asked.items()])


def _outputs(path: str, questions: Mapping[str, str]) -> list[Output]:
    uids = {prompt: uid for uid, prompt in questions.items()}
    outputs = []
    for record in _records(path):
        output = _output(record, questions)
        generator = output.generator or Path(path).stem
        outputs.append(output._replace(generator=generator, uid=output.uid or uids.get(output.prompt)))
    if not outputs:
        raise UserError(f"evaluation.outputs: {path} holds no responses.")
    return outputs


def _output(record: Record, questions: Mapping[str, str]) -> Output:
    row = record.values
    uid = row.get("uid", row.get("question_id"))
    uid = None if uid is None else str(uid)
    generator = str(row.get("generator") or row.get("model") or row.get("model_id") or "")
    try:
        if "choices" in row:
            if uid is None or uid not in questions:
                raise UserError(
                    f"{record.where}: question {uid!r} is not in evaluation.outputs.questions, and the answer does not "
                    "repeat it. Name the file with Arena-Hard's questions there."
                )
            return Output(questions[uid], _text(row["choices"][0]["turns"][0]["content"]), generator, uid)
        if "messages" in row:
            *turns, last = row["messages"]
            asked = [turn["content"] for turn in turns if turn["role"] == "user"]
            answer = last["content"]["answer"] if isinstance(last["content"], Mapping) else last["content"]
            return Output(_text(asked[-1]), _text(answer), generator, uid)
        prompt = row["instruction"] if "instruction" in row else row["prompt"]
        return Output(_text(prompt), _text(row["output"]), generator, uid)
    except (LookupError, TypeError, ValueError):
        raise UserError(
            f"{record.where}: no response of a known form. Allowed: instruction (or prompt) and output, as AlpacaEval "
            "has them; uid, model and messages, or question_id, model_id and choices, as Arena-Hard does."
        ) from None


def _questions(path: str) -> dict[str, str]:
    """Arena-Hard's questions by their ids."""
    prompts = {}
    for record in _records(path):
        row = record.values
        try:
            prompt = row["prompt"] if "prompt" in row else row["turns"][0]["content"]
            prompts[str(row["uid"] if "uid" in row else row["question_id"])] = _text(prompt)
        except (LookupError, TypeError, ValueError):
            raise UserError(
                f"{record.where}: no question: uid and prompt, or question_id and turns, are wanted."
            ) from None
    return prompts


def _difficulty(path: str, rows: int) -> np.ndarray:
    """The column instruction_difficulty, as AlpacaEval's file has it, float [rows]."""
    numbers = []
    for record in _records(path):
        try:
            numbers.append(float(record.values["instruction_difficulty"]))
        except (LookupError, TypeError, ValueError, OverflowError):
            raise UserError(f"{record.where}: a number is wanted in the column instruction_difficulty.") from None
    if len(numbers) != rows or not np.isfinite(numbers).all():
        raise UserError(
            f"evaluation.outputs.difficulty: {path} has {len(numbers)} rows; {rows} finite numbers are wanted, one for "
            "each response, in the order of evaluation.outputs.policy."
        )
    return np.array(numbers)


def _records(path: str) -> list[Record]:
    records = []
    for record in paths.read({"path": path}):
        if isinstance(record, BadRow):
            raise record
        records.append(record)
    return records


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("not text")
    return value


def _uid(output: Output) -> str:
    return output.uid or digest(output.prompt.encode())


def _answer(output: Output, now: float) -> dict[str, Any]:
    uid, answer_id = _uid(output), digest(f"{output.generator}\n{output.prompt}\n{output.text}".encode())
    return {
        "uid": uid,
        "ans_id": answer_id,
        "model": output.generator,
        "messages": [
            {"role": "user", "content": output.prompt},
            {"role": "assistant", "content": {"answer": output.text}},
        ],
        "question_id": uid,
        "answer_id": answer_id,
        "model_id": output.generator,
        "choices": [{"index": 0, "turns": [{"content": output.text}]}],
        "tstamp": now,
    }


def _question(uid: str, prompt: str) -> dict[str, Any]:
    turns = [{"content": prompt}]
    return {"uid": uid, "question_id": uid, "category": "own", "subcategory": "own", "prompt": prompt, "turns": turns}


def _write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))
