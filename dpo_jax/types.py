"""The nouns that cross rooms: rows, token batches, log-probabilities, the unembedding, metrics.

Dimension key: A micro-batches, B pairs, P slot in the pair (0 chosen, 1 rejected; a completion alone has P = 1),
R rows, T tokens, N scored tokens, V vocabulary, D width, W words of a row id; X stands for all axes of a picture,
[H, W, C], or of a clip, [F, H, W, C].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import numpy as np

Params = dict[str, Any]
"""A plain nested dict of arrays; never a Flax class outside `models`."""


Message = Mapping[str, Any]
"""One turn of a conversation: `role`, `content`, and what else its template reads. Plain data, never changed."""

Text = str | tuple[Message, ...]
"""A prompt or a response: text, or the turns of a conversation."""


class PreferencePair(NamedTuple):
    """One preference: the same prompt answered twice. `where` names file and line, for messages.

    `tools` and `chat_template_kwargs` are for the chat template. `margin` is by how much chosen is better, `weight` how
    much the pair counts, `soft_label` the probability that chosen is better: None where the row does not say.
    """

    row_id: str
    prompt: Text
    chosen: Text
    rejected: Text
    where: str
    tools: tuple[Message, ...] | None = None
    chat_template_kwargs: Mapping[str, object] | None = None
    weight: float | None = None
    margin: float | None = None
    soft_label: float | None = None
    source: str = ""  # the name of its source, for metrics

    @property
    def responses(self) -> tuple[Text, ...]:
        """The responses by slot: chosen, rejected."""
        return (self.chosen, self.rejected)


class Ranking(NamedTuple):
    """One prompt answered K times, best first. `where` names file and line, for messages."""

    prompt: Text
    responses: tuple[Text, ...]
    where: str
    tools: tuple[Message, ...] | None = None
    chat_template_kwargs: Mapping[str, object] | None = None
    weight: float | None = None


class Completion(NamedTuple):
    """One response to one prompt, as supervised fine-tuning reads it. `where` names file and line.

    The prompt of plain text is "": it is scored from its first token on that has one before it.
    """

    row_id: str
    prompt: Text
    completion: Text
    where: str
    tools: tuple[Message, ...] | None = None
    chat_template_kwargs: Mapping[str, object] | None = None
    weight: float | None = None
    source: str = ""  # the name of its source, for metrics

    @property
    def responses(self) -> tuple[Text, ...]:
        """The responses by slot: only one."""
        return (self.completion,)


class UnpairedCompletion(NamedTuple):
    """One completion, and its label, good or bad. `where` names file and line.

    `mismatched` is the completion of another row with another prompt, where a loss measures its KL on such (KTO).
    """

    row_id: str
    prompt: Text
    completion: Text
    desirable: bool
    mismatched: Text | None
    where: str
    tools: tuple[Message, ...] | None = None
    chat_template_kwargs: Mapping[str, object] | None = None
    weight: float | None = None
    source: str = ""  # the name of its source, for metrics

    @property
    def responses(self) -> tuple[Text, ...]:
        """The responses by slot: the completion, and the mismatched one where there is one."""
        return (self.completion,) if self.mismatched is None else (self.completion, self.mismatched)


class Prompt(NamedTuple):
    """A prompt to be answered, and the data set that its row names, if any. `where` names file and line."""

    prompt: Text
    dataset: object
    where: str
    tools: tuple[Message, ...] | None = None
    chat_template_kwargs: Mapping[str, object] | None = None

    @property
    def text(self) -> str:
        """The prompt for people to read: a conversation as its turns, each behind its role."""
        if isinstance(self.prompt, str):
            return self.prompt
        return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in self.prompt)


class TokenRow(NamedTuple):
    """One row as token ids (int32): a prompt and its P responses, already truncated, each with its EOS.

    `masks` has True at each token of a response that is scored (one at least); None: all are.
    """

    row_id: str
    prompt: np.ndarray
    responses: tuple[np.ndarray, ...]
    masks: tuple[np.ndarray, ...] | None = None


class PairLogps(NamedTuple):
    """Response log-probabilities: sums over response tokens in nats, float [B], and token counts [B]."""

    chosen: jax.Array
    rejected: jax.Array
    chosen_tokens: jax.Array | None = None
    rejected_tokens: jax.Array | None = None


SEGMENT_PARTS = 3
"""Parts that a segment may have: a prompt, and two responses that share it."""


class PairBatch(NamedTuple):
    """One device batch, whatever its layout: rows of tokens, and one entry for each scored token.

    A row may hold several segments, which do not see each other. In a segment a token sees those before it of part 0,
    and those of its own part: `segments_RT` is 1 + SEGMENT_PARTS * segment + part, and 0 on padding.

    `source_RN` is the position in the row whose hidden state predicts `target_RN`; `response_RN` says which response
    the token belongs to (P * pair + slot, -1 on padding). A training batch has a leading axis A of micro-batches on
    every array, and `response_RN` counts inside its micro-batch.

    `sequences` is for forms of attention that know no segments. It says where each sequence stands, a prompt and one
    response: rows are divided into U equal parts, M sequences of a part have up to L tokens, and an entry is a place
    among all tokens of the part, -1 behind the end; an array for each L. Empty: rows may be attended as they are;
    None: nobody has looked.
    """

    tokens_RT: jax.Array  # int32 token ids
    positions_RT: jax.Array  # int32, restarting with every segment, and with part 2 where part 1 did
    segments_RT: jax.Array  # int32, which segment and which part of it
    source_RN: jax.Array  # int32
    target_RN: jax.Array  # int32
    response_RN: jax.Array  # int32
    response_tokens_BP: jax.Array  # float32 count of scored tokens of each response
    weight_B: jax.Array  # float32, 0 where a pair only fills the last evaluation batch
    reference_logps_BP: jax.Array | None = None  # float32, summed log-probs under the reference, nats
    reference_heads_BP: jax.Array | None = None  # the same over each response's head, its first tokens (LD-DPO)
    desirable_B: jax.Array | None = None  # float32 1 or 0: the labels of unpaired completions (P = 1)
    loss_weight_B: jax.Array | None = None  # float32, what the losses of a pair are multiplied by
    margin_B: jax.Array | None = None  # float32, by how much the chosen response is better
    soft_label_B: jax.Array | None = None  # float32, probability that the chosen response is the better one
    source_B: jax.Array | None = None  # float32, which source a pair is from
    sequences: tuple[jax.Array, ...] | None = None  # int32 [U, M, L] each, see above
    mismatched: PairBatch | None = None  # for KTO: the same prompts with the mismatched completions (P = 1)


class HostBatch(NamedTuple):
    """A `PairBatch` of numpy arrays, and the ids and places of its rows, in the order of its pairs."""

    arrays: PairBatch
    row_ids: tuple[str, ...]
    places: tuple[int, ...]  # among the rows that batches are made of, of which several may have one id

    @property
    def work(self) -> dict[str, int]:
        """Amount of work, for rates: real pairs, and real tokens through the trunk."""
        return {
            "pairs": int(self.arrays.weight_B.sum()),
            "tokens": int(np.count_nonzero(self.arrays.segments_RT)),
        }


class PictureRow(NamedTuple):
    """A picture or a clip, or two that are compared. `where` names file and row, for messages.

    Pixels are read and decoded when a sample is called: uint8 [H, W, C], of a clip [F, H, W, C].
    """

    row_id: str
    samples: tuple[Callable[[], np.ndarray], ...]  # by slot: chosen, rejected; or only one
    where: str
    shown: int | np.ndarray | None = None  # what they are to show: a class, or a text embedding, float32 [E]
    desirable: bool | None = None  # the label of a sample alone
    weight: float | None = None  # how much the row counts
    source: str = ""  # the name of its source, for metrics


class PictureBatch(NamedTuple):
    """One device batch of pictures or clips. A training batch has a leading axis A of micro-batches on every array."""

    samples_BPX: jax.Array  # uint8
    words_BW: jax.Array  # uint32, the row ids, from which random draws come
    epoch_B: jax.Array  # int32, how often the row was there before
    weight_B: jax.Array  # float32, 0 where a row only fills the last batch of an evaluation
    shown_B: jax.Array | None = None  # int32 classes, or float32 [B, E]
    desirable_B: jax.Array | None = None  # float32 1 or 0 (P = 1)
    loss_weight_B: jax.Array | None = None  # float32, what the loss of a row is multiplied by
    reference_errors_BP: jax.Array | None = None  # float32, denoising errors of the reference at this epoch's draw


class HostPictures(NamedTuple):
    """A `PictureBatch` of numpy arrays and the ids of its rows, in their order."""

    arrays: PictureBatch
    row_ids: tuple[str, ...]

    @property
    def work(self) -> dict[str, int]:
        """Amount of work, for rates: real rows, and their pictures or clips."""
        rows = int(self.arrays.weight_B.sum())
        return {"pairs": rows, "pictures": rows * self.arrays.samples_BPX.shape[self.arrays.weight_B.ndim]}


def row_words(row_ids: Sequence[str]) -> np.ndarray:
    """Row ids, 32 hexadecimal digits each, as numbers that fit on a device: uint32 [B, 4].

    Example:
        >>> row_words(["00000001000000020000000300000004"])
        array([[1, 2, 3, 4]], dtype=uint32)
    """
    words = np.frombuffer(bytes.fromhex("".join(row_ids)), ">u4").reshape(len(row_ids), 4)
    return words.astype(np.uint32)


class Unembedding(NamedTuple):
    """Map of hidden states to logits, `soft_cap * tanh(scale * weight @ hidden / soft_cap)`.

    Columns of `weight_VD` from `vocabulary` on are padding and never get probability. None: the hidden states are the
    logits themselves, of a model that gives nothing else.
    """

    weight_VD: jax.Array | None
    vocabulary: int
    scale: float = 1.0
    soft_cap: float | None = None


class Mean(NamedTuple):
    """A weighted mean that is not divided yet: partial ones add up over micro-batches and hosts."""

    total: jax.Array
    weight: jax.Array


Metrics = dict[str, Mean]


class Tree(NamedTuple):
    """Parameters described: a `jax.ShapeDtypeStruct` at each leaf, and its logical axis names."""

    shapes: Params
    axes: Params


class Lora(NamedTuple):
    """Rank, scale and dropout of an adapter, and the linear maps that have one."""

    rank: int
    alpha: float
    dropout: float
    paths: tuple[tuple[str, ...], ...]  # of the maps in the tree of parameters

    @property
    def scale(self) -> float:
        """Factor of the product of the two thin weights."""
        return self.alpha / self.rank


ADAPTER = "adapter"
"""Name of the branch that adapted weights have next to them."""


def join(params: Params, adapter: Params) -> Params:
    """The parameters of a model together with its adapter."""
    both = params.keys() & adapter.keys()
    return {**params, **adapter, **{name: join(params[name], adapter[name]) for name in both}}


def adapter_of(params: Params) -> Params:
    """The adapter's branches alone; empty where there are none."""
    branches = {}
    for name, branch in params.items():
        if name == ADAPTER:
            branches[name] = branch
        elif isinstance(branch, dict) and (below := adapter_of(branch)):
            branches[name] = below
    return branches


