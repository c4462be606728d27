"""The diffuser: how it begins, on meshes, in half precision, with adapters, and by the slope of its loss."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.diffusion.denoising import denoise_pairs
from dpo_jax.diffusion.diffuser import make_diffuser
from dpo_jax.diffusion.draws import draw, row_keys
from dpo_jax.diffusion.embeddings import TransformerSpec, present
from dpo_jax.diffusion.schedules import PREDICTIONS, SCHEDULES
from dpo_jax.losses import diffusion_dpo
from dpo_jax.mesh import make_mesh, named_sharding
from dpo_jax.networks import merge
from dpo_jax.training.state import param_shardings
from dpo_jax.types import Lora, join, row_words
from tests.diffusion.tiny import (
    CASES,
    CLASSES,
    CLIPS,
    IMAGES,
    LABELS,
    PLAIN,
    SIZES,
    TEXT,
    TEXTS,
    TIMES,
    applied,
    made,
    moved,
)

RANDOM = np.random.default_rng(0)


def flat_paths(params):
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree.leaves_with_path(params)]


def test_before_the_first_step_it_predicts_nothing():
    diffuser = make_diffuser(CLASSES)
    params = jax.jit(diffuser.init)(jax.random.key(0))
    np.testing.assert_array_equal(jax.jit(diffuser.apply)(params, IMAGES, TIMES, LABELS), jnp.zeros_like(IMAGES))
    zero = {path for path, leaf in flat_paths(params) if path.endswith("['weight']") and not leaf.any()}
    assert zero == {"['final_modulation']['weight']", "['layers']['modulation']['weight']", "['output']['weight']"}
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert jax.tree.map(lambda x: x.shape, params) == jax.tree.map(lambda x: x.shape, diffuser.shapes)


def test_a_learned_variance_stands_behind_the_prediction():
    diffuser, params = made(TEXT)
    both = jax.jit(functools.partial(diffuser.apply, variance=True))(params, CLIPS, TIMES, TEXTS)
    assert both.shape == (*CLIPS.shape[:-1], 6)
    np.testing.assert_array_equal(both[..., :3], applied("text"))


MESHES = [
    pytest.param("classes", {"data": 2, "tensor": 2, "fsdp": 2}, marks=pytest.mark.slow("one more mesh")),
    ("text", {"sequence": 2, "tensor": 2, "fsdp": 2}),
]


@pytest.mark.parametrize(("case", "axes"), MESHES, ids=str)
def test_eight_devices_equal_one(case: str, axes: dict[str, int]):
    spec, samples, condition = CASES[case]
    diffuser, params = made(spec)

    def loss(params, samples):
        found = diffuser.apply(params, samples, TIMES, condition)
        return jnp.square(found).mean(), found

    measured = jax.grad(loss, has_aux=True)
    wanted = jax.jit(measured)(params, samples)
    mesh = make_mesh(**{"fsdp": 1, **axes})
    with jax.set_mesh(mesh):
        places = param_shardings(mesh, diffuser.tree)
        rows = named_sharding(mesh, ("rows", *[None] * (samples.ndim - 1)), samples.shape)
        found = jax.jit(measured, in_shardings=(places, rows), out_shardings=(places, rows))(params, samples)
        split = [leaf for leaf in jax.tree.leaves(found[0]) if not leaf.sharding.is_fully_replicated]
        assert len(split) > 10
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=2e-5), found, wanted)


def test_half_precision_is_near_and_its_gradients_are_float32():
    diffuser, params = made(CLASSES, dtype="bfloat16")
    found, wanted = applied("classes", dtype="bfloat16"), applied("classes")
    assert found.dtype == jnp.bfloat16
    assert np.abs(found.astype(jnp.float32) - wanted).max() < 0.05 * np.abs(wanted).max()
    slope = jax.jit(jax.grad(lambda p: diffuser.apply(p, IMAGES, TIMES, LABELS).astype(jnp.float32).sum()))(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(slope)} == {jnp.dtype("float32")}


def test_the_kernel_of_nvidia_is_asked_for_the_same(monkeypatch: pytest.MonkeyPatch):
    """Its arguments, by another implementation of the same function: the kernel itself wants a GPU."""
    asked = []

    def instead(*arrays, implementation):
        asked.append(implementation)
        return real(*arrays, implementation="xla")

    real = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", instead)
    found = jax.jit(make_diffuser(CLASSES, kernel="cudnn").apply)(made()[1], IMAGES, TIMES, LABELS)
    np.testing.assert_allclose(found, applied("classes"), atol=2e-5)
    assert asked == ["cudnn"]


@pytest.mark.slow("compiles three gradients")
def test_remat_changes_no_gradient():
    _, params = made()

    def slope(diffuser):
        return jax.jit(jax.grad(lambda p: jnp.square(diffuser.apply(p, IMAGES, TIMES, LABELS)).sum()))(params)

    plain = slope(made()[0])
    for remat in ("full", "dots"):
        other = slope(make_diffuser(CLASSES, remat=remat))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), plain, other)


@pytest.mark.slow("float64 in every parameter")
def test_gradients_of_the_loss_are_slopes(x64):
    """d loss / d params along a random direction of each parameter, against float64 central differences."""
    spec = TransformerSpec(**{**SIZES, "heads": 1}, classes=3)
    diffuser = make_diffuser(spec, dtype="float64")
    wide = functools.partial(jax.tree.map, lambda x: np.asarray(x, np.float64))
    params = wide(moved(jax.jit(diffuser.init)(jax.random.key(0))))
    reference = jax.tree.map(lambda x: 0.3 * x, params)
    clean = jnp.asarray(RANDOM.normal(size=(2, 2, 4, 4, 3)))
    drawn = wide(draw(row_keys(row_words(["0" * 32, "1" * 32]), seed=0, epoch=0), (4, 4, 3)))
    options = {"schedule": SCHEDULES["cosine"], "prediction": PREDICTIONS["v"]}

    def errors(params):
        predict = functools.partial(diffuser.apply, params)
        return denoise_pairs(predict, clean, drawn, present(jnp.array([0, 2])), **options)[0]

    def loss(params):
        return diffusion_dpo(errors(params), errors(reference), beta=30.0).mean()

    value, slope = jax.jit(jax.value_and_grad(loss))(params)
    assert value.dtype == jnp.float64 and abs(value - np.log(2)) > 1e-2
    along, slope = moved(jax.tree.map(np.zeros_like, params), by=1.0), wide(slope)
    line = jax.jit(lambda params, along, step: loss(jax.tree.map(lambda x, d: x + step * d, params, along)))
    for path, _ in jax.tree.leaves_with_path(along):
        only = jax.tree.map_with_path(lambda at, x, path=path: x if at == path else 0 * x, along)
        wanted = (line(params, only, 1e-5) - line(params, only, -1e-5)) / 2e-5
        found = sum(jax.tree.leaves(jax.tree.map(lambda d, s: (d * s).sum(), only, slope)))
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-9, err_msg=jax.tree_util.keystr(path))
        # Softmax does not see what is added to all scores of a query, so the bias of keys has no slope.
        assert (abs(wanted) < 1e-9) == ("['key']['bias']" in jax.tree_util.keystr(path))


MAPS = tuple(("layers", "attention", name) for name in ("query", "key", "value", "output"))
LORA = Lora(rank=2, alpha=4.0, dropout=0.3, paths=(*MAPS, ("layers", "mlp", "up"), ("layers", "modulation")))


@pytest.mark.slow("a program for each form of adapter")
def test_adapters_of_language_models_fit():
    """A fresh one adds nothing; a trained one is what the merged weights compute; the base alone is the reference."""
    plain, base = made()
    policy = make_diffuser(CLASSES, lora=LORA)
    adapter = jax.jit(policy.init_adapter)(jax.random.key(2))
    assert len(jax.tree.leaves(adapter)) == 2 * len(LORA.paths)
    assert jax.tree.map(lambda x: x.shape, adapter) == jax.tree.map(lambda x: x.shape, policy.trained.shapes)
    assert (policy.tree, plain.trained) == (plain.tree, plain.tree)
    apply, wanted = jax.jit(policy.apply), applied("classes")
    key = jax.random.key(3)
    np.testing.assert_array_equal(apply(join(base, adapter), IMAGES, TIMES, LABELS, key), wanted)
    trained = moved(adapter)
    found = apply(join(base, trained), IMAGES, TIMES, LABELS)
    assert np.abs(found - wanted).max() > 0.1
    merged = jax.jit(plain.apply)(merge(base, trained, LORA), IMAGES, TIMES, LABELS)
    np.testing.assert_allclose(found, merged, atol=1e-4)
    assert np.abs(apply(join(base, trained), IMAGES, TIMES, LABELS, key) - found).max() > 1e-2  # dropout
    mesh = make_mesh(fsdp=4, tensor=2)
    with jax.set_mesh(mesh):
        places = join(param_shardings(mesh, policy.tree), param_shardings(mesh, policy.trained))
        split = jax.jit(policy.apply, in_shardings=(places, None, None, None))(
            join(base, trained), IMAGES, TIMES, LABELS
        )
    np.testing.assert_allclose(split, found, atol=2e-5)


def test_a_wrong_condition_is_named():
    diffuser, params = made()
    with pytest.raises(ValueError, match="conditioned on 5 classes, and gets none"):
        diffuser.apply(params, IMAGES, TIMES)
    diffuser, params = made(PLAIN)
    with pytest.raises(ValueError, match="conditioned on nothing, and gets a condition of shape"):
        diffuser.apply(params, CLIPS, TIMES, LABELS)
    with pytest.raises(ValueError, match="4 classes and on text: choose one"):
        TransformerSpec(**SIZES, classes=4, text_width=3)
