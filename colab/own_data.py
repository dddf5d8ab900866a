# %% [markdown]
r"""
# Your own data

`VHP` is the model of *Learning Hierarchical Priors in VAEs* (Klushyn et al., 2019;
[arXiv:1905.04982](https://arxiv.org/abs/1905.04982)) with scikit-learn's habits: a VAE
whose prior is learned, trained with REWO, which sets $\beta$ by itself. What it gives
you is a map of your data in few dimensions, a density, samples, and paths between
examples that stay on the data.

1. [Rows of a table](#1.-Rows-of-a-table): the map, the choice of kappa, odd rows
2. [Images](#2.-Images): a pipeline, samples, paths
3. [Keeping a model](#3.-Keeping-a-model)
4. [What next](#4.-What-next)

Both data sets are here already: the rows are computed, the images are scikit-learn's.
On two CPU cores all of it takes about three minutes.
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
import tempfile

import jax
import numpy as np
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline

from vhp_jax import VHP, plotting

# Shorter runs: on a CPU, or where the environment variable VHP_QUICK is 1.
QUICK = bool(int(os.environ.get("VHP_QUICK", jax.default_backend() == "cpu")))
STEPS = 2_000 if QUICK else 6_000  # 6,000 is the default of VHP

print(f"JAX {jax.__version__} on {jax.device_count()} x {jax.devices()[0].device_kind}")
print(f"{STEPS:,} training steps a model")

# %% [markdown]
r"""
## 1. Rows of a table

Twenty sensors stand around an arm that turns by 270 degrees. Each reads the more the
nearer the arm is to it, each in a unit of its own, and with noise. So the table has
twenty columns and one degree of freedom, the angle of the arm. We know it, the model
does not.
"""

# %%
generator = np.random.default_rng(0)
angle = generator.uniform(0.0, 1.5 * np.pi, 3_000)
places = np.linspace(0.0, 2.0 * np.pi, 20, endpoint=False)
units = generator.uniform(1.0, 50.0, 20)
readings = np.exp(2.0 * np.cos(angle[:, None] - places) - 2.0)
rows = units * (readings + 0.05 * generator.standard_normal(readings.shape))

rows_train, rows_test = rows[:2_500], rows[2_500:]
angle_train, angle_test = angle[:2_500], angle[2_500:]

# %% [markdown]
r"""
`fit` chooses a likelihood and a scaling by the data and says so. Then it has to know
$\kappa$: the reconstruction error, per column and in scaled units, that training holds
the model to. REWO gives the least rate at that error,

$$ \min \mathcal{F} \quad \text{subject to} \quad
   \mathbb{E}\,\mathcal{C}_\theta(x, z) \le \kappa^2 , $$

so $\kappa$ is the one choice that is left. `kappa="auto"`, the default, measures it: a
short run on reconstruction alone shows which error can be reached on rows held out, and
$\kappa$ goes a little above that.
"""

# %%
model = VHP(latent_dim=2, max_steps=STEPS, random_state=0).fit(rows_train)

# %% [markdown]
r"""
What other values of $\kappa$ would cost: a larger one means a lower rate, a blurrier
picture of each row, and a simpler latent space.
"""

# %%
print(model.kappa_suggestion_.table())

# %%
plotting.plot_history(model.history_)

# %% [markdown]
r"""
Grey is the first phase, on reconstruction alone, until the error is below $\kappa$.
Then the prior is trained too, and $\beta$ climbs to 1, where the loss is minus a bound
on $\log p(x)$.

