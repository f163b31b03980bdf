"""What a policy's numbers do: grids of settings, and studies that match their steps."""
