# %% [markdown]
r"""
# The pendulum: a latent space with the shape of the data

A pendulum has one degree of freedom, its angle. So a good two-dimensional latent space
of its pictures is a **ring**, and the prior should be that ring as well. The usual VAE
cannot have that: its prior, a standard normal, is a blob.

This notebook trains the model of *Learning Hierarchical Priors in VAEs* (Klushyn, Chen,
Kurle, Cseke, van der Smagt, 2019; [arXiv:1905.04982](https://arxiv.org/abs/1905.04982))
on such pictures, a usual VAE beside it, and looks at what both have learned:

1. [The data](#1.-The-data)
2. [The model](#2.-The-model)
3. [Training](#3.-Training)
4. [A rival](#4.-A-rival)
5. [How even the ring is](#5.-How-even-the-ring-is)
6. [Walking through the latent space](#6.-Walking-through-the-latent-space)
7. [What next](#7.-What-next)

You should know what a VAE is; of JAX nothing is needed. Nothing is downloaded, the
pictures are computed. On two CPU cores all of it takes three to five minutes.
"""

# %%
# Where the package comes from: "git+https://..." on Colab, ".." in a clone.
REPOSITORY = ".."

import importlib.util
import pathlib
import shutil
import subprocess
import sys

if importlib.util.find_spec("vhp_jax") is None:
    is_git = REPOSITORY.startswith("git+")
    address = REPOSITORY if is_git else pathlib.Path(REPOSITORY).resolve().as_uri()
    is_gpu, is_tpu = shutil.which("nvidia-smi"), importlib.util.find_spec("libtpu")
    extra = "cuda" if is_gpu else "tpu" if is_tpu else ""
    wanted = f"vhp_jax[{extra}] @ {address}"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", wanted], check=True)

# %%
# %matplotlib inline
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vhp_jax import (
    VAE,
    beta,
    evaluation,
    graph,
    init_state,
    jit_train_loop,
    make_train_step,
    networks,
    objectives,
    plotting,
    priors,
    starts,
    training,
)
from vhp_jax.data import pendulum

# Shorter runs: on a CPU, or where the environment variable VHP_QUICK is 1.
QUICK = bool(int(os.environ.get("VHP_QUICK", jax.default_backend() == "cpu")))

print(f"JAX {jax.__version__} on {jax.device_count()} x {jax.devices()[0].device_kind}")
print("quick: 3,000 steps, K = 4" if QUICK else "full: 6,000 steps, K = 16")

# %% [markdown]
r"""
## 1. The data

15,000 pictures of 16 x 16 pixels, the angle drawn uniformly, with a little noise on the
pixels. The model never sees the angle; we keep it to colour figures and to measure.
"""

# %%
data = pendulum.load()
images = data.train.examples  # float32 [15000, 16, 16], in [0, 1]

order = np.argsort(data.test.targets)
some = order[np.linspace(0, len(order) - 1, 24).astype(int)]
plotting.plot_image_grid(data.test.examples[some], "24 angles", columns=12)

# %% [markdown]
r"""
## 2. The model

A VAE with one thing changed: the prior $p(z)$ has parameters of its own, $\Theta$, and
a latent variable of its own, $\zeta$ (Eq. 8 of the paper):

$$ p_{\theta,\Theta}(x) = \int p_\theta(x|z) \int p_\Theta(z|\zeta)\, p(\zeta)\,
   \mathrm{d}\zeta\, \mathrm{d}z, \qquad p(\zeta) = \mathcal{N}(0, I). $$

$p(z)$ is then as flexible as a VAE's $p(x)$, and as intractable. So it gets an encoder
of its own, $q_\Phi(\zeta|z)$, and an importance-weighted bound on $\log p(z)$ with $K$
samples. The rate, which would be $\mathrm{KL}(q_\phi(z|x)\,\|\,p(z))$, is replaced by
an upper bound on it (Eq. 9):

$$ \mathcal{F} = \mathbb{E}_{q_\phi(z|x)} \Big[ \log q_\phi(z|x) -
   \mathbb{E}_{\zeta_{1:K} \sim q_\Phi(\zeta|z)} \log \frac{1}{K} \sum_{k=1}^{K}
   \frac{p_\Theta(z|\zeta_k)\, p(\zeta_k)}{q_\Phi(\zeta_k|z)} \Big]. $$

In code these are four networks, all of them small MLPs:
"""

