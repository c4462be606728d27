"""Bugs in the reward model: where it reads, what it learns, its folder, its verdicts."""

from __future__ import annotations

from tests.contracts.mutants.mutant import Mutant, planted

BY_VALUE = ("tests/models/test_heads.py -k 'last or head or bfloat16'",)
OBJECTIVE = ("tests/stages/test_reward.py -k 'by_hand or devices or weight_does or bring'",)
LEARNS = ("tests/stages/test_reward.py -k 'learns or alike or resuming or margins_and'",)
ADAPTER = ("tests/stages/test_reward.py -k adapter",)
SAMPLES = ("tests/stages/test_reward.py -k 'white_space or judges_samples'",)
FOLDER = ("tests/weights/test_reward.py",)
VERDICTS = ("tests/evaluation/test_rewards.py tests/evaluation/test_winrate.py",)

MUTANTS: list[Mutant] = [
    *planted(
        "models/heads.py",
        BY_VALUE,
        ("reads the token before the last", "jnp.where(own_RN >= 0, own_RN, whole_RN))", "whole_RN - 1)"),
        ("reads the last scored token", "jnp.where(own_RN >= 0, own_RN, whole_RN))", "batch.source_RN + 1)"),
        (
            "behind a shared prompt: reads the end of the prompt",
            "jnp.where(own_RN >= 0, own_RN, whole_RN))",
            "whole_RN)",
        ),
        (
            "behind a shared prompt: reads the other response",
            "first_part_RN + 1 + slot_RN",
            "first_part_RN + 2 - slot_RN",
        ),
        (
            "packed: reads the end of the row",
            "jnp.take_along_axis(last_RV, source_part_RN, axis=1)",
            "last_RV[:, 1:].max(axis=1)[:, None]",
        ),
        (
            "sums over all tokens of a response",
            "jnp.where(batch.response_RN != after_RN, rewards_RN, 0.0)",
            "rewards_RN",
        ),
        (
            "computes in the dtype of the trunk",
            "hidden_RTD.astype(jnp.promote_types(hidden_RTD.dtype, jnp.float32))",
            "hidden_RTD; weight_D = weight_D.astype(wide_RTD.dtype)",
        ),
        ("the head begins D times too large", "/ math.sqrt(self.spec.width + 1)", "* math.sqrt(self.spec.width + 1)"),
        (
            "the head is not trained beside an adapter",
            "return self._with_head(self.trunk.trained)",
            "return self.trunk.trained",
        ),
        ("dropout is forgotten", "lots = () if key is None else (key,)", "lots = ()"),
        ("the unembedding is kept", "dataclasses.replace(spec, tied=True)", "spec"),
    ),
    *planted(
        "stages/reward.py",
        OBJECTIVE,
        (
            "chosen and rejected swapped in the loss",
            "bradley_terry(chosen_B, rejected_B, **",
            "bradley_terry(rejected_B, chosen_B, **",
        ),
        (
            "chosen and rejected swapped in columns",
            "rewards_BP[:, 0], rewards_BP[:, 1]\n        losses_B",
            "rewards_BP[:, 1], rewards_BP[:, 0]\n        losses_B",
        ),
        ("the options are ignored", ', **_with_margins(knobs["options"], batch.margin_B))', ")"),
        ("margins of pairs are ignored", '_with_margins(knobs["options"], batch.margin_B)', 'knobs["options"]'),
        ("a pair's margin takes the place of the option's", 'options["margin"] + margin_B}', "margin_B}"),
        ("weights of pairs are ignored", "losses_B *= batch.loss_weight_B", "pass"),
        ("the mean over a micro-batch", '/ counts["pairs"], metrics', "/ batch.weight_B.sum(), metrics"),
        ("pairs without weight count", "(losses_B * batch.weight_B).sum()", "losses_B.sum()"),
        ("a tie is right", "(chosen_B > rejected_B)", "(chosen_B < rejected_B)"),
        (
            "the head is not trained",
            "model.rewards(whole, batch, key",
            "model.rewards({**whole, 'head': jax.lax.stop_gradient(whole['head'])}, batch, key",
        ),
    ),
    *planted(
        "stages/reward.py",
        LEARNS,
        ("the held-out loss without its options", ", **_with_margins(term.knobs(0), data.margin_B))", ")"),
        (
            "the held-out loss without the pairs' margins",
            "_with_margins(term.knobs(0), data.margin_B)",
            "term.knobs(0)",
        ),
        ("margins do not reach the batch", '"margin_B": data.margin_B, "source_B"', '"source_B"'),
        ("weights do not reach the batch", '{"loss_weight_B": data.weight_B, "margin_B"', '{"margin_B"'),
        ("soft labels are ignored", "if data.soft_label_B is not None:", "if False:"),
        (
            "sources are not told apart in metrics",
            "reward_objective(model, setup.train_data.sources)",
            "reward_objective(model)",
        ),
        ("it learns by the optimizer of the policy", "optimizer=config.reward.optimizer", "optimizer=config.optimizer"),
        ("it lies where the policy lies", "folder=reward_folder(setup)", "folder=setup.workdir"),
        ("options do not reach the step", '{"options": term.knobs(step)}', '{"options": {}}'),
    ),
    *planted(
        "stages/reward.py",
        ("tests/stages/test_reward.py -k fine_tuned",),
        (
            "it starts from the pretrained weights",
            "trunk_of(setup.start_params())\n        return",
            "trunk_of(setup.pretrained())\n        return",
        ),
    ),
    *planted(
        "stages/resume.py",
        LEARNS,
        ("another reward model goes on", '"reward": ("reward", "lora"', '"reward": ("lora"'),
        (
            "a loss of the policy's stops the reward model",
            '"reward": ("reward", "lora"',
            '"reward": ("reward", "loss", "lora"',
        ),
    ),
    *planted(
        "stages/fit.py",
        LEARNS,
        (
            "WORKDIR/config.yaml is the reward model's",
            'folder if stage == "reward" else setup.workdir',
            "setup.workdir",
        ),
    ),
    *planted(
        "stages/scoring.py",
        ADAPTER,
        (
            "the folder is without the adapter",
            "merge(trunk_of(setup.start_params(held=False)), found, lora)",
            "trunk_of(setup.start_params(held=False))",
        ),
    ),
    *planted(
        "stages/scoring.py",
        LEARNS,
        (
            "a judge's rewards in the order of the batches",
            "[found[row.row_id] for row in rows]",
            "list(found.values())",
        ),
        (
            "a run's text is cut as this run cuts it",
            "dataclasses.replace(config, workdir=str(folder))",
            "dataclasses.replace(config, workdir=str(folder), data=setup.config.data)",
        ),
    ),
    *planted(
        "stages/judging.py",
        SAMPLES,
        (
            "policy and reference swapped",
            "judge.scores([*prompts, *prompts], [*policy, *reference])",
            "judge.scores([*prompts, *prompts], [*reference, *policy])",
        ),
        (
            "prompts beside other responses",
            "judge.scores([*prompts, *prompts], [",
            "judge.scores([*prompts, *prompts][::-1], [",
        ),
    ),
    *planted(
        "stages/evaluate.py",
        SAMPLES,
        ("white space is lost", "{name: found.written for", "{name: found.texts for"),
    ),
    *planted(
        "weights/reward.py",
        FOLDER,
        ("padding is the EOS", "and token not in ends and", "and"),
        ("the EOS may pad where no row ends with it", "[*ends, tokenizer.eos_token_id]", "[*ends]"),
        ("padding on the left", 'tokenizer.padding_side = "right"', 'tokenizer.padding_side = "left"'),
        (
            "the tokenizer pads with another token than the config",
            "tokenizer.pad_token = None if pad is None else tokenizer.convert_ids_to_tokens(pad)",
            "pass",
        ),
        ("a model without a score is taken", "if _SCORE.name not in source.shapes:", "if False:"),
    ),
    *planted(
        "evaluation/rewards.py",
        VERDICTS,
        ("a tie is right on pairs", "margins_B > 0", "margins_B >= 0"),
        ("a tie is a loss", "(1 + np.sign(differences_n)) / 2", "(differences_n > 0) * 1.0"),
        (
            "answers to one prompt are independent",
            "bootstrap_interval(values_n, groups_n)",
            "bootstrap_interval(values_n, np.arange(len(values_n)))",
        ),
        (
            "the difference is the reference's",
            "= policy_n - reference_n, groups_of",
            "= reference_n - policy_n, groups_of",
        ),
    ),
    *planted(
        "evaluation/winrate.py",
        VERDICTS,
        (
            "wins over one prompt are independent",
            "bootstrap_interval(verdicts_n, groups_n)",
            "bootstrap_interval(verdicts_n, np.arange(len(verdicts_n)))",
        ),
        ("all won counts by sample", "prompts = int(groups_n.max()) + 1", "prompts = len(groups_n)"),
    ),
    *planted(
        "evaluation/intervals.py",
        VERDICTS,
        ("90 % bootstrapped", "[0.025, 0.975]", "[0.05, 0.95]"),
        (
            "the groups' values are averaged first",
            "sums[drawn].sum() / counts[drawn].sum()",
            "(sums / counts)[drawn].mean()",
        ),
    ),
]
