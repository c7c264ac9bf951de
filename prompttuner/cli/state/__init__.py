"""Commands about the recorded state, settings, bank and traces."""