Knobs = dict[str, Any]
"""Traced numbers: `learning_rate` (its peak), and those of the objective. Changing one does not recompile."""
Counts = dict[str, jax.Array]
LossState = Any
"""What losses remember from batch to batch: a tree of small arrays."""
Batch = TypeVar("Batch")
Outputs = TypeVar("Outputs")


class Objective(NamedTuple, Generic[Batch, Outputs]):
    """A function to minimise: the model's part, which is dear, and the loss on its outputs, which is cheap.

    `forward(params, frozen, batch, key)` gives small arrays that begin with the pair axis; `frozen` are parameters
    without gradient, or None. `loss(outputs, batch, knobs, counts, state, key) -> (loss, metrics, state)` takes them;
    `state` is what the loss remembers from batch to batch.

    `weigh(batch)` counts what the losses of one micro-batch are divided by (pairs, tokens); `loss` gets the counts of
    the whole batch, so that the losses of the micro-batches add up to the loss of the batch, exactly, however the
    tokens lie.

    With `whole_batch`, `loss` is called once with all pairs: it compares them, or remembers something of the batch.
    The model then runs twice over each micro-batch, first without gradient. Otherwise the state passes unchanged.

    `refresh(params, frozen, step)`, if there is one, gives the frozen parameters for the next step.
    """

    weigh: Callable[[Batch], Counts]
    forward: Callable[[Params, Params | None, Batch, jax.Array], Outputs]
    loss: Callable[[Outputs, Batch, Knobs, Counts, LossState, jax.Array], tuple[jax.Array, Metrics, LossState]]
    whole_batch: bool = False
    refresh: Callable[[Params, Params, jax.Array], Params] | None = None
