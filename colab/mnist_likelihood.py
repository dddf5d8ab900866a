# %% [markdown]
r"""
# The likelihood of MNIST, on all cores of a TPU

This notebook trains the VHP of Klushyn et al. (2019;
[arXiv:1905.04982](https://arxiv.org/abs/1905.04982)) on binary MNIST and estimates
$\log p(x)$ with 5,000 importance samples an image, as in Table 2 of the paper. The work
is shared out over all devices that JAX sees.

1. [Devices](#1.-Devices)
2. [Data](#2.-Data)
3. [Training](#3.-Training)
4. [What it has learned](#4.-What-it-has-learned)
5. [The likelihood](#5.-The-likelihood)
6. [What next](#6.-What-next)

On Colab choose a TPU first (Runtime, Change runtime type). On an accelerator the
networks are the convolutions of the paper's Table 3, trained for an hour at a time. On
a CPU (`QUICK`) it is a small MLP, a few steps and a few images, in about three minutes:
enough to see every part at work, too little for a number worth quoting. The long run
has not been made on a TPU yet.
"""

# %%
# Where the repository is: "https://..." on Colab, ".." in a clone of it.
REPOSITORY = ".."

import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys

# The commands and their configs are not in the package: a clone is worked in.
is_installed = importlib.util.find_spec("vhp_jax") is not None
clone = pathlib.Path(REPOSITORY)
if "://" in REPOSITORY:
    clone = pathlib.Path.home() / "vhp_jax"
    if not clone.exists():
        subprocess.run(["git", "clone", "-q", REPOSITORY, str(clone)], check=True)
if not pathlib.Path("experiments").is_dir():
    os.chdir(clone)
sys.path.insert(0, os.getcwd())
if not is_installed:
    is_gpu, is_tpu = shutil.which("nvidia-smi"), importlib.util.find_spec("libtpu")
    extra = "cuda" if is_gpu else "tpu" if is_tpu else ""
    wanted = [sys.executable, "-m", "pip", "install", "-q", "-e", f".[{extra}]"]
    subprocess.run(wanted, check=True)

# %%
# %matplotlib inline
import time

import jax
import numpy as np
from sklearn.datasets import load_digits

from experiments import cli, figures, run_files, runs, trainer
from vhp_jax import evaluation, plotting
from vhp_jax.data import DataError, static_mnist

jax.config.update("jax_num_cpu_devices", 2)  # on a CPU two devices are played

# Shorter runs: on a CPU, or where the environment variable VHP_QUICK is 1.
QUICK = bool(int(os.environ.get("VHP_QUICK", jax.default_backend() == "cpu")))

# %% [markdown]
r"""
## 1. Devices

A TPU v2-8 shows 8 devices, one a core. All of them are used.
"""

# %%
print(f"JAX {jax.__version__}")
for device in jax.devices():
    print(f"device {device.id}: {device.device_kind}")

# %% [markdown]
r"""
## 2. Data

Static MNIST (Larochelle and Murray): 50,000, 10,000 and 10,000 images of 28 x 28 pixels
that are 0 or 1. The files are looked for in the folder that the environment variable
`VHP_DATA_DIR` names; without it they are downloaded, and checked against their
checksums. Where there is neither, say so and take scikit-learn's digits, enlarged:
**another data set, whose numbers cannot be compared with any other**.
"""

# %%
NAME = "static_mnist_mlp" if QUICK else "static_mnist"


def enlarged_digits():
    """A file of scikit-learn's digits, 8 x 8 pixels made 28 x 28 and binary."""
    ink = load_digits().images > 7.5
    large = np.kron(ink, np.ones((1, 3, 3), bool))
    path = pathlib.Path("runs/notebook_digits/digits_28.npy")
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.pad(large, [(0, 0), (2, 2), (2, 2)]).astype(np.uint8))
    return path


try:
    source = static_mnist.load(os.environ.get("VHP_DATA_DIR")).source
    is_mnist, config = True, cli.load_config(NAME)
    print(f"static MNIST: {source}")
except DataError as error:
    is_mnist, config = False, cli.load_config("custom")
    print(f"NO MNIST HERE: {error}")
    print("In its place: scikit-learn's digits, enlarged. Not MNIST.")
    mlp = cli.load_config("static_mnist_mlp")
    config.data.path = str(enlarged_digits())
    config.model.start = "random"
    sizes = ("latent_dim", "inner_dim", "hidden", "prior_hidden")
    for key in ("network", *sizes, "dropout"):
        config.model[key] = mlp.model[key]
    config.beta, config.train = mlp.beta, mlp.train

