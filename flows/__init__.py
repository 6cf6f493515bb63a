"""The order of things: the nightly flow, the other flows, and the command line."""
