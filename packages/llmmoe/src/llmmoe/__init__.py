"""Mixture of experts: a feed-forward that routes tokens."""