# %%
hidden = (256, 256, 256, 256)
normal = {"hidden": hidden, "features": 2, "initialisation": "looks_linear"}

encoder = networks.Flat(  # q(z|x)
    networks.NormalMLP(**normal, head_scale=0.3, scale_init=0.05)
)
decoder = networks.GaussianDecoder(  # p(x|z)
    hidden, features=256, initialisation="looks_linear", head_scale=0.3
)
prior = priors.HierarchicalPrior(
    encoder=networks.NormalMLP(**normal, scale_init=0.3),  # q(zeta|z)
    decoder=networks.NormalMLP(**normal, head_scale=0.0, scale_init=0.2),  # p(z|zeta)
    latent_dim=2,
    inner_dim=2,
)
vhp = VAE(encoder, decoder, prior)

# %% [markdown]
r"""
The start matters more than one would think. The networks begin as linear maps, and
encoder and decoder begin at the optimum of the linear VAE, which is PCA, turned by a
random rotation. Nothing in the objective would straighten a latent space that has begun
crooked: a flexible prior can follow any shape. The longer story is in
[docs/pendulum.md](../docs/pendulum.md).
"""

# %%
components = starts.principal_components(images, 2)


def start(model, key):
    """Draws the parameters of a model."""
    key_init, key_start = jax.random.split(key)
    drawn = model.init(key_init, images.shape[1:])
    return starts.start_principal(drawn, key_start, components, scale=0.3)


# %% [markdown]
r"""
## 3. Training

The bound on $\log p(x)$ leaves a choice open: it is as happy with a good reconstruction
at a high rate as with a poor one at a low rate. The paper therefore asks for a
reconstruction error of at most $\kappa$, and for the least rate under that constraint
(Eq. 4):

$$ \min \mathcal{F} \quad \text{subject to} \quad
   \mathbb{E}\,\mathcal{C}_\theta(x, z) \le \kappa^2 . $$

The Lagrangian of this is, with $\beta = 1/\lambda$, that of a $\beta$-VAE (Eq. 10):
distortion $+\ \beta\,\mathcal{F}$. **REWO** moves $\beta$ by itself, from $\hat{C}$, a
running average of the error over batches (Eqs. 12, 13):

$$ \beta_t = \beta_{t-1} \exp\big(\nu\, f_\beta(\beta_{t-1}, \hat{C}_t - \kappa^2)\,
   (\hat{C}_t - \kappa^2)\big), \qquad
   f_\beta(\beta, \delta) = \begin{cases} -1 & \delta \ge 0 \\
   \tanh(\tau (\beta - 1)) & \delta < 0 . \end{cases} $$

$\beta$ falls while the error is too large, and goes to 1 while it is small enough. At
$\beta = 1$ the loss is minus the usual bound on $\log p(x)$. And there are two phases
(Alg. 1): until the error is below $\kappa$ for the first time, $\beta$ stays tiny and
the prior is left alone, so that it is not fitted to a latent space that is not there
yet.

$\kappa$ is an RMS error per pixel. The noise is 0.015, so 0.02 is a little above what
can be reached.
"""

# %%
KAPPA = 0.02
NUM_STEPS, NUM_SAMPLES, NU = (3_000, 4, 15.0) if QUICK else (6_000, 16, 5.0)

rewo = beta.rewo(kappa=KAPPA, nu=NU, beta_init=1e-2)


