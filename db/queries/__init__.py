"""Every query, as named functions that work within a session."""
