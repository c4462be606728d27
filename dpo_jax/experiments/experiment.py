"""An opened experiment, of texts or of pictures: rows, batches, model, objective, scores, parameters on disk.

Dimension key: n rows.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dpo_jax import locks
from dpo_jax.config import AnyConfig, TrainConfig, check, render
from dpo_jax.errors import UserError
from dpo_jax.files import check_place, write_atomic
from dpo_jax.mesh import axis_splits, make_mesh, named_sharding, place
from dpo_jax.networks import merge
from dpo_jax.objectives.terms import Term, needs_reference
from dpo_jax.reading import Origins, locate, mistake
from dpo_jax.reference.fingerprint import Fingerprint, weights_digest
from dpo_jax.runs.facts import Facts, facts_of, refuse_other
from dpo_jax.runs.kept import Keeper, Kept
from dpo_jax.runs.run import Run
from dpo_jax.runtime import hosts
from dpo_jax.runtime.machine import compile_cache
from dpo_jax.runtime.progress import say
from dpo_jax.training.checkpoint import Checkpoints
from dpo_jax.training.state import TrainState, param_shardings
from dpo_jax.training.training import Batches
from dpo_jax.types import Knobs, Objective, Params, join

C = TypeVar("C", bound=AnyConfig)


class Experiment(abc.ABC, Generic[C]):
    """One experiment, opened; each of its parts is made when it is asked for."""

    batch_axes: ClassVar[dict[str, tuple[str | None, ...]]]
    """The logical axes of each array of a batch."""
    score_type: ClassVar[Any]
    """The scores that a store of this kind of experiment holds."""
    watchers: Sequence[Callable[[int, Mapping[str, float]], None]] = ()
    """Functions that are called with each logged step of `train` and its metrics, by the first process."""

    def __init__(self, config: C, origins: Origins, *, command: str):
        self.config = check(config, origins)
        self.origins, self.command = origins, command
        self.workdir = Path(config.workdir)
        self.sft_folder = self.workdir / "sft"  # points of a sweep share it, and the pairs that the model made itself
        self.pairs_folder = self.workdir

    @property
    def run(self) -> Run:
        """The working directory, by the names of what lies in it."""
        return Run(self.workdir)

    @property
    @abc.abstractmethod
    def model(self) -> Any:
        """The policy as pure functions; with the adapter of `lora`, if there is one."""

    @property
    @abc.abstractmethod
    def sft_model(self) -> Any:
        """The same model with the adapter of the fine-tuning."""

    @abc.abstractmethod
    def pretrained(self, *, held: bool = False) -> Params:
        """The parameters before any training, on the mesh: float32, or as they are held where they are not trained."""

    @property
    def weights_file(self) -> str | None:
        """The setting that names those parameters; None where they are random."""
        return "model.weights"

    @abc.abstractmethod
    def facts_of_rows(self, name: str, data: Any) -> Facts:
        """Digests of rows and of what makes tokens of them; `name` is their key in the configuration."""

    def facts_of_reading(self, trained: Mapping[str, Any]) -> Facts:
        """The facts that hold however a model is measured which was trained with this configuration."""
        return {}

    @property
    def sft_seed(self) -> int:
        """The seed of `sft`, which is that of the experiment unless it has its own."""
        own = self.config.sft and self.config.sft.seed
        return self.config.seed if own is None else own

    @property
    @abc.abstractmethod
    def spec(self) -> object:
        """The sizes of the model; their text is part of a store's fingerprint."""

    @property
    @abc.abstractmethod
    def terms(self) -> list[Term]:
        """The losses of the objective, with their options."""

    @property
    @abc.abstractmethod
    def train_data(self) -> Any:
        """The training rows with their columns, in data order."""

    @property
    @abc.abstractmethod
    def eval_data(self) -> Any:
        """The held-out rows with their columns; none unless `has_heldout`."""

    @property
    @abc.abstractmethod
    def has_heldout(self) -> bool:
        """True if there are held-out rows, or will be."""

    @property
    @abc.abstractmethod
    def is_labelled(self) -> bool:
        """True if the losses read labelled rows, not pairs."""

    @abc.abstractmethod
    def batches(self, train: TrainConfig, data: Any, *, seed: int, scores: Any = None) -> Batches:
        """Batches of a preference training on these rows, with their stored scores, if there are any."""

    @abc.abstractmethod
    def objective(self, data: Any) -> Objective:
        """The objective of a preference training on these rows."""

    @abc.abstractmethod
    def hyperparams(self, step: int) -> Knobs:
        """Traced options of the losses at a step, counted from 0."""

    @property
    def loss_state(self) -> tuple[Any, ...]:
        """State of each loss before the first step."""
        return tuple(term.memory() for term in self.terms)

    @abc.abstractmethod
    def scorer(
        self, params: Params, rows: Sequence[Any], *, progress: Callable[[int], None] = lambda rows: None
    ) -> tuple[list[str], Any]:
        """Ids and scores of rows under `params`, in their order; `progress` is called with the number of rows done."""

    @abc.abstractmethod
    def why_no_store(self) -> str | None:
        """The reason for which training cannot read the reference's scores from a store; None if it can."""

    @abc.abstractmethod
    def scoring_facts(self) -> Mapping[str, str]:
        """Named facts, beside weights and rows, that decide the scores of a store."""

    @abc.abstractmethod
    def store_folder(self, fingerprint: Fingerprint, *, heldout_only: bool = False) -> Path:
        """Folder of the store with this fingerprint."""

    @abc.abstractmethod
    def stored_rows(self, *, heldout_only: bool = False) -> list[Sequence[Any]]:
        """The rows whose scores belong into the store, split by split."""

    @property
    def reads_store(self) -> bool:
        """True if training takes the reference's scores from a store."""
        return needs_reference(self.terms) and self.why_no_store() is None

    @property
    def live_reference(self) -> bool:
        """True if the reference runs in every step."""
        return needs_reference(self.terms) and not self.reads_store

    def begin(self) -> None:
        """Makes the working directory and turns the compile cache on."""
        try:
            self.workdir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            why = "it is a file, not a folder" if self.workdir.is_file() else error.strerror
            raise UserError(f"{self.at('workdir')}: workdir: {self.workdir} cannot be written: {why}.") from None
        store = self.config.reference.store
        for key, check_places in (
            ("workdir", self.run.check_places),
            ("reference.store", lambda: check_place(Path(store or self.run.stores), folder=True)),
        ):
            try:
                check_places()
            except UserError as error:
                raise mistake(key, self.origins, str(error)) from None
        if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
            jax.config.update("jax_compilation_cache_dir", str(compile_cache()))

    def locked(self) -> AbstractContextManager[None]:
        """The context in which no other run writes into the working directory.

        Raises:
            UserError: one does already.
        """
        lock = locks.Lock(
            locks.inside(self.workdir),
            self.command,
            tell=lambda words: say("workdir", words),
            instead="give another workdir",
        )
        return hosts.held(lock)

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """The context in which a command runs: the working directory is there and locked, the mesh is set."""
        self.begin()
        hosts.check_shared(self.workdir)
        with self.locked(), jax.set_mesh(self.mesh):
            yield

    def keeper(self, name: str, *, together: bool = True) -> Keeper:
        """The opener of the file in WORKDIR/kept in which a command keeps what its processes compute `together`.

        What one of them computes for all is no business of the others.
        """
        agreed = {"agreed": hosts.alike} if together else {}
        return functools.partial(Kept, self.run.kept / f"{name}.jsonl", **agreed)

    def keep_config(self, folder: Path) -> None:
        """Writes the merged configuration beside what it makes; called once nothing on disk contradicts it."""
        write_atomic(Run(folder).config, render(self.config, self.origins, comments=False))

    @cached_property
    def mesh(self) -> Mesh:
        """The device mesh."""
        try:
            return make_mesh(**dataclasses.asdict(self.config.mesh))
        except ValueError as error:
            raise UserError(f"{locate('mesh', self.origins)}: mesh: {error}.") from None

    @property
    def device(self) -> Any:
        """One device of the mesh; all are of a kind."""
        return self.mesh.devices.flat[0]

    @property
    def row_multiple(self) -> int:
        """Into how many parts the mesh splits the rows of a batch."""
        return axis_splits("rows", self.mesh)

    def batch_shardings(self, batch: Any, *, micro_batches: bool) -> Any:
        """Shardings of the arrays of a batch; `micro_batches` says whether they have that leading axis."""
        shardings: dict[str, Any] = {}
        for name, array in batch._asdict().items():
            if name not in self.batch_axes:  # a batch within the batch
                shardings[name] = array and self.batch_shardings(array, micro_batches=micro_batches)
                continue
            names = (None, *self.batch_axes[name]) if micro_batches else self.batch_axes[name]
            shardings[name] = jax.tree.map(lambda leaf, of=names: self._sharding(of, leaf), array)
        return type(batch)(**shardings)

    def _sharding(self, names: tuple[str | None, ...], leaf: Any) -> Any:
        return named_sharding(self.mesh, (*names, *[None] * (len(leaf.shape) - len(names))), leaf.shape)

    def place(self, batch: Any, *, micro_batches: bool = False) -> Any:
        """Puts a batch on the mesh."""
        shardings = self.batch_shardings(batch, micro_batches=micro_batches)
        return jax.tree.map(lambda array, to: place(to, array), batch, shardings)

    def load_pretrained(self, *, held: bool = False) -> tuple[Params, Facts]:
        """The parameters before any training, and their digests.

        Raises:
            UserError: what lies in the working directory was trained from others.
        """
        params, model, name = self.pretrained(held=held), self.model, self.weights_file
        facts: dict[str, str] = {}
        if name is not None:
            # Float32 tells more, and is not there where a frozen base is held as it is used.
            forms = {jnp.dtype(model.dtype).name: model.held_dtypes()} | ({} if held else {"float32": None})
            facts = {f"{name} in {form}": weights_digest(params, dtypes) for form, dtypes in forms.items()}
        self._check_start(facts)
        return params, facts

    def load_start(self, *, held: bool | None = None) -> tuple[Params, Facts]:
        """The start of the policy, which is the reference, and its digests.

        It is the result of fine-tuning, or the pretrained weights. Under an adapter they are held as they are used,
        unless `held` says otherwise.

        Raises:
            UserError: what lies in the working directory was trained from another start.
        """
        held = self.config.lora is not None if held is None else held
        if not self.config.sft:
            return self.load_pretrained(held=held)
        params, facts = self.fine_tuned(), dict[str, str]()
        facts["result of sft"] = weights_digest(params)
        if self.sft_model.lora:
            base, of_base = self.load_pretrained()
            params = jax.device_put(
                merge(base, params, self.sft_model.lora), param_shardings(self.mesh, self.model.tree)
            )
            facts |= of_base
        self._check_start(facts)
        return jax.tree.map(jnp.asarray, params, self.model.held_dtypes()) if held else params, facts

    def _check_start(self, facts: Facts) -> None:
        """Checks that all that was trained in the working directory began with these weights."""
        for stage, folder in (("sft", self.sft_folder), ("train", self.workdir), ("reward", self.run.reward.folder)):
            if sealed := Run(folder).newest_checkpoint():
                refuse_other(stage, folder, facts_of(sealed.record), facts)

    def start_params(self, *, held: bool | None = None) -> Params:
        """The parameters of `load_start` alone."""
        return self.load_start(held=held)[0]

    def fine_tuned(self) -> Params:
        """The parameters that the fine-tuning has trained."""
        return self.restored(self.sft_folder, "sft", self.sft_model)

    def fresh_adapter(self, model: Any, *, seed: int) -> Params:
        """The adapter of a model before the first step, on the mesh."""
        shardings = param_shardings(self.mesh, model.trained)
        return jax.jit(model.init_adapter, out_shardings=shardings)(jax.random.key(seed))

    def at(self, key: str) -> str:
        """File and line of a setting, for messages."""
        return locate(key, self.origins)

    def policy_of(self, state: TrainState) -> Params:
        """The parameters of the policy in a state of its training."""
        return join(state.frozen or {}, state.params) if self.model.lora else state.params

    def trained_params(self, base: Params | None = None) -> Params:
        """The policy of the newest checkpoint; an adapter is joined to its base, which is loaded if it is not given."""
        trained = self.trained_adapter()
        return join(base or self.start_params(), trained) if self.model.lora else trained

    def merged_params(self) -> Params:
        """The same as parameters of a plain model, in float32."""
        trained, lora = self.trained_adapter(), self.model.lora
        return merge(self.start_params(held=False), trained, lora) if lora else trained

    def trained_adapter(self) -> Params:
        """The parameters in the newest checkpoint: the adapter, or, without one, all."""
        return self.restored(self.workdir, "train", self.model)

    def restored(self, folder: Path, command: str, model: Any) -> Params:
        """The parameters of `model` that `command` trained, from the newest checkpoint in `folder`."""
        checkpoints, step = newest(folder, command)
        record = checkpoints.record(step)
        refuse_other(command, folder, facts_of(record), self.facts_of_reading(record["config"]))
        return checkpoints.restore_params(step, self.placed_shapes(model))

    def placed_shapes(self, model: Any) -> Params:
        """Shapes and shardings of what is trained of a model."""
        shapes, shardings = model.trained.shapes, param_shardings(self.mesh, model.trained)
        return jax.tree.map(lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to), shapes, shardings)


def newest(folder: Path, command: str) -> tuple[Checkpoints, int]:
    """The checkpoints of a folder and the newest step; without one a UserError that says what makes it."""
    checkpoints = Checkpoints(Run(folder).checkpoints)
    step = checkpoints.latest()
    if step is None:
        raise UserError(f"{Run(folder).checkpoints}: no checkpoint yet; run `dpo-jax {command}` first.")
    return checkpoints, step
