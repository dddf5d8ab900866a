"""Overrides that make a run of any fully connected config two steps long."""

TWO_STEPS = {
    "model.hidden": "8",
    "objective.num_samples": "2",
    "train.num_steps": "2",
    "train.log_every": "1",
    "train.batch_size": "8",
    "train.eval_every": "2",
    "train.checkpoint_every": "2",
    "train.snapshot_steps": "2",
}
