"""Supervised fine-tuning: chats to an assistant."""
