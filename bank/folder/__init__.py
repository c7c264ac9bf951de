"""A bank's folder: entries, shelves, and what is imported into them."""
