"""Evaluation: ranking functions and the metrics built on them."""
