"""Former names of modules, kept for one release: processes that were started before an upgrade still use them."""
