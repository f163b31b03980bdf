"""Training: LLaDA's objective, the loop with exact resume, and export."""