def is_scale(params):
    """Marks the decoder's noise level, which may learn ten times faster."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "log_scale" in str(path), params
    )


adam = training.OptimizerPair(
    vae=optax.chain(optax.adam(1e-4), optax.masked(optax.scale(10.0), is_scale)),
    prior=optax.adam(1e-4),
)


def train(model, scheme, seed=1):
    """Trains; returns the parameters, the curves, and the latent space on the way."""
    objective = objectives.make_vhp_objective(model, NUM_SAMPLES)
    step = make_train_step(objective, scheme, adam)
    loop = jit_train_loop(training.make_train_loop(step, batch_size=64))
    key = jax.random.key(seed)
    state = init_state(key, lambda key: start(model, key), adam, scheme)
    parts, snapshots = [], []
    for done in range(500, NUM_STEPS + 1, 500):
        state, metrics = loop(state, jnp.asarray(images), num_steps=500)
        parts.append(metrics)
        if done in (500, NUM_STEPS // 3, 2 * NUM_STEPS // 3, NUM_STEPS):
            snapshots.append(snapshot(model, state.params, done))
    joined = jax.tree.map(lambda *values: np.concatenate(values), *parts)
    curves = {"step": np.arange(1, NUM_STEPS + 1)} | joined._asdict()
    curves["kappa_squared"] = np.full(NUM_STEPS, KAPPA**2)
    return state.params, curves, snapshots


def snapshot(model, params, step):
    """Posterior of the test pictures, and samples of the prior."""
    codes = evaluation.encode_dataset(model, params, data.test.examples)
    drawn = model.prior.sample(params, jax.random.key(step), len(codes.mean))
    return plotting.Snapshot(step, *codes, np.asarray(drawn), data.test.targets)


vhp_params, vhp_curves, vhp_snapshots = train(vhp, rewo)
plotting.plot_history(vhp_curves)

# %% [markdown]
r"""
Grey is the first phase. It ends where $\hat{C}$ crosses $\kappa^2$; from there $\beta$
climbs to 1, and the rate falls as the prior learns where the codes are. The distortion
falls all the while because the decoder's noise level, which starts far too high, is
learned as well; in `QUICK` mode it is not done when training ends.

The latent space meanwhile, a column each time: the pictures' posterior means, coloured
by the angle that the model does not know; the posterior's scale; samples of the prior.
"""

# %%
first_phase = int(vhp_curves["initial_phase"].sum())
plotting.plot_snapshots(
    vhp_snapshots, (vhp_curves["step"], vhp_curves["beta"]), phase_end=first_phase
)

# %% [markdown]
r"""
## 4. A rival

The same encoder, decoder, start and optimiser; but the prior is $\mathcal{N}(0, I)$ and
$\beta$ is warmed up from 0 to 1 over the first half of training, as is usual.
Everything else in the package takes any prior and any scheme for $\beta$, so that this
is two lines.
"""

# %%
rival = VAE(encoder, decoder, priors.StandardNormal(latent_dim=2))
warm_up = beta.warm_up(NUM_STEPS // 2, kappa=KAPPA)

rival_params, rival_curves, rival_snapshots = train(rival, warm_up)
names = "VHP + REWO", "N(0, I), warm-up"
plotting.plot_latent_spaces(
    dict(zip(names, [vhp_snapshots[-1], rival_snapshots[-1]], strict=True))
)

# %% [markdown]
r"""
Both encode the angle. But the rival's prior does not know where its own codes are: most
of its samples lie in the middle or outside, where no picture was ever encoded, and it
is left to the decoder to make something of them. Samples of both models, decoded:
"""

# %%
models = {names[0]: (vhp, vhp_params), names[1]: (rival, rival_params)}


def decode(model, params, z):
    """Means of p(x|z) as pictures [N, 16, 16]."""
    pixels = model.reconstruct(params, jnp.asarray(z, jnp.float32))
    return np.clip(np.asarray(pixels).reshape(-1, 16, 16), 0.0, 1.0)


rows = []
for model, params in models.values():
    rows.append(
        decode(model, params, model.prior.sample(params, jax.random.key(7), 24))
    )
title = f"samples: {names[0]} (two rows), {names[1]} (two rows)"
plotting.plot_image_grid(np.concatenate(rows), title, columns=12)

# %% [markdown]
r"""
In numbers. Prior and codes: how often a classifier, the five nearest neighbours, tells
a sample of the prior from a code $z \sim q_\phi(z|x)$ of a test picture; 50 % would be
a perfect prior. Data: $\log p(x)$ of 500 test pictures, importance-sampled with 500
samples each.
"""

# %%
for name, (model, params) in models.items():
    codes = evaluation.encode_dataset(model, params, data.test.examples)
    noise = np.random.default_rng(0).standard_normal(codes.mean.shape)
    drawn = model.prior.sample(params, jax.random.key(0), len(noise))
    match = evaluation.compare_samples(drawn, codes.mean + codes.scale * noise)
    found = evaluation.log_likelihood(
        model, params, jax.random.key(0), data.test.examples[:500], num_samples=500
    )
    nats = found.log_likelihood
    print(f"{name}: prior told from codes {match.accuracy:.0%} of the time, ", end="")
    print(f"log p(x) = {nats.mean():.2f} nats")

# %% [markdown]
r"""
## 5. How even the ring is

