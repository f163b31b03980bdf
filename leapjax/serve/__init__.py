"""The serving engine: scheduler, lanes, engine. Jobs and studies use it."""
