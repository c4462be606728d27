"""Models of one's own: by what their functions compute, and what they are refused for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from safetensors.numpy import load_file
from transformers import AutoTokenizer

import dpo_jax as dj
from dpo_jax.models.own import digest_of_program
from dpo_jax.types import Unembedding
from tests.tiny import make_hf_folder
from tests.tiny_experiment import read_lines, write_pairs

VOCABULARY, WIDTH, RATE = 340, 8, 0.003
SETTINGS: dict[str, Any] = {
    "optimizer": optax.sgd(RATE),
    "batch_pairs": 8,
    "steps": 2,
    "max_tokens": 64,
    "max_prompt_tokens": 32,
}


def hidden(embed: jax.Array, tokens: jax.Array) -> jax.Array:
    """Each token and the mean of those up to it."""
    x_RTD = embed[tokens]
    return x_RTD + jnp.cumsum(x_RTD, axis=1) / (1 + jnp.arange(x_RTD.shape[1]))[None, :, None]


def apply(params: Any, tokens: jax.Array, *_: Any) -> Any:
    return hidden(params["embed"], tokens), params["embed"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoTokenizer.from_pretrained(make_hf_folder(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    path = tmp_path_factory.mktemp("rows") / "pairs.jsonl"
    write_pairs(path, 8)
    return read_lines(path)


@pytest.fixture(scope="module")
def start() -> dict[str, jax.Array]:
    return {"embed": jax.random.normal(jax.random.key(0), (VOCABULARY, WIDTH)), "count": jnp.arange(3)}


def train(model: Any, function: Any, tokenizer: Any, rows: Any, **more: Any) -> dj.Result:
    return dj.train(dj.Model(model, function, tokenizer), rows, **(SETTINGS | more))


def plain_loss(params: Any, tokenizer: Any, rows: Any, start: Any, beta: float) -> jax.Array:
    """DPO of these rows by the formula, each sequence alone."""

    def logp(params: Any, prompt: str, response: str) -> jax.Array:
        before = tokenizer(prompt)["input_ids"]
        ids = jnp.array([tokenizer(prompt + response)["input_ids"] + [tokenizer.eos_token_id]])
        states, weight = apply(params, ids)
        logps = jax.nn.log_softmax(states[0] @ weight.T)
        each = jnp.take_along_axis(logps[:-1], ids[0, 1:, None], axis=1)[:, 0]
        return each[len(before) - 1 :].sum()

    def ratio(row: Any, name: str) -> jax.Array:
        return logp(params, row["prompt"], row[name]) - logp(start, row["prompt"], row[name])

    margins = jnp.array([ratio(row, "chosen") - ratio(row, "rejected") for row in rows])
    return -jax.nn.log_sigmoid(beta * margins).mean()


class Net(nnx.Module):
    def __init__(self, embed: jax.Array) -> None:
        self.embed = nnx.Param(embed)


class Linen(linen.Module):
    @linen.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        embed = self.param("embed", linen.initializers.normal(), (VOCABULARY, WIDTH))
        return hidden(embed, tokens) @ embed.T


FORMS: dict[str, Any] = {
    "hidden states": (lambda params: params, apply),
    "logits": (lambda params: params, lambda params, *batch: (found := apply(params, *batch))[0] @ found[1].T),
    "its own unembedding": (
        lambda params: params,
        lambda params, *batch: (apply(params, *batch)[0], Unembedding(params["embed"], VOCABULARY)),
    ),
    "nnx": (
        lambda params: Net(params["embed"]),
        lambda net, tokens, *_: (hidden(net.embed[...], tokens), net.embed[...]),
    ),
    "linen": (
        lambda params: {"params": {"embed": params["embed"]}},
        lambda variables, tokens, *_: Linen().apply(variables, tokens),
    ),
}


@pytest.fixture(scope="module")
def expected(tokenizer: Any, rows: Any, start: Any) -> tuple[list[float], np.ndarray]:
    """The losses of the two steps by the formula, and the embeddings after the first."""
    slope = jax.grad(lambda now: plain_loss({"embed": now}, tokenizer, rows, start, 0.5))(start["embed"])
    moved = start["embed"] - RATE * slope
    return [np.log(2), float(plain_loss({"embed": moved}, tokenizer, rows, start, 0.5))], np.asarray(moved)


@pytest.mark.parametrize("form", FORMS)
def test_any_form_of_a_model_trains_to_the_numbers_of_the_formula(
    form: str, tokenizer: Any, rows: Any, start: Any, expected: Any, tmp_path: Path
):
    make, function = FORMS[form]
    before = np.array(start["embed"])
    result = train(make(start), function, tokenizer, rows, beta=0.5, save_every=1)
    np.testing.assert_allclose([row["loss"] for row in result.metrics], expected[0], rtol=1e-4)
    assert np.array_equal(start["embed"], before)  # what was given is never used up
    after = jax.tree.leaves(nnx.to_pure_dict(nnx.state(result.model)) if form == "nnx" else result.model)
    assert after[-1 if form != "hidden states" else 1].shape == (VOCABULARY, WIDTH)
    if form == "hidden states":
        assert result.model["count"].tolist() == [0, 1, 2]  # no float: it is no parameter, and stays
        saved = load_file(result.save(tmp_path / "out") / "model.safetensors")
        np.testing.assert_array_equal(saved["embed"], result.model["embed"])
        assert 0 < np.abs(saved["embed"] - expected[1]).max() < 1.0


def test_greedy_samples_are_those_of_the_function(tokenizer: Any, rows: Any, start: Any):
    result = train(start, apply, tokenizer, rows)
    prompt = rows[0]["prompt"]
    ids = list(tokenizer(prompt)["input_ids"])
    for _ in range(5):
        states, weight = apply(result.model, jnp.array([ids]))
        ids.append(int(jnp.argmax(states[0, -1] @ weight.T)))
    (answer,) = result.sample([prompt], max_new_tokens=5, temperature=0.0)
    assert answer == tokenizer.decode(ids[-5:], skip_special_tokens=True)
    measured = result.evaluate(rows, samples=2, max_new_tokens=3)
    assert measured.heldout.pairs == 8 and measured.kl.exact is not None


@pytest.mark.parametrize(
    ("function", "more", "says"),
    [
        (lambda p, t, *_: (hidden(p["embed"], t[:, ::-1])[:, ::-1], p["embed"]), {}, "sees the ones after it"),
        (apply, {"layout": "packed"}, "a token sees those of another sequence"),
        (apply, {"layout": "shared"}, "a response sees the other one"),
        (lambda p, t, *_: (hidden(p["embed"], t), p["embed"].T), {}, r"must be \[vocabulary, width\]. Transpose it"),
        (lambda p, t, *_: hidden(p["embed"], t)[:, 0], {}, "It must give logits"),
        (lambda p, t, *_: {"logits": p["embed"][t]}, {}, "gave a dict for tokens"),
        (apply, {"lora": {"rank": 2}}, "lora: is not for a model of one's own"),
    ],
)
def test_what_computes_something_else_is_refused(function, more, says, tokenizer: Any, rows: Any, start: Any):
    with pytest.raises(dj.UserError, match=says):
        train(start, function, tokenizer, rows, **more)


def test_a_run_goes_on_with_the_same_program_and_arrays_alone(tokenizer: Any, rows: Any, start: Any, tmp_path: Path):
    run: dict[str, Any] = {"workdir": tmp_path / "run"}
    train(start, apply, tokenizer, rows, **run)
    train(start, apply, tokenizer, rows, **run)
    with pytest.raises(dj.UserError, match=r"model\.weights"):
        train({**start, "embed": start["embed"] + 1e-3}, apply, tokenizer, rows, **run)
    with pytest.raises(dj.UserError, match="program"):
        train(start, lambda p, *b: (1.5 * apply(p, *b)[0], p["embed"]), tokenizer, rows, **run)
    held = {scale: jnp.full(3, scale) for scale in (1, 2)}
    fixed = [digest_of_program(jax.make_jaxpr(held[scale].__mul__)(1.0)) for scale in held]
    assert fixed[0] != fixed[1]  # arrays that a function closes over
    with pytest.raises(dj.UserError, match="holds no floating arrays"):
        train({"a": 1}, apply, tokenizer, rows)
