"""Pretraining: tokens to a base model."""
