"""Conversations: input formats, rendering by a chat template, and which tokens are learned."""