The paper's Table 1 measures the latent space with the one thing we know: the true angle
is regressed on the polar angle of the encoding, on pictures held out. The error is the
mean absolute residual over the whole circle.
"""

# %%
curves, errors = {}, {}
for name, (model, params) in models.items():
    codes = evaluation.encode_dataset(model, params, data.test.examples)
    fit = evaluation.regress_angle(codes.mean, data.test.targets)
    curves[name], errors[name] = (data.test.targets, fit.fitted), fit.error
    print(f"{name}: {fit.error:.3f} rad, {np.degrees(fit.error):.1f} degrees")
plotting.plot_regression(curves, errors)

# %% [markdown]
r"""
## 6. Walking through the latent space

What is halfway between two pictures? Not the middle of the straight line between their
codes: that is inside the ring, where there are no pictures. The paper (Sec. 2.3) joins
samples of the prior to a graph, each to its nearest neighbours, and takes the shortest
path through it.

How good that is depends on the prior. And on its strays: a continuous map of a Gaussian
onto a ring has to cross the hole somewhere, and the shortest path takes each stone in
the water that it finds. So there is a second graph of the VHP below, from which the
loneliest twentieth of the samples was left out; and the same of the rival. (The paper
does not do that.)
"""


# %%
def walk(model, params, share_left_out=0.0):
    """The graph of prior samples, and the shortest path from down to up."""
    nodes = np.asarray(model.prior.sample(params, jax.random.key(0), 1_000))
    nearest = graph.nearest_neighbours(nodes, 18)
    distance = np.linalg.norm(nodes[nearest] - nodes[:, None], axis=2).mean(axis=1)
    kept = nodes[distance <= np.quantile(distance, 1.0 - share_left_out)]
    built = graph.bridge_components(graph.build_graph(kept, num_neighbours=18))
    from_up = np.abs(data.test.targets - np.pi)  # the angle pi is up, 0 is down
    ends = data.test.examples[[from_up.argmax(), from_up.argmin()]]
    start, end = evaluation.encode_dataset(model, params, ends).mean
    return built, graph.shortest_path(built, start, end)


walks = {
    names[0]: walk(vhp, vhp_params),
    names[0] + ", no strays": walk(vhp, vhp_params, 0.05),
    names[1] + ", no strays": walk(rival, rival_params, 0.05),
}
plotting.plot_latent_graphs(
    [
        plotting.GraphPanel(
            name, built.nodes, built.edges, built.edge_lengths, [path.points]
        )
        for name, (built, path) in walks.items()
    ]
)

# %% [markdown]
r"""
And the paths, decoded. Where a step is more than three times the usual one, it is
boxed.
"""

# %%
strips = {}
for name, (_, path) in walks.items():
    model, params = models[name.removesuffix(", no strays")]
    strips[name] = decode(model, params, path.points)
jumps = {name: graph.find_jumps(frames) for name, frames in strips.items()}
plotting.plot_strips(strips, jumps)

# %% [markdown]
r"""
## 7. What next

- Your own data in five lines: [own_data.ipynb](own_data.ipynb).
- Likelihoods on MNIST, on a TPU: [mnist_likelihood.ipynb](mnist_likelihood.ipynb).
- All seeds, all rivals, and what goes wrong with other starts:
  [docs/pendulum.md](../docs/pendulum.md). With `beta.geco` or `beta.constant` in place
  of `beta.rewo` above you can see some of it here.
- The same as one command that resumes, checkpoints and draws the figures: `python -m
  experiments.train --config=pendulum`, in a clone.
- REWO in your own VAE: [README](../README.md#use-a-piece-of-it).
- Symbols of the paper and their names in the code:
  [docs/notation.md](../docs/notation.md).
"""
