"""Decoding requests on devices: scheduler, lanes, engine; jobs and studies stand on it."""
