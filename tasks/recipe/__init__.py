"""What training a RECIPE encoder does to the outside world: its edits, its run in MLflow, its registered version."""
