"""Training: the objectives, the loop with exact resume, and export."""
