"""Servers whose models this peer serves: their models are published while they answer, and else withdrawn."""
