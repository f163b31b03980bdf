"""Jobs: many records through one model, to one place."""
