"""Decoding: slots, bucketed prefill, one compiled loop; one model or proxy-tuning."""
