"""Reward modelling: preferences to a score."""