Now the map. Above, the rows that were held out, coloured by the angle that the model
has never seen; below, samples of the prior that it has learned.
"""

# %%
space = plotting.Snapshot(
    model.n_iter_, *model.encode(rows_test), model.sample_latent(1_000), angle_test
)
plotting.plot_latent_spaces({"rows held out": space})

# %%
reader = KNeighborsRegressor().fit(model.transform(rows_train), angle_train)
error = np.abs(reader.predict(model.transform(rows_test)) - angle_test).mean()
print(f"angle read off the map, mean error: {np.degrees(error):.1f} degrees")

# %% [markdown]
r"""
`log_likelihood` is an importance-sampled estimate of $\log p(x)$, in the units of the
table. It knows what the sensors do together: rows in which two sensors far apart were
swapped stand out, though each of their values is quite usual.
"""

# %%
swapped = rows_test.copy()
swapped[:, [4, 12]] = rows_test[:, [12, 4]] * units[[4, 12]] / units[[12, 4]]
usual, unusual = (model.log_likelihood(x[:200]) for x in (rows_test, swapped))
print(f"usual rows:   {np.median(usual):8.1f} nats (median)")
print(f"swapped rows: {np.median(unusual):8.1f} nats")
threshold = np.quantile(usual, 0.01)
print(f"below the lowest 1 % of the usual ones: {(unusual < threshold).mean():.0%}")

# %% [markdown]
r"""
## 2. Images

Scikit-learn's handwritten digits, 1,797 of 8 x 8 pixels. Their values go from 0 to 16;
divided by 16 they lie in $[0, 1]$, and the likelihood is Bernoulli. `VHP` takes images
as they are, `[N, H, W]` or `[N, H, W, C]`, and is a transformer like any other, so that
it goes into a pipeline.
"""

# %%
digits = load_digits()
images, labels = digits.images / 16.0, digits.target
images_train, images_test = images[:1_500], images[1_500:]
labels_train, labels_test = labels[:1_500], labels[1_500:]

vhp = VHP(latent_dim=2, max_steps=STEPS, random_state=0)
pipeline = make_pipeline(vhp, KNeighborsClassifier()).fit(images_train, labels_train)

# %%
flat = images.reshape(len(images), -1)
linear = make_pipeline(PCA(2), KNeighborsClassifier()).fit(flat[:1_500], labels_train)
for name, score in (
    ("PCA, 2 components", linear.score(flat[1_500:], labels_test)),
    ("VHP, 2 dimensions", pipeline.score(images_test, labels_test)),
):
    print(f"{name}: {score:.1%} of the digits held out are recognised")

# %%
space = plotting.Snapshot(
    vhp.n_iter_, *vhp.encode(images), vhp.sample_latent(1_797), labels
)
plotting.plot_latent_spaces({"all digits": space}, color_by="class")

# %% [markdown]
r"""
Samples: a draw from the learned prior, decoded.
"""

# %%
plotting.plot_image_grid(vhp.sample(60), "samples", columns=15)

# %% [markdown]
r"""
And ways from one digit to another: the shortest path through a graph of prior samples
(Sec. 2.3), decoded.
"""

# %%
strips = {}
for a, b in ((0, 6), (1, 7), (3, 8)):
    first, last = images_test[labels_test == a][0], images_test[labels_test == b][0]
    strips[f"from {a} to {b}"] = vhp.interpolate(first, last, num=14)
plotting.plot_strips(strips, {})

# %% [markdown]
r"""
## 3. Keeping a model

`save` writes a folder without pickles: parameters in safetensors, a model card, and
encoder and decoder compiled for `jax.export`, which run without this package.
"""

# %%
folder = pathlib.Path(tempfile.mkdtemp()) / "digits"
vhp.save(folder)
for path in sorted(folder.iterdir()):
    print(path.name)

again = VHP.load(folder)
print("same bits:", np.array_equal(again.transform(images), vhp.transform(images)))

# %% [markdown]
r"""
## 4. What next

- Put your own array in place of `rows`: `model = VHP(latent_dim=2).fit(rows)`.
  `verbose=0` is quiet, `verbose=2` shows the progress; `VHP?` has every parameter.
- What the estimator is made of, piece by piece: [pendulum.ipynb](pendulum.ipynb).
- Files and folders on the command line, with checkpoints and resuming:
  [README](../README.md#your-own-data).
"""
