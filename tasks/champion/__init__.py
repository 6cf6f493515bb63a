"""Who serves: moves of the aliases, the version of any moment, the canary, and a person's approval."""
