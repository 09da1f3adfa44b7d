"""The local network: who announces himself there by mDNS, and whom to meet."""
