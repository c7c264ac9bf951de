"""Commands that run the controller and look after the pool."""
