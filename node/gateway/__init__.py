"""The HTTP gateway: the swarm's models for every OpenAI client, in the peer's own nursery."""
