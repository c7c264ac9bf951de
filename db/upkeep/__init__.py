"""Looking after a database: checks, removal of old rows, moving it."""
