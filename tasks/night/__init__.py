"""The steps of a night, one verb each; `flows.night` puts them in order."""
