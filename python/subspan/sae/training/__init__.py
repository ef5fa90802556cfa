"""The trainer: steps, schedules, checkpoints, logs, several processes."""
