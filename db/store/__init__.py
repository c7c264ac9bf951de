"""The store: where the database is, its schema, who owns it, and its transactions."""
