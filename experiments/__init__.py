"""The commands: short absl binaries over `vhp_jax`; `python -m experiments.X`."""
