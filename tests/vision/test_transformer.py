"""The diffusion transformer against its formula in numpy, on meshes, in half precision, with adapters, and by slope."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.losses import diffusion_dpo
from dpo_jax.mesh import make_mesh, named_sharding
from dpo_jax.models.lora import Lora, adapter_of, attach, join, merge
from dpo_jax.training.state import param_shardings
from dpo_jax.vision.conditions import Condition, present
from dpo_jax.vision.denoising import pair_errors
from dpo_jax.vision.diffuser import make_diffuser
from dpo_jax.vision.draws import draw, row_keys, row_words
from dpo_jax.vision.embeddings import TransformerSpec
from dpo_jax.vision.positions import Grid, positions
from dpo_jax.vision.schedules import PREDICTIONS, SCHEDULES
from tests.vision.tiny import CLASSES, PLAIN, SIZES, TEXT, made, moved

RANDOM = np.random.default_rng(0)
IMAGES = jnp.asarray(RANDOM.normal(size=(8, 8, 8, 3)), jnp.float32)
CLIPS = jnp.asarray(RANDOM.normal(size=(8, 4, 4, 6, 3)), jnp.float32)
TIMES = jnp.linspace(0.05, 1.0, 8)
LABELS = present(jnp.arange(8) % 5)
TEXTS = present(jnp.asarray(RANDOM.normal(size=(8, 7)), jnp.float32))
CASES = {"classes": (CLASSES, IMAGES, LABELS), "text": (TEXT, CLIPS, TEXTS), "nothing": (PLAIN, CLIPS, None)}


def applied(case: str, **options):
    spec, samples, condition = CASES[case]
    diffuser, params = made(spec, **options)
    return jax.jit(diffuser.apply)(params, samples, TIMES, condition)


def in_numpy(spec: TransformerSpec, params, images, times, label):
    """The formula of the paper for one image, in float64, written once more and differently."""

    def linear(x, at, inputs=1):
        weight = at["weight"].reshape(int(np.prod(at["weight"].shape[:inputs])), -1)
        return x @ weight + at["bias"].ravel()

    def silu(x):
        return x / (1 + np.exp(-x))

    def norm(x):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    size, patch, width = images.shape[0], spec.patch, spec.width
    side = size // patch
    tokens = []
    for row in range(side):
        for column in range(side):
            cut = images[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            tokens.append(cut.transpose(2, 0, 1).ravel())
    x = linear(np.array(tokens, np.float64), params["patches"])
    x += positions(Grid(1, side, side), width=width, base=spec.base)
    angles = (1000 * times - 1) * np.exp(-np.log(10000) * np.arange(128) / 127)
    waves = np.concatenate([np.cos(angles), np.sin(angles)])
    steer = linear(silu(linear(waves, params["time"]["first"])), params["time"]["second"])
    steer = silu(steer + params["condition"]["table"][label])
    for layer in range(spec.layers):
        block = jax.tree.map(lambda x, layer=layer: x[layer], params["layers"])
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = linear(steer, block["modulation"]).reshape(6, width)
        seen = norm(x) * (1 + scale) + shift
        maps = block["attention"]
        heads = [linear(seen, maps[name]).reshape(-1, spec.heads, spec.head_size) for name in ("query", "key", "value")]
        mixed = np.zeros_like(heads[0])
        for head in range(spec.heads):
            query, key, value = (of[:, head] for of in heads)
            scores = np.exp(query @ key.T / np.sqrt(spec.head_size))
            mixed[:, head] = scores / scores.sum(1, keepdims=True) @ value
        x = x + gate * linear(mixed.reshape(-1, width), maps["output"], 2)
        seen = norm(x) * (1 + mlp_scale) + mlp_shift
        x = x + mlp_gate * linear(gelu(linear(seen, block["mlp"]["up"])), block["mlp"]["down"])
    shift, scale = linear(steer, params["final_modulation"]).reshape(2, width)
    patches = linear(norm(x) * (1 + scale) + shift, params["output"]).reshape(side, side, patch, patch, -1)
    return patches.transpose(0, 2, 1, 3, 4).reshape(size, size, -1)


def test_it_is_the_formula():
    _, params = made()
    found = applied("classes")
    for row in (0, 3, 7):
        wanted = in_numpy(CLASSES, params, np.asarray(IMAGES[row]), float(TIMES[row]), int(LABELS.shown_B[row]))
        assert wanted.std() > 0.3
        np.testing.assert_allclose(found[row], wanted, atol=2e-4)


def test_before_the_first_step_it_predicts_nothing():
    diffuser = make_diffuser(CLASSES)
    params = jax.jit(diffuser.init)(jax.random.key(0))
    np.testing.assert_array_equal(jax.jit(diffuser.apply)(params, IMAGES, TIMES, LABELS), jnp.zeros_like(IMAGES))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert jax.tree.map(lambda x: x.shape, params) == jax.tree.map(lambda x: x.shape, diffuser.shapes)


def test_an_image_is_a_clip_of_one_frame():
    diffuser, params = made()
    apply = jax.jit(diffuser.apply)
    clip = apply(params, IMAGES[:, None], TIMES, LABELS)
    np.testing.assert_allclose(clip[:, 0], apply(params, IMAGES, TIMES, LABELS), atol=1e-6)


def test_the_frames_of_a_clip_see_each_other():
    diffuser, params = made(TEXT)
    apply = jax.jit(diffuser.apply)
    changed = apply(params, CLIPS.at[:, 3].add(1.0), TIMES, TEXTS)[:, 0] - apply(params, CLIPS, TIMES, TEXTS)[:, 0]
    assert np.abs(changed).max() > 1e-3


@pytest.mark.parametrize("shape", [(2, 2, 3), (4, 10, 3), (5, 6, 4, 3)], ids=str)
def test_any_size(shape):
    diffuser, params = made()
    samples = jnp.ones((2, *shape))
    found = jax.jit(diffuser.apply)(params, samples, TIMES[:2], jax.tree.map(lambda x: x[:2], LABELS))
    assert found.shape == samples.shape and np.isfinite(found).all()


def test_a_learned_variance_stands_behind_the_prediction():
    diffuser, params = made(TEXT)
    both = jax.jit(diffuser.outputs)(params, CLIPS, TIMES, TEXTS)
    assert both.shape == (*CLIPS.shape[:-1], 6)
    np.testing.assert_array_equal(both[..., :3], applied("text"))


def test_time_and_condition_steer():
    for case in ("classes", "text"):
        spec, samples, condition = CASES[case]
        diffuser, params = made(spec)
        apply, found = jax.jit(diffuser.apply), applied(case)
        assert np.abs(apply(params, samples, TIMES - 0.03, condition) - found).max() > 1e-2
        other = condition._replace(shown_B=jnp.roll(condition.shown_B, 1, axis=0))
        assert np.abs(apply(params, samples, TIMES, other) - found).max() > 1e-2
        absent = condition._replace(absent_B=condition.absent_B.at[:4].set(True))
        without = apply(params, samples, TIMES, absent)
        np.testing.assert_array_equal(without[4:], found[4:])
        assert np.all(np.abs(without - found)[:4].reshape(4, -1).max(axis=1) > 1e-3)
        # Without condition it does not matter which one.
        blind = apply(params, samples, TIMES, absent._replace(shown_B=other.shown_B))
        np.testing.assert_array_equal(blind[:4], without[:4])


def test_no_class_is_the_row_behind_the_others_and_an_unknown_one_is_not_a_number():
    diffuser, params = made()
    apply = jax.jit(diffuser.apply)
    absent = apply(params, IMAGES, TIMES, Condition(LABELS.shown_B, jnp.ones(8, bool)))
    np.testing.assert_array_equal(apply(params, IMAGES, TIMES, present(jnp.full(8, 5))), absent)
    assert np.isnan(apply(params, IMAGES, TIMES, present(jnp.full(8, 6)))).all()


MESHES = [
    ("classes", {"fsdp": 8}),
    ("classes", {"data": 2, "tensor": 2, "fsdp": 2}),
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
        places = param_shardings(mesh, diffuser.shapes, diffuser.axes)
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


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_changes_no_gradient(remat: str):
    _, params = made()

    def slope(diffuser):
        return jax.jit(jax.grad(lambda p: jnp.square(diffuser.apply(p, IMAGES, TIMES, LABELS)).sum()))(params)

    plain, other = slope(made()[0]), slope(make_diffuser(CLASSES, remat=remat))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), plain, other)


def test_gradients_of_the_loss_are_slopes(x64):
    """d loss / d params along a random direction of each parameter, against float64 central differences."""
    spec = TransformerSpec(**{**SIZES, "heads": 1}, classes=3)
    diffuser = make_diffuser(spec, dtype="float64")
    wide = functools.partial(jax.tree.map, lambda x: x.astype(jnp.float64))
    params = wide(moved(diffuser.init(jax.random.key(0))))
    reference = jax.tree.map(lambda x: 0.3 * x, params)
    clean = jnp.asarray(RANDOM.normal(size=(2, 2, 4, 4, 3)))
    drawn = wide(draw(row_keys(row_words(["0" * 32, "1" * 32]), seed=0, epoch=0), (4, 4, 3)))
    options = {"schedule": SCHEDULES["cosine"], "prediction": PREDICTIONS["v"]}

    def errors(params):
        predict = functools.partial(diffuser.apply, params)
        return pair_errors(predict, clean, drawn, present(jnp.array([0, 2])), **options)

    def loss(params):
        return diffusion_dpo(errors(params), errors(reference), beta=30.0).mean()

    value, slope = jax.jit(jax.value_and_grad(loss))(params)
    assert value.dtype == jnp.float64 and abs(value - np.log(2)) > 1e-2
    along = moved(jax.tree.map(jnp.zeros_like, params), by=1.0)
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


def test_adapters_of_language_models_fit():
    """A fresh one adds nothing; a trained one is what the merged weights compute; the base alone is the reference."""
    plain, base = made()
    policy = make_diffuser(CLASSES, adapt=lambda module, rngs: attach(module, rngs, LORA))
    adapter = adapter_of(jax.jit(policy.init)(jax.random.key(2)))
    assert len(jax.tree.leaves(adapter)) == 2 * len(LORA.paths)
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
        places = param_shardings(mesh, policy.shapes, policy.axes)
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