# %% [markdown]
r"""
## 3. Training

The objective is that of the [pendulum](pendulum.ipynb): distortion $+\
\beta\,\mathcal{F}$ with REWO's $\beta$, which is below 1 until the reconstructions are
good enough, $\hat{C} < \kappa^2$, and then goes to 1. There the loss is minus a bound
on $\log p(x)$:

$$ \log p(x) \ge \mathbb{E}_{q_\phi(z|x)} \Big[ \log p_\theta(x|z) - \log q_\phi(z|x) +
   \mathbb{E}_{\zeta_{1:K} \sim q_\Phi(\zeta|z)} \log \frac{1}{K} \sum_{k=1}^{K}
   \frac{p_\Theta(z|\zeta_k)\, p(\zeta_k)}{q_\Phi(\zeta_k|z)} \Big]. $$

Each batch is cut into as many parts as there are devices.
"""

# %%
config.mesh = jax.device_count()
config.train.batch_size += -config.train.batch_size % config.mesh
if QUICK:
    config.train.num_steps = 1_500
    config.train.eval_every = config.train.checkpoint_every = 500
    config.train.average_decay = 0.99
    config.objective.num_samples = 4
    config.beta.kappa = 0.22

# %% [markdown]
r"""
The same as `python -m experiments.train` does: metrics and checkpoints go to `workdir`,
and the cell goes on where it was when it is run again.
"""

# %%
workdir = pathlib.Path(f"runs/notebook_{NAME}")
if QUICK:
    shutil.rmtree(workdir, ignore_errors=True)  # a short run starts afresh
summary = trainer.train(config, workdir, max_minutes=60.0)
if summary is None:
    print("an hour is over; run this cell again to go on")

# %%
restored = runs.restore(workdir)
run, params = restored.run, restored.first()
model, test = run.experiment.model, run.experiment.dataset.test.examples
seed = config.seed
with run_files.WorkDir(workdir) as directory:
    curves = figures.columns(figures.member_lines(directory, seed))
    validation = figures.validation_lines(directory, seed)
plotting.plot_history(curves, validation=validation)

# %% [markdown]
r"""
## 4. What it has learned

Test images, each above its reconstruction, and samples: $\zeta \sim p(\zeta)$, $z \sim
p_\Theta(z|\zeta)$, then the mean of $p_\theta(x|z)$.
"""

# %%
figures.reconstruction_figure(run, params, rows=2)

# %%
figures.sample_figure(run, params, 64, seed=0)

# %% [markdown]
r"""
How many of the latent dimensions are used? The KL divergence of each dimension of
$\zeta$ from the prior, sorted (the paper's App. D.2):
"""

# %%
units = evaluation.active_units(model, params, jax.random.key(0), test[:2_000])
plotting.plot_active_units({"VHP + REWO": np.sort(units.kl)[::-1]})

# %% [markdown]
r"""
## 5. The likelihood

$$ \log p(x) \approx \log \frac{1}{S} \sum_{s=1}^{S} w_s, \qquad
   w_s = \frac{p_\theta(x|z_s)\, p_\Theta(z_s|\zeta_s)\, p(\zeta_s)}
   {q_\phi(z_s|x)\, q_\Phi(\zeta_s|z_s)}, \qquad S = 5{,}000. $$

In expectation this is a lower bound that rises with $S$. Each batch of images is shared
out over the devices; the sums are streamed, so that memory does not grow with $S$.
Every image and sample has a random key of its own, so that the result does not depend
on how many devices there are.
"""

# %%
NUM_IMAGES = 100 if QUICK else len(test)

for num_samples in (1, 10, 100, 1_000, 5_000):
    began = time.monotonic()
    found = evaluation.log_likelihood(
        model, params, jax.random.key(1), test[:NUM_IMAGES], num_samples
    )
    nats = -found.log_likelihood
    stderr = nats.std(ddof=1) / np.sqrt(len(nats))
    print(f"S = {num_samples:5d}: -log p(x) = {nats.mean():.2f} +- {stderr:.2f} nats")
seconds = time.monotonic() - began
print(f"{NUM_IMAGES} images, the last line: {seconds:.0f} s")

# %% [markdown]
r"""
Whether to trust it: the effective number of samples, of 5,000, and Pareto's $\hat{k}$
of the largest weights, which should be below 0.7. Where it is not, more samples would
still lower $-\log p(x)$.
"""

# %%
ess, k = found.effective_sample_size, found.pareto_k
print(f"mean effective sample size {ess.mean():.0f} of 5,000")
print(f"k-hat above 0.7 for {np.mean(k > 0.7):.0%} of the images")

# %%
if is_mnist and not QUICK:
    print("82.74 nats in the paper (VHP + REWO, static MNIST, Table 2)")
elif is_mnist:
    print("a short run of a small network, on a few images: not to be compared")
else:
    print("NOT MNIST: scikit-learn's digits, enlarged")

# %% [markdown]
r"""
## 6. What next

- Other sets: `dynamic_mnist`, `fashion_mnist` and `omniglot` in place of
  `static_mnist`.
- Rivals are overrides: `cli.load_config(NAME, [("model.prior", "vamp")])`.
- Full tables as commands that stop and go on:
  [docs/likelihood.md](../docs/likelihood.md).
- How the model works, in pictures: [pendulum.ipynb](pendulum.ipynb).
"""
