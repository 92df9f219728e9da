"""Conversations: their forms, their rendering by a chat template, and what of it is learnt."""
