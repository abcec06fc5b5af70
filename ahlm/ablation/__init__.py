"""The tables of an ablation: rows, trainings shared between them, baselines, bootstrap, output."""
