"""The outside world, one verb each: feed storage, ledger, registry, Prefect artifacts."""
