"""Images and clips: noise, samplers, the diffusion transformer, scorers, quality, and folders of Diffusers."""

from __future__ import annotations

from tests.contracts.mutants.mutant import Mutant, planted

SCHEDULES = ("tests/vision/test_schedules.py",)
DENOISING = ("tests/vision/test_denoising.py",)
SAMPLING = (
    "tests/vision/test_sampling.py -k 'clip or hand or eta or variance and cosine or exact_flow and cosine or guid'",
)
POSITIONS = ("tests/vision/test_positions.py",)
FORMULA = ("tests/vision/test_transformer.py -k formula",)
CONDITIONS = ("tests/vision/test_transformer.py -k 'no_class or condition_steer'",)
ADAPTERS = ("tests/vision/test_diffuser.py -k 'variance or adapters or before'",)
SCORERS = ("tests/vision/test_scorers.py",)
QUALITY = ("tests/vision/test_quality.py",)
FOLDERS = ("tests/weights/test_dit.py",)

MUTANTS: list[Mutant] = [
    *planted(
        "vision/schedules.py",
        SCHEDULES,
        ("linear counts its steps from 1", "start = first - slope / 2", "start = first + slope / 2"),
        ("linear without the square of beta", "beta**2 / 2 + beta**3 / 6", "beta**2 / 2 + 0 * beta**3"),
        ("cosine with another offset", "first = 0.008 / 1.008", "first = 0.004 / 1.008"),
        ("cosine ends without a sample", "jnp.cos(angle_B) / math.cos(first), LEAST_ALPHA)", "jnp.cos(angle_B), -1.0)"),
        ("v with its signs swapped", "* _wide(noise_BX) - _spread", "* _wide(noise_BX) + _spread"),
        (
            "velocity towards the sample",
            "return _wide(noise_BX) - _wide(clean_BX)",
            "return _wide(clean_BX) - _wide(noise_BX)",
        ),
        ("v of a flow is not divided", "length2 = alpha**2 + sigma**2", "length2 = 1.0"),
        ("velocity taken for that of a flow", "* velocity_BX) / (alpha + sigma)", "* velocity_BX)"),
    ),
    *planted(
        "vision/draws.py",
        DENOISING,
        ("the last word of a row id is not read", "jnp.asarray(words_BW), 1, 0):", "jnp.asarray(words_BW), 1, 0)[:3]:"),
        ("the epoch is not used", "jnp.broadcast_to(epoch, rows)", "jnp.broadcast_to(0, rows)"),
        ("the seed is not used", "jax.random.key(seed, impl", "jax.random.key(0, impl"),
        (
            "samples start from the noise of training",
            "_normal(_for(keys_B, _START), shape_X)",
            "_normal(_for(keys_B, _NOISE), shape_X)",
        ),
        (
            "each step of a sampler adds the same noise",
            "jnp.broadcast_to(step, keys_B.shape)",
            "jnp.broadcast_to(0, keys_B.shape)",
        ),
        ("time depends on the place in the batch", "Draw(time_B, _normal", "Draw(jnp.sort(time_B), _normal"),
        ("time may be 0", "jnp.float32, least, 1.0", "jnp.float32, 0.0, 0.5"),
    ),
    *planted(
        "vision/denoising.py",
        DENOISING,
        (
            "the members of a pair see different noise",
            "jax.tree.map(shared, (drawn.time_B, drawn.noise_BX, condition))",
            "jax.tree.map(lambda x: jnp.concatenate([x] * members), (drawn.time_B, drawn.noise_BX, condition))",
        ),
        (
            "the members of a pair see different times",
            "signal = schedule(time_R)",
            "time_R = time_R.at[1::2].mul(0.5)\n    signal = schedule(time_R)",
        ),
        (
            "the noise of the rejected one is turned",
            "    signal = schedule(time_R)",
            "    noise_RX = noise_RX.at[1::2].set(noise_RX[1::2, ::-1])\n    signal = schedule(time_R)",
        ),
        (
            "chosen and rejected swapped",
            "errors_R.reshape(pairs, members)",
            "errors_R.reshape(pairs, members)[:, ::-1]",
        ),
        ("pairs are read as members", "errors_R.reshape(pairs, members)", "errors_R.reshape(members, pairs).T"),
        (
            "the mean over the last axis alone",
            "axis=tuple(range(1, target_RX.ndim))",
            "axis=-1)[:, 0].mean(axis=tuple(range(1, target_RX.ndim - 2))",
        ),
        ("the batch is reduced too", "axis=tuple(range(1, target_RX.ndim))", "axis=tuple(range(target_RX.ndim))"),
        (
            "summed in half precision",
            "prediction_RX.astype(wide) - target_RX.astype(wide)).mean(",
            "prediction_RX - target_RX).mean(dtype=prediction_RX.dtype, ",
        ),
    ),
    *planted(
        "vision/sampling.py",
        SAMPLING,
        ("fresh noise is not taken from the old", "then.sigma**2 - fresh**2", "then.sigma**2"),
        ("fresh noise of the step before", "eta * then.sigma / now.sigma", "eta"),
        ("the signal of the step before", "moved_BX = then.alpha * step", "moved_BX = now.alpha * step"),
        ("eta is ignored", "fresh = eta * then", "fresh = 0.0 * then"),
        ("euler forgets the sample", "slope_BX = speed.alpha * step.clean_BX + ", "slope_BX = "),
        (
            "a step too few",
            "rows(start(keys_B, shape_X)), jnp.arange(steps))",
            "rows(start(keys_B, shape_X)), jnp.arange(steps - 1))",
        ),
        (
            "the clipped sample keeps the old noise",
            "noise_BX = (noisy_BX - signal.alpha * clean_BX) / signal.sigma",
            "noise_BX = noise_BX + 0 * signal.sigma",
        ),
    ),
    *planted(
        "vision/conditions.py",
        SAMPLING,
        ("guidance the other way", "pairs[:, 1] + scale", "pairs[:, 0] + scale"),
        ("guidance to nothing", "jnp.array([False, True])", "jnp.array([True, False])"),
        (
            "conditions of other rows",
            "jnp.tile(jnp.array([False, True]), time_B.shape[0])",
            "jnp.repeat(jnp.array([False, True]), time_B.shape[0])",
        ),
    ),
    *planted(
        "vision/positions.py",
        POSITIONS,
        (
            "rows and columns swapped",
            "_waves(columns, width // 2)[None, None]",
            "_waves(rows, width // 2)[None, :, None]",
        ),
        ("other sizes are not stretched", "np.arange(count) * (base / count)", "np.arange(count)"),
        ("the first frame is moved", "(frames - frames[:1])", "frames"),
        ("channels last in a patch", "cut.transpose(0, 1, 3, 5, 7, 2, 4, 6)", "cut.transpose(0, 1, 3, 5, 2, 4, 6, 7)"),
        ("rows of a patch are its columns", "transpose(0, 1, 4, 2, 5, 3, 6, 7)", "transpose(0, 1, 4, 2, 6, 3, 5, 7)"),
    ),
    *planted(
        "vision/embeddings.py",
        FORMULA,
        ("sines before cosines", "[jnp.cos(angles), jnp.sin(angles)]", "[jnp.sin(angles), jnp.cos(angles)]"),
        ("steps are counted from 1", "steps_B = STEPS * time_B - 1.0", "steps_B = STEPS * time_B"),
        ("one wave too many", "np.arange(_WAVES) / (_WAVES - 1)", "np.arange(_WAVES) / _WAVES"),
    ),
    *planted(
        "vision/embeddings.py",
        CONDITIONS,
        ("an unknown class is the last one", 'mode="fill")', 'mode="clip")'),
        ("no class is the first one", "condition.absent_B, self.classes,", "condition.absent_B, 0,"),
        ("no text is the text", "nothing, condition.shown_B)", "condition.shown_B, condition.shown_B)"),
    ),
    *planted(
        "vision/transformer.py",
        FORMULA,
        (
            "shift and scale swapped",
            "shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = parts",
            "scale, shift, gate, mlp_shift, mlp_scale, mlp_gate = parts",
        ),
        ("the scale is not around 1", "(1.0 + scale_B1D)", "scale_B1D"),
        ("the gate of attention is forgotten", "x_BND + gate * mixed", "x_BND + mixed"),
        ("both branches have one gate", "x_BND + mlp_gate * bent", "x_BND + gate * bent"),
        ("scores are not scaled", "scores / math.sqrt(query_BNHK.shape[-1])", "scores"),
        ("the condition is not bent", "jax.nn.silu(steer_BD)[:, None]", "steer_BD[:, None]"),
        ("an exact GELU in its place", "approximate=True", "approximate=False"),
        ("positions are forgotten", " + places[None]\n", " + 0 * places[None]\n"),
    ),
    *planted(
        "vision/diffuser.py",
        ADAPTERS,
        ("the variance is predicted, too", "[..., : self.spec.channels]", "[..., self.spec.channels :]"),
        (
            "the network has no dropout",
            "return module(noisy[:, None], time_B, condition, key)",
            "return module(noisy[:, None], time_B, condition, None)",
        ),
    ),
    *planted(
        "vision/layers.py",
        ADAPTERS,
        ("the modulation does not begin at zero", "if from_zero else matrix", "if not layers else matrix"),
        ("an adapter is not used", "return out if self.adapter is None else", "return out if True else"),
    ),
    *planted(
        "vision/layers.py",
        FORMULA,
        ("the norm has no mean", "wide - wide.mean(axis=-1, keepdims=True)", "wide"),
    ),
    *planted(
        "vision/scorers.py",
        SCORERS,
        ("the mean in place of the largest", "-jnp.inf, jax.lax.max", "0.0, jax.lax.add"),
        ("the sum over places", "pooled = x.mean(", "pooled = x.sum("),
        ("a score in half precision", ".astype(wide))[:, 0]", ")[:, 0].astype(wide)"),
        ("negative numbers pass", "x = jax.nn.relu(x + self.bias", "x = (x + self.bias"),
    ),
    *planted(
        "vision/quality.py",
        QUALITY,
        (
            "absolute in place of squared differences",
            "jnp.square(clips[:, 1:] - clips[:, :-1])",
            "jnp.abs(clips[:, 1:] - clips[:, :-1])",
        ),
        (
            "flicker of each pixel",
            "luminance(_frames(clips_BFHWC, 2)).mean(axis=(2, 3))",
            "luminance(_frames(clips_BFHWC, 2)).max(axis=(2, 3))",
        ),
        ("smoothness from the next frame", "(clips[:, :-2] + clips[:, 2:]) / 2", "clips[:, 2:]"),
        ("the border is sharp", "around - 4.0 * inside", "around - 3.0 * inside"),
        (
            "saturation of black",
            "jnp.where(most > 0, (most - least) / jnp.where(most > 0, most, 1.0), 0.0)",
            "((most - least) / most)",
        ),
        (
            "contrast without a slope at 0",
            "jnp.sqrt(jnp.where(variance_BF > 0, variance_BF, 1.0))",
            "jnp.sqrt(variance_BF)",
        ),
        ("red, green, blue backwards", "(0.299, 0.587, 0.114)", "(0.114, 0.299, 0.587)"),
    ),
    *planted(
        "vision/fitting.py",
        QUALITY,
        (
            "weights for what was rejected",
            "jax.nn.sigmoid(-difference_BM @ weights_M)",
            "jax.nn.sigmoid(difference_BM @ weights_M)",
        ),
        ("no pull in the slope", "slope_M = ridge * weights_M - ", "slope_M = -"),
        ("weights in units of the scale", "jnp.zeros_like(scale_M)) / scale_M", "jnp.zeros_like(scale_M))"),
        ("a metric that never differs", "jnp.where(scale_M > 0, scale_M, 1.0)", "scale_M"),
    ),
    *planted(
        "vision/ema.py",
        ("tests/vision/test_ema.py",),
        ("the share of the old one", "old + share * (new - old)", "new + share * (old - new)"),
        ("the first steps count no more", "jnp.minimum(decay, (1.0 + steps) / (10.0 + steps))", "decay"),
        ("held in the dtype of the parameters", ".astype(old.dtype)", ".astype(new.dtype)"),
    ),
    *planted(
        "weights/dit.py",
        FOLDERS,
        (
            "embeddings of other blocks are not compared",
            "or not np.array_equal(source.read(copy), source.read(name))",
            "",
        ),
        (
            "the copies are not written",
            "for layer in range(1, spec.layers):\n                    yield",
            "for layer in range(0):\n                    yield",
        ),
        ("positions are not compared", "or not np.allclose(found[0], wanted, atol=1e-2)", ""),
        (
            "keys and queries swapped",
            '_BLOCK + "attn1.to_k": ((*block, "attention", "key"), 1)',
            '_BLOCK + "attn1.to_k": ((*block, "attention", "query"), 1)',
        ),
        ("any kernel of so many numbers", "if source.shapes.get(_PATCHES, kernel) != kernel:", "if False:"),
    ),
    *planted(
        "weights/dit_config.py",
        FOLDERS,
        ("a text network is written", '"conditioned on text": spec.text_width,', '"conditioned on text": False,'),
        ("any value of a key", "if key in _ONLY and value not in _ONLY[key]:", "if False:"),
        ("the epsilon is not written", '"norm_eps": spec.mlp_epsilon,', '"norm_eps": 1e-6,'),
        ("the variance is not read", "learned_sigma=outputs != channels,", "learned_sigma=False,"),
    ),
]
