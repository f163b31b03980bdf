"""What LocalLeap rests on, measured: delayed decoding and local determinism."""
