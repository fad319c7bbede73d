"""Reinforcement learning: PPO and GRPO against rewards."""
